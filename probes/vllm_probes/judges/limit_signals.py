"""What can keep a serving run from being faster: one function for each limit, and their order.

Each looks at the time between two looks at the server while requests were in it, and says what it finds or nothing:
what is unknown limits nobody. "Measured" is vLLM 0.32 on the CPU, two ranks on two cores; no GPU has been at hand.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from vllm_probes.judges.gpu_signatures import is_throttled
from vllm_probes.judges.limit_interval import Interval, Limit
from vllm_probes.judges.limit_ranks import slow_rank
from vllm_probes.rows import DebugSetting, EngineSample, ProcessRow, Role

CROWDED = 4.0
"""From so many requests at a time an engine that works at its own pace is never out of work. Chosen: with random
arrivals it would be in one moment of fifty."""
FULL_CORE_PERCENT = 80.0
"""A process that uses so much of a core has none to spare. Chosen: one thread at its limit, and room for noise."""
FRONT_END_PERCENT = 60.0
"""… and an API server in which requests pile up is at its limit from here. Measured: 65 to 108 % where it tokenises
without a pause on two cores that it shares with busy workers; 10 to 30 % under full load of other kinds."""
KV_FULL = 0.9
"""Measured: a cache of 23 blocks that preempts all the time is seen between 0.78 and 0.96."""
PREEMPTED_SHARE = 0.05
"""Preemptions for each request that ended. Measured: 0.8 to 0.9 with a cache that is far too small, 0 with room."""
PLATEAU = 0.05
"""How much `running` may differ between two looks to be held by a bound."""
QUEUE_SHARE = 0.1
"""Fewer waiting than this share of those that run are only on their way in. Chosen."""
SWAP_BYTES_PER_S = 1e6
MEMORY_PRESSURE_PERCENT = 10.0
"""PSI: this share of the time something waited for memory. Chosen."""
HUNGRY_PERCENT = 70.0
"""GPUs that are less busy than this wait for somebody. Not measured."""
PREFILL_RATIO = 10.0
"""So many prompt tokens computed for each one generated: the prompts are the work. Chosen."""
SLOW_FIRST_TOKEN_S = 1.0
"""A first token that comes sooner bothers nobody. Chosen."""

DISTORTING = frozenset(
    [
        *("CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING", "TRITON_INTERPRET"),
        *("VLLM_TRACE_FUNCTION", "VLLM_TRACE_FRAME", "PYTHONDEVMODE", "PYTHONTRACEMALLOC"),
        *("compute-sanitizer", "cuda-gdb", "nsys", "ncu", "strace"),
    ]
)
"""Debug settings that cost so much that every other figure shows them, too."""
UNCOMPILED = frozenset(
    [
        *("--enforce-eager", "-O", "--optimization-level", "-cc.mode", "-cc.cudagraph_mode"),
        *("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"),
    ]
)
"""Debug settings that take torch.compile or CUDA graphs away: decoding is 1.2 to 3 times slower, and the GPU waits
for the CPU."""


def find(interval: Interval) -> Limit | None:
    """The first limit that fits.

    First what distorts everything else or would be there whatever the load, then what holds the engine up from
    outside, then what the engine lacks, and last what is only a shape of the load: a rank that is slow fills the queue,
    so the queue is not the limit.
    """
    if not interval.is_loaded:
        return None
    return next((limit for signal in _ORDER if (limit := signal(interval))), None)


# --- settings, host, clocks -------------------------------------------------------------------------------------------


def _debug_setting(interval: Interval) -> Limit | None:
    found = _settings(interval, DISTORTING)
    return _left_on("debug_setting", found) if found else None


def _swap(interval: Interval) -> Limit | None:
    swap = interval.means.get(("swap", 0))
    pressure = interval.means.get(("memory_pressure", 0))
    evidence = []
    if swap is not None and swap > SWAP_BYTES_PER_S:
        evidence.append(("swap", f"{swap / 1e6:.0f} MB/s"))
    if pressure is not None and pressure >= MEMORY_PRESSURE_PERCENT:
        evidence.append(("memory pressure", f"{pressure:.0f} % of the time"))
    summary = "The host is short of memory and moves pages to and fro."
    return Limit("swap", summary, tuple(evidence)) if evidence else None


def _throttling(interval: Interval) -> Limit | None:
    """GPUs of the run that were held down in everything that was told of them since the load began."""
    told = {index: interval.gpu_rows.get(index, ()) for index in interval.gpu_ranks}
    held = [index for index, rows in told.items() if rows and all(map(is_throttled, rows))]
    if not held:
        return None
    evidence = tuple((f"GPU {index}", f"throttled: {', '.join(told[index][-1].throttle)}") for index in held)
    summary = f"GPU {', '.join(map(str, held))}: clocked down by heat or by the power supply."
    return Limit("throttling", summary, evidence)


def _compiling(interval: Interval) -> Limit | None:
    if interval.compiled is None:
        return None
    return Limit("compiling", "Kernels are compiled while requests wait for them.", (("log", interval.compiled),))


# --- front end and engine ---------------------------------------------------------------------------------------------


def _api_server(interval: Interval) -> Limit | None:
    """It cannot feed an engine that has nothing to do."""
    busiest = _busiest(interval, "api_server")
    waiting = [engine.waiting for engine in (*interval.before, *interval.after)]
    if busiest is None or any(waiting) or None in waiting:
        return None
    piles_up = _is_crowded_in_front(interval) and busiest[0] >= FRONT_END_PERCENT and not _gpus_are_busy(interval)
    if not piles_up and not (_gpus_are_hungry(interval) and busiest[0] >= FULL_CORE_PERCENT):
        return None
    evidence = [(f"CPU of {busiest[1]}", f"{busiest[0]:.0f} %")]
    if interval.in_flight is not None:
        evidence.append(("requests at a time", f"{interval.in_flight:.0f}"))
    if interval.in_engine is not None:
        evidence.append(("requests in the engine", f"{interval.in_engine:.0f}"))
    summary = f"{busiest[1]} needs a whole core to tokenise and to answer, and the engine waits for it."
    return Limit("api_server_cpu", summary, tuple(evidence), busiest[1])


def _is_crowded_in_front(interval: Interval) -> bool:
    """Many requests are in the server, and most of them are not in the engine.

    Those that one step of the engine answers for good are never seen there: `running` is told after the step.
    """
    in_flight, in_engine = interval.in_flight, interval.in_engine
    return in_flight is not None and in_engine is not None and in_flight >= max(CROWDED, 2 * in_engine)


def _kv_cache(interval: Interval) -> Limit | None:
    preempted, finished = interval.increase("preemptions"), interval.increase("finished_requests")
    waits = any(engine.waiting for engine in (*interval.before, *interval.after))
    preempts = waits and preempted is not None and preempted >= max(1.0, PREEMPTED_SHARE * (finished or 0.0))
    full = [(old, new) for old, new in interval.engines() if _is_full(old) and _is_full(new)]
    if not preempts and not full:
        return None
    evidence = [(f"KV cache of engine {new.engine}", f"{100 * (new.kv_usage or 0):.0f} % used") for _, new in full]
    if preempts:
        evidence.append(("preemptions", f"{preempted:.0f} in {interval.seconds:.0f} s"))
    evidence.append(("requests that wait", _looks(interval, "waiting")))
    return Limit("kv_cache", "The KV cache has no room for the requests that wait.", tuple(evidence))


def _is_full(engine: EngineSample) -> bool:
    return engine.kv_usage is not None and engine.kv_usage >= KV_FULL and bool(engine.waiting)


def _uncompiled(interval: Interval) -> Limit | None:
    found = _settings(interval, UNCOMPILED)
    return _left_on("eager", found) if found else None


def _engine_cpu(interval: Interval) -> Limit | None:
    """An engine that schedules all the time, in a process of its own, while its workers or their GPUs wait."""
    workers = [interval.cpu(row) for row in interval.of_role("worker")]
    engine = _busiest(interval, "engine_core")
    if engine is None or engine[0] < FULL_CORE_PERCENT or not workers or not _is_crowded(interval):
        return None
    if any(cpu is None or cpu >= FULL_CORE_PERCENT for cpu in workers):
        return None
    if interval.gpu_ranks and not _gpus_are_hungry(interval):
        return None
    evidence = ((f"CPU of {engine[1]}", f"{engine[0]:.0f} %"), *_cpus(interval, interval.of_role("worker")))
    summary = f"{engine[1]} needs a whole core to schedule, and its workers wait."
    return Limit("engine_cpu", summary, evidence, engine[1])


def _launch(interval: Interval) -> Limit | None:
    """GPUs that wait for the process that launches their kernels. Stages of a pipeline wait for each other, too."""
    launchers = list(interval.gpu_ranks.values())
    used = [interval.cpu(row) for row in launchers]
    if not _is_crowded(interval) or not _gpus_are_hungry(interval) or any("PP" in row.process for row in launchers):
        return None
    if any(cpu is None or cpu < FULL_CORE_PERCENT for cpu in used):
        return None
    spans = {index: interval.gpu_range(index, "busy_percent") or (0.0, 0.0) for index in interval.gpu_ranks}
    evidence = [(f"GPU {index}", f"{least:.0f} to {most:.0f} % busy") for index, (least, most) in spans.items()]
    evidence += _cpus(interval, launchers)
    return Limit("launch", "The GPUs wait for the CPU, which launches their kernels too slowly.", tuple(evidence))


def _prefill(interval: Interval) -> Limit | None:
    """Requests that are in the engine spend their time before the first token, and prompts are what is computed."""
    first, count = interval.before_first_token, interval.increase("ttft_count")
    prompt, generated = interval.increase("prompt_tokens"), interval.increase("generation_tokens")
    if not first or not count or prompt is None or generated is None or interval.in_engine is None:
        return None
    computed = prompt - (interval.increase("prefix_hits") or 0.0)
    ttft_s = first * interval.seconds / count
    is_in_engine = interval.in_engine >= (interval.in_flight or 0.0) / 2
    is_early = first >= (interval.decoding or 0.0) and ttft_s >= SLOW_FIRST_TOKEN_S
    if computed < PREFILL_RATIO * max(generated, 1.0) or not is_early or not is_in_engine:
        return None
    evidence = (
        ("prompt tokens", f"{computed / interval.seconds:.0f} a second"),
        ("generated tokens", f"{generated / interval.seconds:.0f} a second"),
        ("time to first token", f"{ttft_s:.1f} s"),
    )
    return Limit("prefill", "Most of the work is reading prompts.", evidence)


def _queue(interval: Interval) -> Limit | None:
    held = [(old, new) for old, new in interval.engines() if _is_held(old, new)]
    if not held:
        return None
    evidence = (
        ("requests that run", _looks(interval, "running")),
        ("requests that wait", _looks(interval, "waiting")),
        ("KV cache", f"{100 * max(new.kv_usage or 0 for _, new in held):.0f} % used"),
    )
    return Limit("queue", "Requests wait while the KV cache has room: see --max-num-seqs.", evidence)


def _is_held(old: EngineSample, new: EngineSample) -> bool:
    """As many run in both looks, others wait, and the KV cache is known to have room."""
    if old.running is None or new.running is None or old.kv_usage is None or new.kv_usage is None:
        return False
    most = max(old.running, new.running)
    waiting = min(old.waiting or 0.0, new.waiting or 0.0)
    has_room = max(old.kv_usage, new.kv_usage) < KV_FULL
    is_plateau = abs(new.running - old.running) <= max(1.0, PLATEAU * most)
    return has_room and is_plateau and most > 0 and waiting >= max(1.0, QUEUE_SHARE * most)


_ORDER: tuple[Callable[[Interval], Limit | None], ...] = (
    _debug_setting,
    _swap,
    _throttling,
    _compiling,
    slow_rank,
    _api_server,
    _kv_cache,
    _uncompiled,
    _engine_cpu,
    _launch,
    _prefill,
    _queue,
)


# --- shared -----------------------------------------------------------------------------------------------------------


def _settings(interval: Interval, names: Collection[str]) -> list[DebugSetting]:
    return [setting for setting in interval.settings if setting.setting.partition("=")[0] in names]


def _left_on(name: str, settings: Sequence[DebugSetting]) -> Limit:
    evidence = tuple((f"debug setting, {one.origin}", one.setting) for one in settings)
    return Limit(name, f"{settings[0].setting} is on: {settings[0].cost.rstrip('.')}.", evidence)


def _is_crowded(interval: Interval) -> bool:
    """So many requests run in both looks that the engine is never without work."""
    running = [engine.running for engine in (*interval.before, *interval.after)]
    return bool(running) and all(value is not None and value >= CROWDED for value in running)


def _gpus_are_hungry(interval: Interval) -> bool:
    """Every GPU of the run, even at its busiest."""
    spans = [interval.gpu_range(index, "busy_percent") for index in interval.gpu_ranks]
    return bool(spans) and all(span is not None and span[1] < HUNGRY_PERCENT for span in spans)


def _gpus_are_busy(interval: Interval) -> bool:
    """One of them, as far as was told last."""
    rows = [interval.gpu_rows[index][-1] for index in interval.gpu_ranks if index in interval.gpu_rows]
    return any(row.busy_percent is not None and row.busy_percent >= HUNGRY_PERCENT for row in rows)


def _busiest(interval: Interval, role: Role) -> tuple[float, str] | None:
    used = [(cpu, row.process) for row in interval.of_role(role) if (cpu := interval.cpu(row)) is not None]
    return max(used, default=None)


def _cpus(interval: Interval, rows: Iterable[ProcessRow]) -> list[tuple[str, str]]:
    return [(f"CPU of {row.process}", f"{cpu:.0f} %") for row in rows if (cpu := interval.cpu(row)) is not None]


def _looks(interval: Interval, field: str) -> str:
    """`189, then 21`."""
    looks = [[getattr(engine, field) or 0.0 for engine in look] for look in (interval.before, interval.after)]
    return f"{sum(looks[0]):.0f}, then {sum(looks[1]):.0f}"
