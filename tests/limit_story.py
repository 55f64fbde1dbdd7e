"""Recordings of loads for the judge of limits, and what it makes of them.

The figures of the CPU build are those that real vLLM 0.32 showed (`test_real_limits`); those of GPUs are written.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from vllm_probes.events import (
    AttemptStarted,
    Conclusion,
    EndpointSampled,
    Event,
    GpusSampled,
    LimitChanged,
    ProcessesSampled,
    Stamp,
)
from vllm_probes.judges.limits import Memory, step
from vllm_probes.rows import DebugSetting, EngineSample, GpuCard, GpuProcess, GpuRow, ProcessRow, Role

EAGER = DebugSetting(setting="--enforce-eager", origin="typed", cost="decodes slower")
BLOCKING = DebugSetting(setting="CUDA_LAUNCH_BLOCKING=1", origin="inherited", cost="2 to 10 times slower")


@dataclass(frozen=True)
class Load:
    """What a server does: gauges, and counters a second. The default is a healthy one on two ranks of the CPU."""

    running: float | None = 32.0
    waiting: float | None = 0.0
    kv_usage: float | None = 0.2
    before_first_token: float | None = 0.5
    """Requests at a time, wherever they are."""
    decoding: float | None = 31.0
    prompt_tokens: float | None = 60.0
    generation_tokens: float | None = 3000.0
    preemptions: float | None = 0.0
    finished: float | None = 15.0
    cpu: dict[str, float] = field(
        default_factory=lambda: {"APIServer": 16.0, "EngineCore": 24.0, "Worker_TP0": 76.0, "Worker_TP1": 74.0}
    )
    gpus: dict[int, GpuRow] = field(default_factory=dict)

    def using(self, **cpu: float) -> "Load":
        return replace(self, cpu=self.cpu | cpu)

    def on_gpus(self, *rows: tuple[float, float], **more: Any) -> "Load":
        """(busy percent, watts) of each, GPU n with worker n on it."""
        return replace(self, gpus={index: gpu(index, *row, **more) for index, row in enumerate(rows)})

    def after(self, before: EngineSample, seconds: float) -> EngineSample:
        """What /metrics shows when it has done this for so long."""
        rates = {
            "ttft_sum_s": self.before_first_token,
            "ttft_count": self.finished,
            "tpot_sum_s": self.decoding,
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generation_tokens,
            "preemptions": self.preemptions,
            "finished_requests": self.finished,
        }
        counts = {name: (getattr(before, name) or 0.0) + (rate or 0.0) * seconds for name, rate in rates.items()}
        return EngineSample(running=self.running, waiting=self.waiting, kv_usage=self.kv_usage, **counts)


def gpu(index: int, busy: float | None, power_w: float | None, **more: Any) -> GpuRow:
    resident = [GpuProcess(pid=100 + index, used_bytes=1 << 36)]
    return GpuRow(index=index, busy_percent=busy, power_w=power_w, processes=resident, **more)


ROLES: dict[str, Role] = {"API": "api_server", "Eng": "engine_core", "Wor": "worker"}
WORKERS = (
    "Worker_TP{}",
    "Worker_PP0_TP{}",
    "Worker_PP1_TP{}",
    "Worker_DP0_TP{}",
    "Worker_DP1_TP{}",
    "Worker_TP{0}_EP{0}",
)
PIDS = {"APIServer": 1, "EngineCore": 2} | {name.format(rank): 100 + rank for rank in range(4) for name in WORKERS}


def process(name: str, cpu: float) -> ProcessRow:
    parent_pid = 2 if name.startswith("Worker") else 1
    return ProcessRow(
        pid=PIDS[name], parent_pid=parent_pid, started=0, process=name, role=ROLES[name[:3]], cpu_percent=cpu
    )


class Story:
    """Observations as a recording has them: the server every ten seconds, the rest when it changes."""

    def __init__(self, *debug: DebugSetting) -> None:
        self.events: list[Event] = []
        self.mono = 100.0
        self._engine = EngineSample()
        started = {"command": ["x"], "levers": [], "log": "attempt-1.log", "shim_pid": 2}
        self.add(AttemptStarted, **started, debug_settings=list(debug))

    def add(self, kind: type[Event], **fields: Any) -> "Story":
        stamp = Stamp(time=1000.0 + self.mono, mono=self.mono, node="n", attempt=1)
        self.events.append(kind(**stamp, **fields))
        return self

    def wait(self, seconds: float) -> "Story":
        self.mono += seconds
        return self

    def look(self, load: Load, *, active: bool = True, health: str = "ok", **more: Any) -> "Story":
        self._engine = load.after(self._engine, 0.0)
        engines = [self._engine] if health == "ok" else []
        return self.add(EndpointSampled, url="u", health=health, active=active, engines=engines, **more)

    def busy(self, load: Load) -> "Story":
        """What the processes and GPUs do from now on."""
        self.add(ProcessesSampled, rows=[process(name, cpu) for name, cpu in load.cpu.items()])
        if load.gpus:
            cards = [GpuCard(index=index) for index in load.gpus]
            self.add(GpusSampled, cards=cards, rows=list(load.gpus.values()))
        return self

    def serve(self, load: Load, seconds: float = 40.0) -> "Story":
        self.busy(load).look(load)
        for _ in range(round(seconds / 10)):
            self.work(load, 10.0).busy(load).look(load)
        return self

    def work(self, load: Load, seconds: float) -> "Story":
        self._engine = load.after(self._engine, seconds)
        return self.wait(seconds)

    def rest(self, load: Load | None = None) -> "Story":
        return self.look(load or Load(), active=False)

    def told(self) -> list[LimitChanged]:
        memory, conclusions = Memory(), list[Conclusion]()
        for event in self.events:
            memory, more = step(memory, event)
            conclusions += more
        assert all(isinstance(one, LimitChanged) for one in conclusions)
        return [one for one in conclusions if isinstance(one, LimitChanged)]

    def limits(self) -> list[str | None]:
        return [one.limit for one in self.told()]


HEALTHY = Load()
TINY_CACHE = Load(
    running=11, waiting=180, kv_usage=0.8, before_first_token=178, decoding=23, preemptions=28, finished=36
)
FULL_CACHE = Load(running=40, waiting=12, kv_usage=0.97)
QUEUE = Load(running=2, waiting=46, kv_usage=0.001, before_first_token=46, decoding=2)
TOKENISING = Load(
    running=0, waiting=0, before_first_token=31, decoding=0, prompt_tokens=8000, generation_tokens=80, finished=80
).using(APIServer=98.0)
PREFILL = Load(
    running=8, waiting=3, before_first_token=9, decoding=2, prompt_tokens=9000, generation_tokens=40, finished=2
)
SLEEPY = HEALTHY.using(Worker_TP0=89.0, Worker_TP1=37.0)
FULL_GPUS = HEALTHY.on_gpus((98.0, 600.0), (97.0, 590.0))
LATE_GPU = HEALTHY.using(Worker_TP0=100.0, Worker_TP1=100.0).on_gpus((99.0, 250.0), (55.0, 300.0))
ALONE = HEALTHY.using(Worker_TP0=100.0, Worker_TP1=100.0).on_gpus((99.0, 260.0), (99.0, 520.0))
LAUNCHING = HEALTHY.using(Worker_TP0=100.0, Worker_TP1=100.0).on_gpus((55.0, 250.0), (52.0, 240.0))
SCHEDULING = HEALTHY.using(EngineCore=99.0, Worker_TP0=40.0, Worker_TP1=42.0)
PIPELINE = replace(LAUNCHING, cpu={"EngineCore": 30.0, "Worker_PP0_TP0": 100.0, "Worker_PP1_TP1": 100.0})
