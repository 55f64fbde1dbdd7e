"""Whether a run gets on, and who holds it up: quiet raises the question, stacks answer it, and more stacks confirm it.

A pure fold over observations. Nothing is said while anything moves that counts in the phase of the run; the first look
at stacks only suspects, and only looks that agree become a verdict.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from vllm_probes.events import (
    ENDED_STATES,
    ActivitySampled,
    AttemptStarted,
    CommandEnded,
    Conclusion,
    DoingChanged,
    Event,
    GpusSampled,
    LogRecorded,
    ProcessesSampled,
    StacksCaptured,
    State,
    StopRequested,
    VerdictChanged,
    stamp_of,
)
from vllm_probes.judges.culprits import Hang, Standing, find_hang, narrowed, summary
from vllm_probes.judges.evidence import evidence, exception
from vllm_probes.judges.frames import FrameTable
from vllm_probes.judges.gpu_table import gpus_idle, gpus_work
from vllm_probes.judges.looks import doings, looks_at
from vllm_probes.judges.scene import (
    NOTHING_BEFORE,
    START_GRACE_S,
    Before,
    Scene,
    Stage,
    gets_on,
    scene_of,
    stage_of,
)
from vllm_probes.rows import Culprit, Evidence, GpuCard, GpuRow, ProcessDoing, ProcessRow

SERVER_MOVES = frozenset(("tokens", "compilers", "start", "work"))
"""What counts as progress of a server; whatever starts, moves anything."""
AGREEING_TO_SUSPECT, AGREEING_TO_TELL = 2, 3
"""Looks at stacks that show the same. Two can be chance; chosen."""
SUSPECT_S, STALLED_S = 5.0, 8.0
START_SUSPECT_S, START_STALLED_S = 10.0, 60.0
"""Of quiet, and of looks that agree."""
SEEN_LATE_S = 3.0
"""Progress is seen by a look at counters, a second or more after it was made; a line of the log at once."""
GAP_S = 45.0
"""Looks that are further apart do not follow each other: whoever looks was suspended, too."""
ENDING_S = 60.0
"""An engine that gives up a hang leaves the place where it waited, and needs some seconds for its end (measured: 2 s,
where a worker does not answer 8 s and more). That is the end of a hang, not a run that goes on."""
FIRST_LOOK_S = 3.0
"""A look comes after so much quiet; before it nobody knows what stood still."""

Verdict = tuple[str, str | None, tuple[int, ...]]


class Suspicion(msgspec.Struct, frozen=True):
    """What the latest looks agree on."""

    kind: str
    pids: tuple[int, ...]
    began_mono: float
    """The first of them …"""
    latest_mono: float
    """… and the last."""
    got_on_mono: float = float("-inf")
    """The last at which they seemed to get on still."""
    count: int = 1


class Memory(msgspec.Struct, frozen=True):
    """What is known of the current attempt."""

    rows: Mapping[int, ProcessRow] = {}
    cards: Mapping[int, GpuCard] = {}
    gpus: Mapping[int, GpuRow] = {}
    """As they were told last; empty while the driver does not answer."""
    patience: float = 1.0
    """How many times longer everything may take, since a debug setting makes it slow."""
    moved: Mapping[str, float] = {}
    pending: bool = True
    is_counted: bool = False
    """Its requests and tokens can be seen, or could be if it did not hang."""
    before: Before = NOTHING_BEFORE
    log: str = ""
    failed: Mapping[int, Evidence] = {}
    """The latest exception that a process has logged since the last progress, by pid."""
    doing: Sequence[ProcessDoing] = ()
    """What each process did at the look before."""
    suspicion: Suspicion | None = None
    is_attached: bool = False
    """Nobody knows how long it stood still before it was attached to."""
    told: Verdict | None = ("ok", None, ())
    """None: nobody knows yet whether a run that was attached to gets on."""
    stalled: VerdictChanged | None = None
    """The hang that the run is in, or was in when it ended …"""
    involved: frozenset[int] = frozenset()
    """… and who was there then. Whether it is over can be seen only while all of them are."""
    passed: tuple[float, VerdictChanged] | None = None
    """A hang that the stacks showed no more, and when; nothing has moved since."""
    lost: ProcessRow | None = None
    """The first engine or worker that went without anybody asking."""
    is_open: bool = False
    """It runs, and nobody has asked for its end."""

    def stage(self, state: State | None) -> Stage:
        return stage_of(state, is_counted=self.is_counted)

    def hung(self, mono: float) -> VerdictChanged | None:
        """The hang that explains an end at that moment."""
        if self.passed and mono - self.passed[0] <= ENDING_S:
            return self.stalled or self.passed[1]
        return self.stalled


Result = tuple[Memory, list[Conclusion]]


def step(table: FrameTable, memory: Memory, event: Event, state: State | None, phase: str | None) -> Result:
    """One observation in, conclusions out. `state` and `phase` are what the judge of states says at that moment."""
    memory, conclusions = _step(table, memory, event, state, phase)
    if state in ENDED_STATES or state == "stopping":
        memory = replace(memory, is_open=False)
    if state != "crashed" or (memory.told and memory.told[0] == "dead"):
        return memory, conclusions
    memory, died = _died(memory, event)
    return memory, [*conclusions, died]


def _step(table: FrameTable, memory: Memory, event: Event, state: State | None, phase: str | None) -> Result:
    match event:
        case AttemptStarted():
            return _attempt_started(memory, event), []
        case StopRequested() | CommandEnded():
            return replace(memory, is_open=False), []
        case ProcessesSampled():
            return _processes_sampled(memory, event), []
        case GpusSampled():
            cards = {**memory.cards, **{card.index: card for card in event.cards}}
            rows = {**memory.gpus, **{row.index: row for row in event.rows}} if event.status == "ok" else {}
            return replace(memory, cards=cards, gpus=rows), []
        case LogRecorded() if event.pid is not None and event.exception_line_number is not None:
            return replace(memory, failed={**memory.failed, event.pid: exception(event, memory.log)}), []
        case ActivitySampled() if memory.is_open:
            return _activity_sampled(memory, event, state)
        case StacksCaptured():
            return _stacks_captured(table, memory, event, state, phase)
        case _:
            return memory, []


def _attempt_started(memory: Memory, event: AttemptStarted) -> Memory:
    patience = max((setting.patience for setting in event.debug_settings), default=1.0)
    moved = {"start": event.mono}
    known = Memory(cards=memory.cards, gpus=memory.gpus, moved=moved, patience=patience, log=event.log, is_open=True)
    return known if event.attached_pid is None else replace(known, is_attached=True, told=None)


def _processes_sampled(memory: Memory, event: ProcessesSampled) -> Memory:
    known = {pid: row for pid, row in memory.rows.items() if pid not in event.gone}
    lost = [row for pid in event.gone if (row := memory.rows.get(pid)) and row.role in ("engine_core", "worker")]
    first = memory.lost or (lost[0] if lost and memory.is_open else None)
    return replace(memory, rows=known | {row.pid: row for row in event.rows}, lost=first)


def _activity_sampled(memory: Memory, event: ActivitySampled, state: State | None) -> Result:
    is_counted = event.requests is not None or event.unanswered
    stage = stage_of(state, is_counted=is_counted)
    before_mono = _moved_mono(memory.moved, stage)
    has_work = bool(event.requests) or bool(event.connections) or event.probed
    pending = has_work or event.found_still or stage != "serves"
    memory = replace(memory, moved=event.moved, pending=pending, is_counted=is_counted)
    is_open = pending or memory.suspicion or memory.stalled or memory.told is None
    has_moved = _moved_mono(event.moved, stage) > before_mono
    if not has_moved and is_open:
        return memory, []  # whoever gives up waiting does not end a hang
    over = [DoingChanged(**stamp_of(event))] if memory.doing else []
    moved_time = event.time - (event.mono - _moved_mono(event.moved, stage))
    failed = {pid: one for pid, one in memory.failed.items() if (one.since or 0.0) > moved_time - SEEN_LATE_S}
    memory = replace(memory, suspicion=None, failed=failed, before=NOTHING_BEFORE, doing=())
    memory, verdicts = _tell(memory, event, None, (), "ok", stage)
    return replace(memory, passed=None) if has_moved else memory, [*over, *verdicts]


def _moved_mono(moved: Mapping[str, float], stage: Stage) -> float:
    counts = [mono for what, mono in moved.items() if what in SERVER_MOVES or stage != "serves"]
    return max(counts, default=float("-inf"))


# --- a look at stacks -------------------------------------------------------------------------------------------------


def _stacks_captured(
    table: FrameTable, memory: Memory, event: StacksCaptured, state: State | None, phase: str | None
) -> Result:
    looks = looks_at(table, event, memory.rows, memory.before.looks, memory.failed)
    scene, now = scene_of(looks, event.stacks, memory.rows, memory.before, event.mono)
    doing = doings(looks, scene.motion, memory.doing, event.time)
    memory = replace(memory, before=now, doing=doing)
    told = DoingChanged(**stamp_of(event), processes=doing)
    if not memory.is_open:
        return memory, [told]
    memory, verdicts = _judged(memory, event, scene, state, phase)
    return memory, [told, *verdicts]


def _judged(memory: Memory, event: StacksCaptured, scene: Scene, state: State | None, phase: str | None) -> Result:
    if memory.stalled and not memory.involved <= memory.rows.keys():
        return memory, []
    stage = memory.stage(state)
    quiet_s = event.mono - _moved_mono(memory.moved, stage)
    start_phase = (phase or "") if stage == "starts" else None
    hang = None
    if not scene.compiles and not (scene.receives and stage == "starts"):
        hang = find_hang(scene.standings, start_phase, gpus_idle(memory.cards, memory.gpus, memory.rows), scene.working)
    if memory.suspicion and _is_out_of_sight(memory.suspicion, hang, scene):
        return memory, []
    if hang is None or not (memory.pending or memory.suspicion or memory.stalled):
        if memory.told is None and all(one.is_blind for one in scene.standings):
            return memory, []
        return _tell(replace(memory, suspicion=None), event, None, (), "ok", stage)
    suspicion = _suspect(memory.suspicion, hang, event.mono)
    hang = narrowed(hang, suspicion.pids)
    memory = replace(memory, suspicion=suspicion)
    held_s = min(quiet_s, event.mono - suspicion.began_mono + FIRST_LOOK_S) / memory.patience
    if memory.stalled is None and suspicion.count > 1 and _gets_on(memory, hang, scene, held_s, stage):
        memory = replace(memory, suspicion=replace(suspicion, got_on_mono=event.mono))
        return _tell(memory, event, None, (), "ok", stage)
    still_s = min(held_s, (event.mono - suspicion.got_on_mono) / memory.patience)
    is_sure = not hang.is_guess and not _waits_for_other_nodes(hang, stage)
    health = _health(suspicion, still_s, stage, is_sure=is_sure)
    return _tell(memory, event, hang, scene.standings, health, stage)


def _is_out_of_sight(suspicion: Suspicion, hang: Hang | None, scene: Scene) -> bool:
    """Whoever is suspected cannot be read at this moment, as a loop often cannot: that takes nothing back."""
    blind = {one.row.pid for one in scene.standings if one.is_blind}
    is_same = hang is not None and tuple(one.row.pid for one in hang.culprits) == suspicion.pids
    return not is_same and not blind.isdisjoint(suspicion.pids)


def _gets_on(memory: Memory, hang: Hang, scene: Scene, held_s: float, stage: Stage) -> bool:
    return gets_on(hang, scene, held_s, stage, gpus_work=gpus_work(memory.cards, memory.gpus))


def _waits_for_other_nodes(hang: Hang, stage: Stage) -> bool:
    """All that are here have come to where they meet: who is missing may be on another node, and come late."""
    return stage == "starts" and not hang.culprits and all(one.is_meeting for one in hang.waiting)


def _suspect(before: Suspicion | None, hang: Hang, mono: float) -> Suspicion:
    """Of several that are held up in one look whoever is in the next one, too, goes on to be suspected."""
    pids = tuple(one.row.pid for one in hang.culprits)
    if before is None or mono - before.latest_mono > GAP_S:
        return Suspicion(hang.kind, pids, mono, mono)
    common = tuple(pid for pid in pids if pid in before.pids)
    if not common and (pids or before.pids or before.kind != hang.kind):
        return Suspicion(hang.kind, pids, mono, mono)
    return replace(before, kind=hang.kind, pids=common, latest_mono=mono, count=before.count + 1)


def _health(suspicion: Suspicion, still_s: float, stage: Stage, *, is_sure: bool) -> str:
    """A start in which nobody stands out gets more time: its ranks may be doing what takes them all long.

    A program of which nothing is known may sit still for its own reasons.
    """
    suspect_s, stalled_s = START_STALLED_S, START_GRACE_S
    if stage == "serves":
        suspect_s, stalled_s = SUSPECT_S, STALLED_S
    elif suspicion.pids:
        suspect_s, stalled_s = START_SUSPECT_S, START_STALLED_S
    is_sure = is_sure and (stage != "runs" or suspicion.kind != "unknown")
    if suspicion.count >= AGREEING_TO_TELL and still_s >= stalled_s and is_sure:
        return "stalled"
    return "suspect" if suspicion.count >= AGREEING_TO_SUSPECT and still_s >= suspect_s else "ok"


# --- telling ----------------------------------------------------------------------------------------------------------


def _tell(
    memory: Memory,
    event: Event,
    hang: Hang | None,
    standings: tuple[Standing, ...],
    health: str,
    stage: Stage,
) -> Result:
    """What is new; a suspicion that is not confirmed yet leaves what was said."""
    if hang is not None and health == "ok":
        return memory, []
    pids = tuple(one.row.pid for one in hang.culprits) if hang else ()
    verdict: Verdict = (health, hang.kind if hang else None, pids)
    if verdict == memory.told:
        return memory, []
    stamp = stamp_of(event)
    memory = replace(memory, told=verdict)
    if hang is None:
        passed = (event.mono, memory.stalled) if memory.stalled else memory.passed
        memory = replace(memory, stalled=None, involved=frozenset(), passed=passed)
        return memory, [VerdictChanged(**stamp, health="ok")]
    since = event.time - (event.mono - _moved_mono(memory.moved, stage))
    what = "no tokens" if stage == "serves" else "nothing moved"
    is_attached = memory.is_attached and "tokens" not in memory.moved
    failures = [memory.failed[one.row.pid] for one in hang.culprits if one.row.pid in memory.failed]
    reasons = evidence(event, hang, standings, what, since, memory.gpus, is_attached=is_attached)
    told = VerdictChanged(
        **stamp,
        health="stalled" if health == "stalled" else "suspect",
        kind=hang.kind,
        culprits=[one.culprit for one in hang.culprits],
        summary=summary(hang),
        evidence=[*failures, *reasons],
        since=since,
    )
    if told.health == "stalled":
        memory = replace(memory, stalled=told, involved=frozenset(one.row.pid for one in standings))
    return memory, [told]


def _died(memory: Memory, event: Event) -> tuple[Memory, VerdictChanged]:
    """The end that nobody asked for; after a hang its verdict goes on to stand."""
    lost, hung = memory.lost, memory.hung(event.mono)
    summary = f"{lost.process} (pid {lost.pid}) went first." if lost else "It has ended, and nobody asked for it."
    gone = [Culprit(process=lost.process, pid=lost.pid, rank=lost.rank, doing="unknown", frame=None)] if lost else []
    died = VerdictChanged(
        **stamp_of(event),
        health="dead",
        kind=hung.kind if hung else "unknown",
        culprits=hung.culprits if hung else gone,
        summary=f"It hung, and then ended: {hung.summary}" if hung else summary,
        evidence=hung.evidence if hung else [],
        since=hung.since if hung else None,
    )
    return replace(memory, told=("dead", None, ())), died
