"""From observations to the state of a run: `starting` … `serving` … `exited` or `crashed`.

A pure fold: `step` takes what is remembered and one observation, and gives what is remembered next and the
conclusions. Its conclusions carry the stamp of the observation that led to them, so a recording judged again gives the
same lines.
"""

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from vllm_probes.events import (
    ENDED_STATES,
    SERVER_STATES,
    AttemptStarted,
    CommandEnded,
    Conclusion,
    EndpointSampled,
    Event,
    Exited,
    HostSampled,
    LogRecorded,
    PhaseChanged,
    ProcessesSampled,
    ProgressChanged,
    State,
    StateChanged,
    StopRequested,
    TreeEnded,
    stamp_of,
)
from vllm_probes.judges import rendezvous
from vllm_probes.judges.aftermath import ALONE, Circumstances, facts, hang_finding, signal_finding
from vllm_probes.judges.rules import Rule
from vllm_probes.judges.survival import is_step
from vllm_probes.judges.titles import is_vllm_name
from vllm_probes.judges.triage import MAX_FINDINGS, MAX_RECORDS, clue_of, find_causes
from vllm_probes.rows import ALARMING_LEVELS, Role

PHASES: dict[str, State] = {
    "banner": "starting",
    "args": "starting",
    "config": "starting",
    "engine_spawn": "starting",
    "dist_init": "starting",
    "model_init": "loading",
    "download": "downloading",
    "weights": "loading",
    "weights_done": "loading",
    "compile": "compiling",
    "compile_done": "compiling",
    "profile": "warming_up",
    "kv_cache": "warming_up",
    "warmup": "warming_up",
    "cudagraph": "warming_up",
    "cudagraph_done": "warming_up",
    "engine_ready": "warming_up",
    "api_start": "warming_up",
    "serving": "warming_up",
}
"""Phase -> state, in the order of a start (vLLM 0.32; reference: messages of 0.4-0.32). The last one is still
`warming_up`: a server is `idle` only when /health says so, too."""

_ORDER = list(PHASES)
_REPEATABLE = {"download", "weights", "compile", "warmup", "cudagraph"}
"""Steps that may come again after a later one: on the CPU the KV layout is chosen before the compilation."""

DEATH_CLASSES = frozenset(("worker_proc_died", "engine_core_died"))
ENGINE_ROLES: frozenset[Role] = frozenset(("engine_core", "worker"))
LOST_GRACE_S = 3.0
"""An engine that is gone this long before its command ended did not go with it."""
ABANDONED_S = 10.0
"""An API server that lives this long without its engine (VLLM_KEEP_ALIVE_ON_ENGINE_DEATH) has lost it."""


class Memory(msgspec.Struct, frozen=True):
    """What the judge knows of the current attempt."""

    state: State | None = None
    is_attached: bool = False
    """Somebody else started it: that its exit code is not known is no crash."""
    recognised: bool = False
    """It is vLLM: its command line, a log line or a process says so."""
    phase: str | None = None
    progress: tuple[str, float, float] | None = None
    downloads: bool = False
    """Files of the hub grow, or have just grown."""
    stop_mono: float | None = None
    """When somebody first asked for the end."""
    stop_requested: bool = False
    """Somebody asked for it before it came."""
    shutdown_seen: bool = False
    """vLLM itself spoke of an orderly end."""
    roles: tuple[tuple[int, Role, str], ...] = ()
    """pid, role and name of the engines and workers."""
    lost: tuple[float, str] | None = None
    """When (mono) the first engine or worker went, and which, with nobody asking."""
    death_rule: str | None = None
    """The log rule that spoke of a death."""
    alarms: tuple[LogRecorded, ...] = ()
    facts: Mapping[str, str] = {}
    """What the run said of itself, by the names of the rules' fields."""
    addresses: rendezvous.Addresses = {}
    oom_kills: tuple[int, int] | None = None
    """What the cgroup's counter of kills for memory said first, and last."""
    ended: CommandEnded | None = None
    log: str = ""


Result = tuple[Memory, list[Conclusion]]


def step(rules: Mapping[str, Rule], memory: Memory, event: Event, circumstances: Circumstances = ALONE) -> Result:
    """One observation in, conclusions out. Anything else changes nothing."""
    match event:
        case AttemptStarted():
            return _attempt_started(event)
        case LogRecorded():
            return _log_recorded(rules, memory, event)
        case ProcessesSampled():
            return _processes_sampled(memory, event)
        case EndpointSampled():
            return _endpoint_sampled(memory, event)
        case HostSampled():
            return _host_sampled(memory, event)
        case StopRequested():
            return _stop_requested(memory, event)
        case CommandEnded():
            return _command_ended(rules, memory, event, circumstances)
        case TreeEnded() if memory.ended and memory.state not in ENDED_STATES:
            return _conclude(rules, memory, event, circumstances)
        case _:
            return memory, []


def _move(memory: Memory, event: Event, state: State, reason: str | None = None) -> Result:
    if memory.state == state or memory.state in ENDED_STATES:
        return memory, []
    return replace(memory, state=state), [StateChanged(**stamp_of(event), state=state, reason=reason)]


def _attempt_started(event: AttemptStarted) -> Result:
    memory = Memory(
        recognised=event.expects_vllm,
        log=event.log,
        is_attached=event.attached_pid is not None,
        addresses=event.addresses,
    )
    first: State = "starting" if event.expects_vllm else "running"
    return _move(memory, event, "idle" if event.expects_vllm and event.attached_serving else first)


def _stop_requested(memory: Memory, event: StopRequested) -> Result:
    if memory.ended is not None:
        return memory, []
    stop_mono = event.mono if memory.stop_mono is None else memory.stop_mono
    return _move(replace(memory, stop_requested=True, stop_mono=stop_mono), event, "stopping")


def _command_ended(
    rules: Mapping[str, Rule], memory: Memory, event: CommandEnded, circumstances: Circumstances
) -> Result:
    """An end that was asked for is judged when the whole tree has come to it."""
    by_itself = memory.stop_mono is None or (event.ended_mono is not None and event.ended_mono < memory.stop_mono)
    memory = replace(memory, ended=event, stop_requested=not by_itself)
    return _conclude(rules, memory, event, circumstances) if by_itself else (memory, [])


def _recognise(memory: Memory, event: Event) -> Result:
    if memory.recognised:
        return memory, []
    return _move(replace(memory, recognised=True), event, "starting")


# --- the log --------------------------------------------------------------------------------------------------------


def _log_recorded(rules: Mapping[str, Rule], memory: Memory, event: LogRecorded) -> Result:
    rule = rules.get(event.rule or "")
    if rule.explains if rule else event.level in ALARMING_LEVELS or event.exception_line_number is not None:
        memory = replace(memory, alarms=(*memory.alarms, event)[:MAX_RECORDS])
    if event.fields:
        memory = replace(memory, facts={**memory.facts, **event.fields})
    if rule is None:
        return memory, []
    if rule.class_ in DEATH_CLASSES:
        memory = replace(memory, death_rule=memory.death_rule or rule.id)
    if rule.phase is None:
        return memory, []
    if rule.phase == "shutdown":
        return _shutdown(memory, event)
    if is_step(rule) and memory.death_rule is None:
        memory = replace(memory, alarms=tuple(one for one in memory.alarms if not _is_survived(rules, one, event)))
    memory, conclusions = _recognise(memory, event)
    for result in (_enter_phase, _note_progress, _note_generation):
        memory, more = result(memory, event, rule)
        conclusions += more
    return memory, conclusions


def _is_survived(rules: Mapping[str, Rule], alarm: LogRecorded, step: LogRecorded) -> bool:
    """Its process went on with the start."""
    rule = rules.get(alarm.rule or "")
    return rule is not None and rule.survivable and alarm.process == step.process


def _shutdown(memory: Memory, event: LogRecorded) -> Result:
    memory = replace(memory, shutdown_seen=True)
    if memory.death_rule or memory.ended:
        return memory, []
    return _move(memory, event, "stopping", "vLLM was told to stop")


def _enter_phase(memory: Memory, event: LogRecorded, rule: Rule) -> Result:
    phase = rule.phase
    if phase not in PHASES or phase == memory.phase or memory.state in {*SERVER_STATES, "stopping"}:
        return memory, []
    if memory.phase and _ORDER.index(phase) < _ORDER.index(memory.phase) and phase not in _REPEATABLE:
        return memory, []
    memory = replace(memory, phase=phase, progress=None)
    entered = PhaseChanged(**stamp_of(event), phase=phase, label=rule.label or phase, line_number=event.line_number)
    memory, conclusions = _move(memory, event, PHASES[phase])
    return memory, [entered, *conclusions]


def _note_progress(memory: Memory, event: LogRecorded, rule: Rule) -> Result:
    done, total = _number(event.fields.get("done")), _number(event.fields.get("total"))
    if done is None or not total or memory.state in SERVER_STATES:
        return memory, []
    label = rule.label or rule.id
    if memory.progress == (label, done, total):
        return memory, []
    memory = replace(memory, progress=(label, done, total))
    eta = event.fields.get("eta")
    return memory, [ProgressChanged(**stamp_of(event), label=label, done=done, total=total, eta=eta)]


def _number(text: str | None) -> float | None:
    try:
        return float(text.replace(",", "")) if text else None
    except ValueError:
        return None


def _note_generation(memory: Memory, event: LogRecorded, rule: Rule) -> Result:
    """A script without a server: its own bars tell whether it works on a batch."""
    if rule.phase != "generation":
        return memory, []
    done = event.fields.get("done")
    finished = done is not None and done == event.fields.get("total")
    return _move(memory, event, "idle" if finished else "serving")


# --- processes and the server ---------------------------------------------------------------------------------------


def _processes_sampled(memory: Memory, event: ProcessesSampled) -> Result:
    conclusions: list[Conclusion] = []
    seen = {row.pid: (row.pid, row.role, row.process) for row in event.rows if row.role in ENGINE_ROLES}
    if any(is_vllm_name(name) for _, _, name in seen.values()):
        memory, conclusions = _recognise(memory, event)
    known = {pid: (pid, role, name) for pid, role, name in memory.roles} | seen
    gone = [known.pop(pid) for pid in event.gone if pid in known]
    memory = replace(memory, roles=tuple(known.values()))
    if gone and not memory.lost and not memory.stop_requested and not memory.shutdown_seen and not memory.ended:
        memory = replace(memory, lost=(event.mono, gone[0][2]))
    memory, more = _abandoned(memory, event)
    return memory, conclusions + more


def _abandoned(memory: Memory, event: Event) -> Result:
    """The command lives on without the engine it needs."""
    no_engine = not any(role == "engine_core" for _, role, _ in memory.roles)
    if memory.lost is None or memory.shutdown_seen or memory.stop_requested or not no_engine:
        return memory, []
    if event.mono - memory.lost[0] < ABANDONED_S or memory.death_rule is None:
        return memory, []
    return _move(memory, event, "crashed", f"{memory.lost[1]} is gone")


def _endpoint_sampled(memory: Memory, event: EndpointSampled) -> Result:
    memory, more = _abandoned(memory, event)
    if event.health != "ok" or memory.state in {"stopping", *ENDED_STATES}:
        return memory, more
    memory, conclusions = _recognise(memory, event)
    awake = [engine.awake for engine in event.engines if engine.awake is not None]
    state: State = "serving" if event.active else "sleeping" if awake and not any(awake) else "idle"
    memory, changed = _move(memory, event, state)
    return memory, more + conclusions + changed


def _host_sampled(memory: Memory, event: HostSampled) -> Result:
    """vLLM says nothing while it downloads (0.32, weight_utils.py: the hub's bars are off): its growing files do."""
    if (count := event.oom_kill_count) is not None:
        memory = replace(memory, oom_kills=(memory.oom_kills[0] if memory.oom_kills else count, count))
    grows = bool(event.download_bytes_per_s)
    if grows and memory.state in ("starting", "loading") and memory.phase != "weights":
        memory = replace(memory, state="downloading", downloads=True)
        entered = PhaseChanged(**stamp_of(event), phase="download", label="downloading the model", line_number=0)
        return memory, [entered, StateChanged(**stamp_of(event), state="downloading")]
    if memory.downloads and event.download_bytes is None and memory.state == "downloading":
        return _move(replace(memory, downloads=False), event, "loading")
    return memory, []


# --- the end --------------------------------------------------------------------------------------------------------


def _conclude(rules: Mapping[str, Rule], memory: Memory, event: Event, circumstances: Circumstances) -> Result:
    ended = memory.ended
    if ended is None:
        return memory, []
    state, reason = _end_state(memory, ended)
    memory, conclusions = _move(memory, event, state, reason)
    clues = [clue_of(rules, alarm) for alarm in memory.alarms] if state == "crashed" else []
    first, last = memory.oom_kills or (0, 0)
    findings = [hang_finding(circumstances.hang, memory.log)] if circumstances.hang else []
    met = rendezvous.facts(memory.addresses, memory.facts.get("init_method"))
    known = {**memory.facts, **met, **facts(circumstances)}
    findings += find_causes(clues, known, memory.log, oom_kill_count=last - first)
    if state == "crashed" and ended.signal and (not findings or findings[0].role != "cause"):
        findings = [signal_finding(ended.signal, memory.log, last - first), *findings][:MAX_FINDINGS]
    exited = Exited(**stamp_of(event), code=ended.code, signal=ended.signal, findings=findings)
    return memory, [*conclusions, exited]


def _end_state(memory: Memory, ended: CommandEnded) -> tuple[State, str | None]:
    if memory.stop_requested:
        return "exited", "stopped"
    if ended.error and not memory.is_attached:
        return "crashed", ended.error
    if ended.signal:
        return "crashed", f"killed by signal {ended.signal}"
    if ended.code:
        return "crashed", f"exit code {ended.code}"
    if memory.death_rule and not _orderly(memory):
        return "crashed", f"{memory.lost[1]} went first" if memory.lost else "its engine died"
    ended_mono = ended.mono if ended.ended_mono is None else ended.ended_mono
    if memory.lost and ended_mono - memory.lost[0] >= LOST_GRACE_S:
        return "crashed", f"{memory.lost[1]} went first"
    return "exited", ended.error


def _orderly(memory: Memory) -> bool:
    """The talk of a death came after the talk of the end: an engine that is told to stop reports its workers' end."""
    return memory.shutdown_seen and memory.state == "stopping"
