"""What a sensor saw or the keeper did: only these feed judges."""

from typing import Literal

from vllm_probes.events.base import Health, Observation
from vllm_probes.rows import (
    Change,
    DebugSetting,
    EngineSample,
    GpuCard,
    GpuRow,
    Hold,
    LatencyWindow,
    Level,
    Light,
    ProcessRef,
    ProcessRow,
    StackFile,
)


class SessionStarted(Observation, frozen=True, kw_only=True):
    """First line of every recording."""

    schema: int
    session: str
    """The session folder."""
    version: str
    name: str
    command: list[str]
    cwd: str
    boot_id: str


class KeeperStarted(Observation, frozen=True, kw_only=True):
    """A keeper took the session over; `replaced` when an earlier one had died without saying so."""

    pid: int
    replaced: bool


class AttemptStarted(Observation, frozen=True, kw_only=True):
    """A launch. `changes` is the difference from what was typed, in words of command line and environment."""

    command: list[str]
    levers: list[str]
    log: str
    """The log file, relative to the session folder; of a run that we did not start its absolute path."""
    shim_pid: int | None
    """None: the command could not be started, or not by us."""
    changes: list[Change] = []
    debug_settings: list[DebugSetting] = []
    expects_vllm: bool = False
    """The command line speaks of vLLM."""
    not_descendants: str | None = None
    """`docker`, `srun` or `ray`: the launcher whose processes will not be our descendants."""
    attached_pid: int | None = None
    """The root of a run that somebody else started: it is only watched, from here on. None: this is a launch."""
    attached_user: str | None = None
    """Whose it is; None: one's own."""
    attached_serving: bool = False
    """Its server listened already."""
    addresses: dict[str, list[str]] = {}
    """Of each network interface of this host, by its name."""


class LogSampled(Observation, frozen=True, kw_only=True):
    """How far the log has got."""

    size_bytes: int
    line_count: int
    error_count: int = 0
    warning_count: int = 0
    heartbeat_count: int = 0
    """Lines that come whether anything moves or not: looks at /health and /metrics, statistics, waits for a worker."""


class LogRecorded(Observation, frozen=True, kw_only=True):
    """A log record that means something: it matched a rule, or its level is warning or worse."""

    line_number: int
    """Counts newlines from 1; the first line of the record."""
    level: Level | None = None
    process: str | None = None
    pid: int | None = None
    rank: int | None = None
    rule: str | None = None
    fields: dict[str, str] = {}
    """The named groups of the rule's pattern."""
    message: str = ""
    """Without prefix, cut at 500 characters, secrets removed."""
    exception_line_number: int | None = None
    """For a traceback: the line that names the exception."""
    line: str | None = None
    """Of errors and tracebacks the deciding line as the log has it, cut at 4,000 characters, secrets removed."""


class ProcessesSampled(Observation, frozen=True, kw_only=True):
    """Rows that differ from the last ones, and pids that are gone."""

    rows: list[ProcessRow] = []
    gone: list[int] = []


class EndpointSampled(Observation, frozen=True, kw_only=True):
    """One look at the server."""

    url: str
    health: Health
    status: int | None = None
    """HTTP status of /health."""
    latency_s: float | None = None
    active: bool = False
    """Requests run or wait, or tokens moved within the last three seconds."""
    own_clients: list[str] = []
    """`ip:port` of our own connections: their access lines are not the user's."""
    engines: list[EngineSample] = []
    latencies: list[LatencyWindow] = []
    """Over the requests of the last minute, all engines together."""
    error: str | None = None


class ProbeFinished(Observation, frozen=True, kw_only=True):
    """A request for one token that somebody has asked for, sent at the same time as /health and /metrics."""

    url: str
    deadline_s: float
    lights: list[Light]
    own_clients: list[str] = []
    """`ip:port` of our own connections, as in `endpoint_sampled`."""


class GpusSampled(Observation, frozen=True, kw_only=True, omit_defaults=True):
    """What differs of the GPUs since the last one, or that the driver does not answer."""

    status: Literal["ok", "absent", "failed", "silent"] = "ok"
    """`absent`: this host has no NVIDIA driver; `failed`: it has one that cannot be used; `silent`: no answer comes."""
    reason: str | None = None
    """Unless `ok`: a sentence."""
    answered_mono: float | None = None
    """While `silent`: when the driver last answered; None: it never did."""
    driver: str | None = None
    cuda: str | None = None
    """Versions: of the driver, and the newest CUDA that it can run; told when they are new."""
    cards: list[GpuCard] = []
    rows: list[GpuRow] = []


class GpuFaulted(Observation, frozen=True, kw_only=True):
    """The driver reported an Xid."""

    index: int
    xid: int
    meaning: str | None = None
    """In a few words; None: not a known one."""


class HostSampled(Observation, frozen=True, kw_only=True, omit_defaults=True):
    """The host, and the limits that this run has on it. None: this host does not tell."""

    cpu_percent: float | None = None
    """Of all cores, since the sample before."""
    core_count: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_bytes_per_s: float | None = None
    """Read from and written to swap together."""
    cpu_pressure_percent: float | None = None
    """PSI, `some`, of the last 10 s: how much of the time something waited for it."""
    memory_pressure_percent: float | None = None
    io_pressure_percent: float | None = None
    shm_used_bytes: int | None = None
    shm_total_bytes: int | None = None
    disk_read_bytes_per_s: float | None = None
    disk_write_bytes_per_s: float | None = None
    network_receive_bytes_per_s: float | None = None
    network_send_bytes_per_s: float | None = None
    cgroup_memory_bytes: int | None = None
    cgroup_memory_limit_bytes: int | None = None
    cgroup_cpu_limit: float | None = None
    """Cores."""
    cgroup_throttled_percent: float | None = None
    """Of the time since the sample before."""
    oom_kill_count: int | None = None
    """Since the cgroup was made: that of the keeper, and from then on that of the run, if it has another."""
    model_path: str | None = None
    model_filesystem: str | None = None
    """Its type, as /proc/self/mountinfo has it."""
    model_is_remote: bool = False
    """On a file system that a network carries."""
    model_read_bytes_per_s: float | None = None
    """Read by the run's own processes."""
    download_bytes: int | None = None
    """Bytes of the hub's incomplete files; None: none is there."""
    download_bytes_per_s: float | None = None


class ActivitySampled(Observation, frozen=True, kw_only=True):
    """When the run last moved, told when it falls quiet, while it stays so, and when it moves again."""

    moved: dict[str, float] = {}
    """CLOCK_MONOTONIC seconds at which each thing moved last (`tokens`, `log`, `bytes`, `children`, `compilers`,
    `download`, `gpu_memory`), and at which work came (`work`)."""
    requests: float | None = None
    """Running and waiting, as the gauges say: they move with step outputs only."""
    unanswered: bool = False
    """The server has never told its gauges, and does not answer at all."""
    connections: int | None = None
    """To the port of the server that are not ours. A client may keep one open without a request."""
    probed: bool = False
    """A probe is on its way, or got no answer and nothing has moved since."""
    found_still: bool = False
    """It was found running a moment ago, and no token has moved since: it may hang with nobody left who waits."""


class GateChanged(Observation, frozen=True, kw_only=True):
    """What a relaunch still waits for; nothing left: it goes on, or was called off."""

    holds: list[Hold] = []


class DiskSampled(Observation, frozen=True, kw_only=True):
    """Room for the log, and what was cut out of its middle."""

    free_bytes: int
    log_bytes: int
    hole_start: int = 0
    hole_bytes: int = 0
    full_in_s: float | None = None
    """At the present rate; None: not soon."""


class StacksCaptured(Observation, frozen=True, kw_only=True):
    """Stacks of every process, one file each."""

    reason: str
    folder: str
    """Relative to the session folder."""
    stacks: list[StackFile]


class StallAnswered(Observation, frozen=True, kw_only=True):
    """Something that was asked for on a stall (`--on-stall`) has been done, or could not be."""

    action: Literal["bundle", "exec", "exit"]
    ok: bool = True
    said: str
    """A sentence."""
    path: str | None = None
    """Relative to the session folder: what came of it."""


class LeverChecked(Observation, frozen=True, kw_only=True):
    """Whether a lever reached the real vLLM processes."""

    lever: str
    arrived: bool
    where: str
    """What showed it: `environment of Worker_TP0`, `log line 21`, …"""


class TimeoutsRead(Observation, frozen=True, kw_only=True):
    """The time-outs that the environment of vLLM sets; for what is missing its own defaults hold."""

    seconds: dict[str, float] = {}
    """By variable."""
    where: str
    """What was read: `environment of EngineCore`."""


class RungsChecked(Observation, frozen=True, kw_only=True):
    """By which ways the stacks of this attempt's processes can be had: the kernel tells their states in any case."""

    py_spy: bool
    hook: bool
    """Processes that py-spy cannot read are asked by SIGUSR2: they have the start-up hook and catch it."""


class FileAppeared(Observation, frozen=True, kw_only=True):
    """A file that a lever asked for is there."""

    path: str
    kind: Literal["coredump"]
    size_bytes: int


class StopRequested(Observation, frozen=True, kw_only=True):
    """Somebody asked for the end of this attempt through us."""

    by: Literal["key", "relaunch", "signal", "leftovers", "stall"]
    kill: bool = False


class SignalSent(Observation, frozen=True, kw_only=True):
    """Signals that we sent to processes of our own tree."""

    signal: str
    processes: list[ProcessRef]


class CommandEnded(Observation, frozen=True, kw_only=True):
    """The command itself ended; descendants of it may live on (`leftovers`)."""

    code: int | None
    signal: int | None
    error: str | None = None
    """Why it never started, or why nobody knows how it ended."""
    ended_mono: float | None = None
    """When: the event comes after the log was read to there. None: not known."""
    leftovers: list[ProcessRef] = []


class TreeEnded(Observation, frozen=True, kw_only=True):
    """Nothing of the tree runs any more, but for survivors that even SIGKILL did not end."""

    left_shm: list[str] = []
    """Files under /dev/shm that the tree had mapped and left there."""
    survivors: list[ProcessRef] = []


class TroubleNoted(Observation, frozen=True, kw_only=True):
    """Something of ours does not work; vLLM is not affected unless it says so."""

    what: str
    """A sentence."""
    hint: str
    """What to do, or what it means: another one."""
    severity: Literal["info", "warning", "error"] = "warning"
