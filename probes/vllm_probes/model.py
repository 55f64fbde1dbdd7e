"""What is known about a session right now: events applied one after the other.

Keeper, live view, `attach` and `replay` all build it the same way. No I/O, no clock: "now" is what the caller says or
the time of the last event. Every list is bounded, so that a session of weeks stays as small as one of minutes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from vllm_probes.events import (
    ENDED_STATES,
    AttemptStarted,
    CommandEnded,
    DeadlineChanged,
    DiskSampled,
    DoingChanged,
    EndpointSampled,
    Event,
    Exited,
    FileAppeared,
    GateChanged,
    GpuFaulted,
    GpusSampled,
    HostSampled,
    KeeperStarted,
    LeverChecked,
    LimitChanged,
    LogRecorded,
    LogSampled,
    ModelRestored,
    PhaseChanged,
    ProbeFinished,
    ProcessesSampled,
    ProgressChanged,
    RungsChecked,
    SessionStarted,
    SignalSent,
    StacksCaptured,
    StallAnswered,
    State,
    StateChanged,
    StopRequested,
    TreeEnded,
    TroubleNoted,
    VerdictChanged,
)
from vllm_probes.gpus import GpuModel
from vllm_probes.rates import EngineRates, engine_rates
from vllm_probes.rows import DebugSetting, GpuRow, ProcessRef, ProcessRow

HISTORY_LENGTH = 240
NOTES_LENGTH = 50
OWN_CLIENTS_LENGTH = 1000


class AttemptModel(msgspec.Struct, kw_only=True):
    """One launch and how it went."""

    number: int
    started: float
    started_mono: float
    launch: AttemptStarted
    state: State = "starting"
    state_since_mono: float = 0.0
    state_reason: str | None = None
    phase: PhaseChanged | None = None
    progress: ProgressChanged | None = None
    stop: StopRequested | None = None
    signals: list[SignalSent] = []
    """What the stop has sent so far."""
    ended: CommandEnded | None = None
    tree_ended: TreeEnded | None = None
    exited: Exited | None = None
    gate: GateChanged | None = None
    """What the relaunch that follows this attempt waits for."""
    limit: LimitChanged | None = None
    verdict: VerdictChanged | None = None
    hang: list[VerdictChanged] = []
    """The first `suspect` and the first `stalled` since things last moved."""
    deadline: DeadlineChanged | None = None
    doing: DoingChanged | None = None
    rungs: RungsChecked | None = None
    probe: ProbeFinished | None = None
    """The latest."""
    gpu_before_bytes: dict[int, int] = {}
    """What each GPU had in use when this attempt began, by index."""
    stall_answers: list[StallAnswered] = []
    arrived: dict[str, LeverChecked] = {}
    """By lever id."""
    own_clients: list[str] = []
    """`ip:port` of our own connections to the server, the latest last."""

    @property
    def over(self) -> bool:
        """The command ended and nothing of its tree is left to run."""
        return self.tree_ended is not None

    @property
    def leftovers(self) -> list[ProcessRef]:
        """What still runs of a tree whose command has ended."""
        return self.ended.leftovers if self.ended and not self.tree_ended else []


class SessionModel(msgspec.Struct, kw_only=True):
    """Everything a view shows but the text of the log."""

    session: str = ""
    name: str = ""
    node: str = ""
    cwd: str = ""
    command: list[str] = []
    """As typed, secrets removed."""
    time: float = 0.0
    mono: float = 0.0
    """Of the last event."""
    attempts: list[AttemptModel] = []
    processes: dict[int, ProcessRow] = {}
    log: LogSampled | None = None
    disk: DiskSampled | None = None
    endpoint: EndpointSampled | None = None
    rates: list[EngineRates] = []
    gpus: GpuModel = msgspec.field(default_factory=GpuModel)
    host: HostSampled | None = None
    stacks: list[StacksCaptured] = []
    troubles: list[TroubleNoted] = []
    files: list[FileAppeared] = []
    alarms: list[LogRecorded] = []
    """The latest records of level warning or worse of the current attempt."""
    unknown_line_count: int = 0
    """Lines of the recording that this version could not read."""

    @property
    def attempt(self) -> AttemptModel | None:
        """The current or last launch."""
        return self.attempts[-1] if self.attempts else None

    @property
    def state(self) -> State:
        return self.attempt.state if self.attempt else "starting"

    @property
    def ended(self) -> bool:
        """The last launch has ended, whatever is left of its tree."""
        return self.state in ENDED_STATES

    @property
    def debug_settings(self) -> list[DebugSetting]:
        return self.attempt.launch.debug_settings if self.attempt else []

    def apply(self, event: Event) -> None:
        """Take one event in. Events of an unknown kind change nothing."""
        self.time, self.mono = event.time, event.mono
        if handler := _HANDLERS.get(type(event)):
            handler(self, event)


def restore(event: ModelRestored) -> SessionModel:
    """The model that a keeper sent.

    Raises:
        msgspec.ValidationError: the keeper is of a version with another model.
    """
    return msgspec.convert(event.model, SessionModel, str_keys=True)


def snapshot(model: SessionModel) -> dict[str, Any]:
    """The model as plain data, for `model_restored`."""
    return msgspec.to_builtins(model, str_keys=True)  # type: ignore[no-any-return]


# --- one handler per event ------------------------------------------------------------------------------------------


def _session_started(model: SessionModel, event: SessionStarted) -> None:
    model.session, model.name, model.node = event.session, event.name, event.node
    model.command, model.cwd = event.command, event.cwd


def _attempt_started(model: SessionModel, event: AttemptStarted) -> None:
    attempt = AttemptModel(
        number=event.attempt,
        started=event.time,
        started_mono=event.mono,
        launch=event,
        state_since_mono=event.mono,
        gpu_before_bytes=_used_bytes(model.gpus.rows.values()),
    )
    model.attempts = [*model.attempts, attempt][-NOTES_LENGTH:]
    model.processes, model.rates, model.alarms = {}, [], []
    model.log = model.endpoint = None


def _log_recorded(model: SessionModel, event: LogRecorded) -> None:
    if event.level in ("warning", "error", "critical"):
        model.alarms = [*model.alarms, event][-NOTES_LENGTH:]


def _processes_sampled(model: SessionModel, event: ProcessesSampled) -> None:
    for row in event.rows:
        model.processes[row.pid] = row
    for pid in event.gone:
        model.processes.pop(pid, None)


def _endpoint_sampled(model: SessionModel, event: EndpointSampled) -> None:
    if model.endpoint and model.endpoint.engines and event.engines:
        for shown in model.rates[-1:]:
            shown.engines = {}  # only the latest ones are shown engine by engine
        model.rates = [*model.rates, engine_rates(model.endpoint, event)][-HISTORY_LENGTH:]
    model.endpoint = event
    _note_own_clients(model, event.own_clients)


def _note_own_clients(model: SessionModel, clients: list[str]) -> None:
    if (attempt := model.attempt) and (new := [one for one in clients if one not in attempt.own_clients]):
        attempt.own_clients = [*attempt.own_clients, *new][-OWN_CLIENTS_LENGTH:]


def _probe_finished(model: SessionModel, event: ProbeFinished) -> None:
    if attempt := model.attempt:
        attempt.probe = event
    _note_own_clients(model, event.own_clients)


def _gpus_sampled(model: SessionModel, event: GpusSampled) -> None:
    model.gpus.apply(event)
    if attempt := model.attempt:
        attempt.gpu_before_bytes = _used_bytes(event.rows) | attempt.gpu_before_bytes


def _used_bytes(rows: Iterable[GpuRow]) -> dict[int, int]:
    return {row.index: row.used_bytes for row in rows if row.used_bytes is not None}


def _gpu_faulted(model: SessionModel, event: GpuFaulted) -> None:
    model.gpus.fault(event)


def _signal_sent(model: SessionModel, event: SignalSent) -> None:
    if attempt := model.attempt:
        attempt.signals = [*attempt.signals, event][-NOTES_LENGTH:]


def _stall_answered(model: SessionModel, event: StallAnswered) -> None:
    if attempt := model.attempt:
        attempt.stall_answers = [*attempt.stall_answers, event][-NOTES_LENGTH:]


def _state_changed(model: SessionModel, event: StateChanged) -> None:
    if attempt := model.attempt:
        attempt.state, attempt.state_reason, attempt.state_since_mono = event.state, event.reason, event.mono


def _phase_changed(model: SessionModel, event: PhaseChanged) -> None:
    if attempt := model.attempt:
        attempt.phase, attempt.progress = event, None


def _lever_checked(model: SessionModel, event: LeverChecked) -> None:
    if attempt := model.attempt:
        attempt.arrived[event.lever] = event


def _verdict_changed(model: SessionModel, event: VerdictChanged) -> None:
    if attempt := model.attempt:
        attempt.verdict = event
        before = [] if event.health == "ok" else attempt.hang
        is_new = event.health in ("suspect", "stalled") and all(one.health != event.health for one in before)
        attempt.hang = [*before, event] if is_new else before


def _keep_on_attempt(field: str) -> Callable[[SessionModel, Any], None]:
    def handler(model: SessionModel, event: Event) -> None:
        if model.attempt:
            setattr(model.attempt, field, event)

    return handler


def _keep(field: str) -> Callable[[SessionModel, Any], None]:
    def handler(model: SessionModel, event: Event) -> None:
        setattr(model, field, event)

    return handler


def _append(field: str) -> Callable[[SessionModel, Any], None]:
    def handler(model: SessionModel, event: Event) -> None:
        setattr(model, field, [*getattr(model, field), event][-NOTES_LENGTH:])

    return handler


def _keeper_started(model: SessionModel, event: KeeperStarted) -> None:
    model.node = event.node


_HANDLERS: dict[type[Event], Callable[[SessionModel, Any], None]] = {
    SessionStarted: _session_started,
    KeeperStarted: _keeper_started,
    AttemptStarted: _attempt_started,
    LogSampled: _keep("log"),
    LogRecorded: _log_recorded,
    ProcessesSampled: _processes_sampled,
    EndpointSampled: _endpoint_sampled,
    ProbeFinished: _probe_finished,
    GpusSampled: _gpus_sampled,
    GpuFaulted: _gpu_faulted,
    HostSampled: _keep("host"),
    GateChanged: _keep_on_attempt("gate"),
    LimitChanged: _keep_on_attempt("limit"),
    VerdictChanged: _verdict_changed,
    DeadlineChanged: _keep_on_attempt("deadline"),
    DoingChanged: _keep_on_attempt("doing"),
    DiskSampled: _keep("disk"),
    StacksCaptured: _append("stacks"),
    StallAnswered: _stall_answered,
    LeverChecked: _lever_checked,
    RungsChecked: _keep_on_attempt("rungs"),
    FileAppeared: _append("files"),
    StopRequested: _keep_on_attempt("stop"),
    SignalSent: _signal_sent,
    CommandEnded: _keep_on_attempt("ended"),
    TreeEnded: _keep_on_attempt("tree_ended"),
    TroubleNoted: _append("troubles"),
    StateChanged: _state_changed,
    PhaseChanged: _phase_changed,
    ProgressChanged: _keep_on_attempt("progress"),
    Exited: _keep_on_attempt("exited"),
}
