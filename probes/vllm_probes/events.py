"""Every fact and every conclusion of a session: one frozen struct each, one JSON line each.

A line of ``events.jsonl``, of the control socket and of ``run --headless`` is one of these, told apart by its field
``event``. Observations (what a sensor saw) feed the judges; conclusions (what a judge made of them) never do, so a
recording without its conclusions can be judged again. Nothing here reads a clock, a file or a process.
"""

import json
from typing import Any, Literal, TypedDict, cast

import msgspec

from vllm_probes.rows import (
    Change,
    DebugSetting,
    EngineSample,
    Finding,
    Level,
    ProcessRef,
    ProcessRow,
    StackFile,
)

SCHEMA = 1

State = Literal[
    "starting",
    "running",
    "downloading",
    "loading",
    "compiling",
    "warming_up",
    "idle",
    "serving",
    "sleeping",
    "stopping",
    "exited",
    "crashed",
]
ENDED_STATES: frozenset[State] = frozenset(("exited", "crashed"))
SERVER_STATES: frozenset[State] = frozenset(("idle", "serving", "sleeping"))


Health = Literal["ok", "unhealthy", "refused", "timeout", "unreachable"]


class Stamp(TypedDict):
    """The fields that every line has; `mono` is CLOCK_MONOTONIC and the only one that intervals may use."""

    time: float
    mono: float
    node: str
    attempt: int


def _snake_case(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=_snake_case):
    """The envelope of every line. `attempt` is 0 before the first launch, then counts launches from 1."""

    time: float
    """Unix seconds."""
    mono: float
    """CLOCK_MONOTONIC seconds of `node`."""
    node: str
    """Host name."""
    attempt: int


class Observation(Event, frozen=True, kw_only=True):
    """Something a sensor saw or the keeper did. Only these feed judges."""


class Conclusion(Event, frozen=True, kw_only=True):
    """Something a judge made of observations. Can be thrown away and recomputed."""


# --- observations ---------------------------------------------------------------------------------------------------


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
    """The log file, relative to the session folder."""
    shim_pid: int | None
    """None: the command could not be started."""
    changes: list[Change] = []
    debug_settings: list[DebugSetting] = []
    expects_vllm: bool = False
    """The command line speaks of vLLM."""
    not_descendants: str | None = None
    """`docker`, `srun` or `ray`: the launcher whose processes will not be our descendants."""


class LogSampled(Observation, frozen=True, kw_only=True):
    """How far the log has got."""

    size_bytes: int
    line_count: int
    error_count: int = 0
    warning_count: int = 0


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
    error: str | None = None


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


class LeverChecked(Observation, frozen=True, kw_only=True):
    """Whether a lever reached the real vLLM processes."""

    lever: str
    arrived: bool
    where: str
    """What showed it: `environment of Worker_TP0`, `log line 21`, …"""


class FileAppeared(Observation, frozen=True, kw_only=True):
    """A file that a lever asked for is there."""

    path: str
    kind: Literal["coredump"]
    size_bytes: int


class StopRequested(Observation, frozen=True, kw_only=True):
    """Somebody asked for the end of this attempt through us."""

    by: Literal["key", "relaunch", "signal", "leftovers"]
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


# --- conclusions ----------------------------------------------------------------------------------------------------


class StateChanged(Conclusion, frozen=True, kw_only=True):
    state: State
    reason: str | None = None
    """In a few words, where the state alone does not tell."""


class PhaseChanged(Conclusion, frozen=True, kw_only=True):
    """A step of the start-up, from the log."""

    phase: str
    label: str
    line_number: int


class ProgressChanged(Conclusion, frozen=True, kw_only=True):
    """Progress that vLLM printed itself."""

    label: str
    done: float
    total: float
    eta: str | None = None


class Exited(Conclusion, frozen=True, kw_only=True):
    """The end of an attempt, root cause first."""

    code: int | None
    signal: int | None
    findings: list[Finding] = []


# --- lines that are sent but never recorded -------------------------------------------------------------------------


class ModelRestored(Event, frozen=True, kw_only=True):
    """What a view gets first: the whole model (`vllm_probes.model.SessionModel`) as plain data."""

    model: dict[str, Any]


class CommandAnswered(Event, frozen=True, kw_only=True):
    """The keeper's answer to one command of this view."""

    id: int
    ok: bool
    message: str = ""


AnyEvent = (
    SessionStarted
    | KeeperStarted
    | AttemptStarted
    | LogSampled
    | LogRecorded
    | ProcessesSampled
    | EndpointSampled
    | DiskSampled
    | StacksCaptured
    | LeverChecked
    | FileAppeared
    | StopRequested
    | SignalSent
    | CommandEnded
    | TreeEnded
    | TroubleNoted
    | StateChanged
    | PhaseChanged
    | ProgressChanged
    | Exited
    | ModelRestored
    | CommandAnswered
)

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(AnyEvent)
DAMAGED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(event: Event) -> bytes:
    """The event as one JSON line, newline included. Bytes of names and paths that are no UTF-8 become `?`."""
    try:
        return _ENCODER.encode(event) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(event), ensure_ascii=False).encode(errors="replace") + b"\n"


def decode(line: bytes) -> Event | None:
    """The event of one JSON line; None for a line that this version does not know or that is damaged.

    Unknown fields are skipped. The caller counts the Nones.
    """
    try:
        return cast(Event, _DECODER.decode(line))
    except DAMAGED:  # an unknown `event` is a DecodeError
        return None
