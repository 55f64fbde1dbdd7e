"""Whether a run gets on, and who holds it up: quiet raises the question, stacks answer it, and more stacks confirm it.

A pure fold over observations. Nothing is said while anything moves that counts in the phase of the run; the first look
at stacks only suspects, and only looks that agree become a verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vllm_probes.events import (
    SERVER_STATES,
    ActivitySampled,
    AttemptStarted,
    Conclusion,
    DoingChanged,
    Event,
    GpusSampled,
    LogRecorded,
    ProcessesSampled,
    StacksCaptured,
    Stamp,
    State,
    StopRequested,
    VerdictChanged,
)
from vllm_probes.gpus import GpuModel, residents
from vllm_probes.judges.culprits import Hang, Standing, find_hang, summary
from vllm_probes.judges.evidence import IDLE_GPU_PERCENT, evidence
from vllm_probes.judges.frames import FrameTable
from vllm_probes.judges.looks import doings, looks_at
from vllm_probes.judges.stackmerge import Motion, moving
from vllm_probes.rows import Culprit, GpuCard, GpuRow, ProcessDoing, ProcessRow, StackFile, ThreadStack

SERVER_MOVES = frozenset(("tokens", "children", "start", "work"))
"""What counts as progress of a server; whatever starts, moves anything."""
AGREEING_TO_SUSPECT, AGREEING_TO_TELL = 2, 3
"""Looks at stacks that show the same. Two can be chance; chosen."""
SUSPECT_S, STALLED_S = 5.0, 8.0
START_SUSPECT_S, START_STALLED_S = 10.0, 60.0
"""Of quiet, and of looks that agree."""
FIRST_LOOK_S = 3.0
"""A look comes after so much quiet; before it nobody knows what stood still."""
MOVING_GRACE_S, START_MOVING_GRACE_S = 30.0, 300.0
"""How long stacks that run through different functions pass for progress: a long prefill, an import, a conversion."""
WORKING_SHARE = 0.3
TICKS_PER_S = 100
"""Of /proc (sysconf SC_CLK_TCK), on every Linux that vLLM runs on."""
OPERATOR_GRACE_S = 60.0
"""How long all ranks may be in operators of torch: a prefill on the CPU that is larger than any measured."""

Verdict = tuple[str, str | None, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What the latest looks agree on."""

    kind: str
    pids: tuple[int, ...]
    began_mono: float
    """The first of them."""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of the current attempt."""

    rows: Mapping[int, ProcessRow] = field(default_factory=dict)
    cards: Mapping[int, GpuCard] = field(default_factory=dict)
    gpus: Mapping[int, GpuRow] = field(default_factory=dict)
    """As they were told last; empty while the driver does not answer."""
    moved: Mapping[str, float] = field(default_factory=dict)
    pending: bool = True
    threads: Mapping[str, ThreadStack] = field(default_factory=dict)
    """The main threads of the look before, by pid."""
    cpu_ticks: Mapping[int, int] = field(default_factory=dict)
    """CPU of each process at that look, by pid …"""
    looked_mono: float = 0.0
    """… and when that was."""
    compile_ticks: int = 0
    """CPU of threads that compile, at the look before."""
    failed: frozenset[int] = frozenset()
    """pids that have logged an exception since the last progress."""
    doing: Sequence[ProcessDoing] = ()
    """What each process did at that look."""
    suspicion: Suspicion | None = None
    told: Verdict = ("ok", None, ())
    stalled: VerdictChanged | None = None
    """The hang that the run is in, or was in when it ended …"""
    involved: frozenset[int] = frozenset()
    """… and who was there then. Whether it is over can be seen only while all of them are."""
    lost: ProcessRow | None = None
    """The first engine or worker that went without anybody asking."""
    is_open: bool = False
    """It runs, and nobody has asked for its end."""


Result = tuple[Memory, list[Conclusion]]


def step(table: FrameTable, memory: Memory, event: Event, state: State | None, phase: str | None) -> Result:
    """One observation in, conclusions out. `state` and `phase` are what the judge of states says at that moment."""
    memory, conclusions = _step(table, memory, event, state, phase)
    if state != "crashed" or memory.told[0] == "dead":
        return memory, conclusions
    memory, died = _died(memory, event)
    return memory, [*conclusions, died]


def _step(table: FrameTable, memory: Memory, event: Event, state: State | None, phase: str | None) -> Result:
    match event:
        case AttemptStarted():
            return Memory(cards=memory.cards, gpus=memory.gpus, moved={"start": event.mono}, is_open=True), []
        case StopRequested():
            return replace(memory, is_open=False), []
        case ProcessesSampled():
            return _processes_sampled(memory, event), []
        case GpusSampled():
            cards = {**memory.cards, **{card.index: card for card in event.cards}}
            rows = {**memory.gpus, **{row.index: row for row in event.rows}} if event.status == "ok" else {}
            return replace(memory, cards=cards, gpus=rows), []
        case LogRecorded() if event.pid is not None and event.exception_line_number is not None:
            return replace(memory, failed=memory.failed | {event.pid}), []
        case ActivitySampled() if memory.is_open:
            return _activity_sampled(memory, event, state)
        case StacksCaptured():
            return _stacks_captured(table, memory, event, state, phase)
        case _:
            return memory, []


def _processes_sampled(memory: Memory, event: ProcessesSampled) -> Memory:
    known = {pid: row for pid, row in memory.rows.items() if pid not in event.gone}
    lost = [row for pid in event.gone if (row := memory.rows.get(pid)) and row.role in ("engine_core", "worker")]
    first = memory.lost or (lost[0] if lost and memory.is_open else None)
    return replace(memory, rows=known | {row.pid: row for row in event.rows}, lost=first)


def _activity_sampled(memory: Memory, event: ActivitySampled, state: State | None) -> Result:
    before_mono = _moved_mono(memory.moved, state)
    pending = bool(event.requests) or bool(event.connections) or state not in SERVER_STATES
    memory = replace(memory, moved=event.moved, pending=pending)
    if _moved_mono(event.moved, state) <= before_mono and (pending or memory.stalled):
        return memory, []  # whoever gives up waiting does not end a hang
    over = [DoingChanged(**_stamp(event))] if memory.doing else []
    memory = replace(memory, suspicion=None, failed=frozenset(), threads={}, doing=())
    memory, verdicts = _tell(memory, event, None, (), "ok", state)
    return memory, [*over, *verdicts]


def _stamp(event: Event) -> Stamp:
    return Stamp(time=event.time, mono=event.mono, node=event.node, attempt=event.attempt)


def _moved_mono(moved: Mapping[str, float], state: State | None) -> float:
    counts = [mono for what, mono in moved.items() if what in SERVER_MOVES or state not in SERVER_STATES]
    return max(counts, default=float("-inf"))


# --- a look at stacks -------------------------------------------------------------------------------------------------


def _stacks_captured(
    table: FrameTable, memory: Memory, event: StacksCaptured, state: State | None, phase: str | None
) -> Result:
    looks = looks_at(table, event, memory.rows, memory.threads, memory.failed)
    threads = {str(look.standing.row.pid): look.thread for look in looks}
    motion = moving(memory.threads, threads)
    doing = doings(looks, motion, memory.doing, event.time)
    before = memory
    memory = replace(
        memory,
        threads=threads,
        doing=doing,
        compile_ticks=sum(look.compile_ticks for look in looks),
        cpu_ticks={file.pid: _ticks(file) for file in event.stacks},
        looked_mono=event.mono,
    )
    told = DoingChanged(**_stamp(event), processes=doing)
    if not memory.is_open:
        return memory, [told]
    compiles = memory.compile_ticks > before.compile_ticks > 0 or _compilers_work(memory)
    scene = _Scene(tuple(look.standing for look in looks), motion, _working(before, event), compiles)
    memory, verdicts = _judged(memory, event, scene, state, phase)
    return memory, [told, *verdicts]


@dataclass(frozen=True, slots=True)
class _Scene:
    """What one look shows, against the look before."""

    standings: tuple[Standing, ...]
    motion: Mapping[str, Motion]
    working: frozenset[int]
    """The processes that have used much of a core since then."""
    compiles: bool


def _judged(memory: Memory, event: StacksCaptured, scene: _Scene, state: State | None, phase: str | None) -> Result:
    serves = state in SERVER_STATES
    quiet_s = event.mono - _moved_mono(memory.moved, state)
    gpus_idle = _gpus_idle(memory)
    hang = None if scene.compiles else find_hang(scene.standings, serves=serves, phase=phase, gpus_idle=gpus_idle)
    if hang is None and memory.stalled and not memory.involved <= memory.rows.keys():
        return memory, []
    if hang is None or not (memory.pending or memory.stalled):
        return _tell(replace(memory, suspicion=None), event, None, (), "ok", state)
    suspicion = _suspect(memory.suspicion, hang, event.mono)
    memory = replace(memory, suspicion=suspicion)
    held_s = min(quiet_s, event.mono - suspicion.began_mono + FIRST_LOOK_S)
    if _runs(hang, scene, held_s, serves=serves):
        return _tell(memory, event, None, (), "ok", state)
    return _tell(memory, event, hang, scene.standings, _health(suspicion, held_s, serves=serves), state)


def _gpus_idle(memory: Memory) -> dict[int, bool]:
    """rank -> whether its GPU does nothing, where each is clearly idle or clearly busy."""
    found: dict[int, bool] = {}
    gpus = GpuModel(cards=dict(memory.cards), rows=dict(memory.gpus))
    for index, ones in residents(gpus, memory.rows).items():
        gpu = memory.gpus.get(index)
        for one in ones:
            if gpu is not None and gpu.busy_percent is not None and one.row.rank is not None:
                found[one.row.rank] = gpu.busy_percent <= IDLE_GPU_PERCENT
    return found


def _compilers_work(memory: Memory) -> bool:
    return any(row.role == "compiler" and row.cpu_percent > 0 for row in memory.rows.values())


def _ticks(file: StackFile) -> int:
    return sum(thread.cpu_ticks or 0 for thread in file.threads)


def _working(memory: Memory, event: StacksCaptured) -> frozenset[int]:
    """The processes that have used much of a core since the look before."""
    least = WORKING_SHARE * (event.mono - memory.looked_mono) * TICKS_PER_S
    used = {file.pid: _ticks(file) - memory.cpu_ticks.get(file.pid, _ticks(file)) for file in event.stacks}
    return frozenset(pid for pid, ticks in used.items() if ticks >= least > 0)


def _runs(hang: Hang, scene: _Scene, held_s: float, *, serves: bool) -> bool:
    """Whoever seems to hold it up gets on still: it runs through its program, or a start computes."""
    operators = [one for one in hang.waiting if one.classified.class_ == "torch_op"]
    if not hang.culprits and operators and held_s < OPERATOR_GRACE_S:
        return True
    if not serves and any(one.row.pid in scene.working for one in (*hang.culprits, *operators)):
        return held_s < START_MOVING_GRACE_S
    grace_s = MOVING_GRACE_S if serves else START_MOVING_GRACE_S
    moves = [scene.motion.get(str(one.row.pid)) == "function" for one in hang.culprits]
    return bool(moves) and all(moves) and held_s < grace_s


def _suspect(before: Suspicion | None, hang: Hang, mono: float) -> Suspicion:
    pids = tuple(one.row.pid for one in hang.culprits)
    if before is None or (before.kind, before.pids) != (hang.kind, pids):
        return Suspicion(hang.kind, pids, mono)
    return replace(before, count=before.count + 1)


def _health(suspicion: Suspicion, held_s: float, *, serves: bool) -> str:
    """A start in which nobody stands out gets more time: its ranks may be doing what takes them all long."""
    suspect_s, stalled_s = (START_STALLED_S, START_MOVING_GRACE_S)
    if serves:
        suspect_s, stalled_s = SUSPECT_S, STALLED_S
    elif suspicion.pids:
        suspect_s, stalled_s = START_SUSPECT_S, START_STALLED_S
    if suspicion.count >= AGREEING_TO_TELL and held_s >= stalled_s:
        return "stalled"
    return "suspect" if suspicion.count >= AGREEING_TO_SUSPECT and held_s >= suspect_s else "ok"


# --- telling ----------------------------------------------------------------------------------------------------------


def _tell(
    memory: Memory,
    event: Event,
    hang: Hang | None,
    standings: tuple[Standing, ...],
    health: str,
    state: State | None,
) -> Result:
    """What is new; a suspicion that is not confirmed yet leaves what was said."""
    if hang is not None and health == "ok":
        return memory, []
    pids = tuple(one.row.pid for one in hang.culprits) if hang else ()
    verdict: Verdict = (health, hang.kind if hang else None, pids)
    if verdict == memory.told:
        return memory, []
    stamp = _stamp(event)
    memory = replace(memory, told=verdict)
    if hang is None:
        return replace(memory, stalled=None, involved=frozenset()), [VerdictChanged(**stamp, health="ok")]
    since = event.time - (event.mono - _moved_mono(memory.moved, state))
    what = "no tokens" if state in SERVER_STATES else "nothing moved"
    told = VerdictChanged(
        **stamp,
        health="stalled" if health == "stalled" else "suspect",
        kind=hang.kind,
        culprits=[one.culprit for one in hang.culprits],
        summary=summary(hang),
        evidence=list(evidence(event, hang, standings, what, since, memory.gpus)),
        since=since,
    )
    if told.health == "stalled":
        memory = replace(memory, stalled=told, involved=frozenset(one.row.pid for one in standings))
    return memory, [told]


def _died(memory: Memory, event: Event) -> tuple[Memory, VerdictChanged]:
    """The end that nobody asked for; after a hang its verdict goes on to stand."""
    lost, hung = memory.lost, memory.stalled
    summary = f"{lost.process} (pid {lost.pid}) went first." if lost else "It has ended, and nobody asked for it."
    gone = [Culprit(process=lost.process, pid=lost.pid, rank=lost.rank, doing="unknown", frame=None)] if lost else []
    died = VerdictChanged(
        **_stamp(event),
        health="dead",
        kind=hung.kind if hung else "unknown",
        culprits=hung.culprits if hung else gone,
        summary=f"It hung, and then ended: {hung.summary}" if hung else summary,
        evidence=hung.evidence if hung else [],
        since=hung.since if hung else None,
    )
    return replace(memory, told=("dead", None, ())), died
