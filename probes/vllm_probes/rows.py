"""The parts that events are made of: one process, one engine, one finding …"""

from typing import Literal

import msgspec

Level = Literal["debug", "info", "warning", "error", "critical"]
ALARMING_LEVELS: frozenset[Level] = frozenset(("error", "critical"))

Role = Literal["command", "api_server", "engine_core", "worker", "coordinator", "resource_tracker", "compiler", "other"]


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of an event; defaults are not written."""


class Change(Row, frozen=True, kw_only=True):
    """One difference of a launch from what was typed: an environment variable or a flag. Secrets are removed."""

    name: str
    before: str | None = None
    """None: not set."""
    after: str | None = None
    """None: removed."""


class DebugSetting(Row, frozen=True, kw_only=True):
    """A debug setting in force, and what it costs: a lever, a flag the user typed, or a variable of the shell."""

    setting: str
    """As one would type it: `--enforce-eager` or `NCCL_DEBUG=INFO`."""
    origin: Literal["lever", "typed", "inherited"]
    cost: str
    patience: float = 1.0
    """How many times longer a healthy step may take with it."""


class ProcessRow(Row, frozen=True, kw_only=True):
    """One process of the tree. Byte counts are since its start (/proc/PID/io: rchar, wchar, read_bytes)."""

    pid: int
    parent_pid: int
    started: float
    """Unix seconds."""
    process: str
    """Title without `VLLM::`; `APIServer`; else the base name of its executable or script."""
    role: Role = "other"
    rank: int | None = None
    state: str = "S"
    """R S D T Z …, as in /proc/PID/stat."""
    cpu_percent: float = 0.0
    """Of one core, since the sample before."""
    rss_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    disk_read_bytes: int = 0
    major_faults: int = 0
    """Pages that were not in memory when they were wanted, since its start (field 12 of /proc/PID/stat)."""
    thread_count: int = 0
    foreign: bool = False
    """Found by title, not a descendant of ours (docker, srun, ray): never signalled."""
    visible_devices: str | None = None
    """CUDA_VISIBLE_DEVICES that it was started with; None: not set, or not known."""


class GpuCard(Row, frozen=True, kw_only=True):
    """One GPU as the driver describes it: what hardly ever changes."""

    index: int
    """NVML's, which counts every GPU of the host in the order of its bus, whatever CUDA_VISIBLE_DEVICES says."""
    uuid: str | None = None
    name: str | None = None
    bus_id: str | None = None
    total_bytes: int | None = None
    power_limit_w: float | None = None
    mig: bool = False
    """Cut into instances, which are not looked at one by one."""


class GpuProcess(Row, frozen=True, kw_only=True):
    """A process that has memory of a GPU."""

    pid: int
    """As the driver says: of another pid namespace where we are in a container."""
    used_bytes: int | None = None
    process: str | None = None
    """Its name, where it is none of this run and can be seen."""
    user: str | None = None


class GpuRow(Row, frozen=True, kw_only=True):
    """How one GPU is. None: the driver does not tell."""

    index: int
    used_bytes: int | None = None
    busy_percent: float | None = None
    """Share of the last sample period (up to 1 s) in which any kernel ran: one that only spins counts as busy."""
    memory_busy_percent: float | None = None
    """Share of it in which memory was read or written."""
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    throttle: list[str] = []
    """Why its clocks are lower than they could be: `power cap`, `hot`, …; an idle GPU has none."""
    processes: list[GpuProcess] | None = None
    error: str | None = None
    """Why it does not answer, such as `GPU is lost`: everything else is unknown then."""


class EngineSample(Row, frozen=True, kw_only=True):
    """Counters and gauges of one engine (label `engine` of /metrics). None: this version does not export it."""

    engine: str = "0"
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """0 to 1."""
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    iterations: float | None = None
    """`vllm:iteration_tokens_total_count`: steps with output, the best heartbeat."""
    preemptions: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    finished_requests: float | None = None
    ttft_count: float | None = None
    ttft_sum_s: float | None = None
    tpot_count: float | None = None
    tpot_sum_s: float | None = None
    awake: bool | None = None


LatencyName = Literal["ttft", "tpot", "queue", "prefill", "e2e"]


class LatencyWindow(Row, frozen=True, kw_only=True):
    """Quantiles of one latency over the requests of the last minute, from the buckets of its histogram."""

    name: LatencyName
    count: float
    """How many were measured."""
    p50_s: float | None = None
    p90_s: float | None = None
    p99_s: float | None = None
    finest_s: float | None = None
    """End of the lowest bucket: a quantile up to there is only known to be no longer (of `queue` 0.3 s in 0.32)."""


class Light(Row, frozen=True, kw_only=True):
    """What one of the three questions of a probe came to."""

    name: Literal["health", "metrics", "probe"]
    """`probe`: the request for one token."""
    outcome: Literal["ok", "failed", "timeout", "refused"]
    """`failed`: an answer that is none of success, or a connection that broke."""
    status: int | None = None
    """HTTP status; None: no answer."""
    latency_s: float | None = None
    said: str = ""
    """A few words; secrets removed."""


class Evidence(Row, frozen=True, kw_only=True):
    """One reason for a conclusion: what was looked at, and what it was."""

    signal: str
    value: str
    since: float | None = None
    """Unix seconds."""
    file: str | None = None
    """Relative to the session folder: what shows it."""


class Hold(Row, frozen=True, kw_only=True):
    """Something that a relaunch would meet: a process that has not ended, GPU memory that is not back, a taken port."""

    kind: Literal["process", "gpu_memory", "port"]
    what: str
    """`GPU 3: 61.2G more than before`, `port 8000`."""
    pid: int | None = None
    """Who holds it; None: nobody that we can see."""
    process: str | None = None
    user: str | None = None
    session: str | None = None
    """The session of this user that started the holder: its own can be ended by a key."""
    hint: str | None = None
    """What ends it where we may not, with the line to copy; the end of a sentence."""


class Frame(Row, frozen=True, kw_only=True):
    """One call of a stack."""

    function: str
    """Its last name, without class and module."""
    file: str
    """From the package's own folder on: `vllm/v1/engine/core.py`, `threading.py`."""
    line: int = 0


class ThreadStack(Row, frozen=True, kw_only=True):
    """One thread: its Python calls, and what the kernel says of it. None: not known."""

    thread_id: int
    """Of the kernel; of Python 3.10 Python's own, but for the main thread: no kernel id is so large."""
    name: str | None = None
    frames: list[Frame] = []
    """Innermost first."""
    active: bool | None = None
    """It runs, as py-spy sees it."""
    owns_gil: bool | None = None
    """It holds the lock of the interpreter: no other thread of its process runs Python meanwhile."""
    switch_count: int | None = None
    """How often it has gone off a CPU: who stays in the same wait does not, and whoever receives bytes does."""
    moves: bool | None = None
    """Of one that runs: a moment later its innermost call was at another line. None: that was not looked at."""
    source: str | None = None
    """Of one that runs: the line of source that its innermost call is at."""
    state: str | None = None
    """R S D T t …, as in /proc/PID/task/TID/stat."""
    cpu_ticks: int | None = None
    """Clock ticks of CPU that it has used."""
    syscall: int | None = None
    """Number of the system call that it is in (/proc/PID/task/TID/syscall); -1: blocked outside of one."""
    descriptor: str | None = None
    """What it waits on: `socket:[…]`, `pipe:[…]`, a path; of several that it polls the one that tells most; `nothing`
    for a poll or select on none."""


class StackFile(Row, frozen=True, kw_only=True):
    """The stacks of one process, or why there are none."""

    pid: int
    process: str
    file: str | None = None
    """Relative to the session folder: py-spy's JSON, or the same of another rung."""
    rung: Literal["py-spy", "faulthandler", "proc"] = "py-spy"
    """Who has told: `faulthandler`, the process itself, of its threads at rest; `proc`, the kernel alone."""
    error: str | None = None
    threads: list[ThreadStack] = []
    frozen: bool = False
    """By the freezer of its cgroup: the kernel gives such a process another state in each version of cgroups."""


class ProcessRef(Row, frozen=True, kw_only=True):
    """A process by name and pid, with its state letter."""

    pid: int
    process: str
    state: str = "?"


class ProcessDoing(Row, frozen=True, kw_only=True):
    """What one process does, as its latest stacks show it."""

    pid: int
    doing: str
    """As of a culprit."""
    what: str
    """The same in a few words, with what it waits for where that is known: `all_reduce`, `waits for workers`."""
    frame: str | None = None
    """`function (file:line)`, as of a culprit."""
    motion: Literal["frozen", "line", "function"] | None = None
    """Since the look before: the same lines; other lines of the same functions; other functions. None: no such look."""
    since: float
    """Unix seconds of the first of all the looks that have shown the same."""


class Culprit(msgspec.Struct, frozen=True, kw_only=True):
    """A process that holds the others up. All fields are always written."""

    process: str
    pid: int
    rank: int | None
    doing: str
    frame: str | None
    """`function (file:line)`: the innermost outside the standard library, else the innermost."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a post-mortem; the root cause comes first. All fields are always written."""

    rule: str | None
    class_: str = msgspec.field(name="class")
    role: Literal["cause", "consequence", "noise"]
    severity: Literal["info", "warning", "error", "fatal"]
    file: str
    line_number: int
    """Counts newlines from 1."""
    line: str
    why: str
    fix: str
