"""What a few looks at the stacks of a run say, without anything that was seen before: a pure fold.

The same judges as of a session: `culprits` says who would be at fault if nothing moved, `verdict` whether that lasts
long enough to be a hang. Looks of a moment cannot prove one. Only a process stands out that waits for something of its
own (a lock, a pipe, a signal to go on) and has not run at all between them: one that computes, or waits for GPUs or
peers, may be at work, and one that sleeps again and again gets on.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from vllm_probes.events import ActivitySampled, StacksCaptured, Stamp, VerdictChanged
from vllm_probes.judges import verdict
from vllm_probes.judges.culprits import Hang, Standing, find_hang, said_together, summary
from vllm_probes.judges.doing import Doing
from vllm_probes.judges.frames import FrameTable, main_thread
from vllm_probes.judges.looks import Look, doings, looks_at
from vllm_probes.judges.ranksets import labels, natural
from vllm_probes.judges.stackmerge import merge, moving
from vllm_probes.rows import Culprit, Evidence, Frame, ProcessDoing, ProcessRow, ThreadStack

WAITS_ALONE: frozenset[Doing] = frozenset(
    ("stopped", "uninterruptible", "subprocess", "socket", "read", "sleep", "lock")
)
"""What a process that others wait for does not do for long."""
SHARES_KEPT = 10

Health = Literal["ok", "suspect", "stalled"]


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process was in a part of the looks."""

    frame: str | None
    """`function (file)`; None: no stack."""
    doing: str
    share: float
    """0 to 1, of the looks that saw this process."""


class SeenProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process at the last look. None: not known."""

    process: str
    pid: int
    rank: int | None
    state: str
    """R S D T Z …"""
    doing: str | None
    what: str | None
    """The same in a few words."""
    frame: str | None
    motion: Literal["frozen", "line", "function"] | None
    """Since the look before."""
    error: str | None
    """Why there is no stack: a sentence that says what to do."""
    shares: list[Share]
    """The largest first."""


class SeenGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Processes with the same calls."""

    members: list[str]
    """Names, made different by pid where two have the same."""
    frames: list[str]
    """`function (file:line)`, innermost first; without the line where theirs differ."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen, in the words of a verdict."""

    processes: list[SeenProcess]
    groups: list[SeenGroup]
    """The largest first."""
    health: Health | None
    """None: no stack could be read, so nothing can be said."""
    kind: str | None
    culprits: list[Culprit]
    summary: str
    evidence: list[Evidence]
    look_count: int
    observed_s: float
    """From the first look to the last."""


class Glance(msgspec.Struct, frozen=True):
    """What the looks so far have shown."""

    begun: Stamp
    memory: verdict.Memory
    told: VerdictChanged | None = None
    rows: Mapping[int, ProcessRow] = {}
    last: StacksCaptured | None = None
    looks: Mapping[int, Look] = {}
    """The last one, by pid."""
    standings: tuple[Standing, ...] = ()
    hangs: tuple[Hang | None, ...] = ()
    """Of the last two looks."""
    doing: Sequence[ProcessDoing] = ()
    has_run: frozenset[int] = frozenset()
    """The processes whose thread has gone off a CPU since the look before, or may have."""
    places: Mapping[int, Counter[tuple[str | None, str]]] = {}
    look_count: int = 0
    serves: bool = True
    moved: bool = False
    """Tokens did."""

    @property
    def is_calm(self) -> bool:
        """The last look shows nobody who could be at fault."""
        return self.serves and bool(self.hangs) and self.hangs[-1] is None


def begin(stamp: Stamp) -> Glance:
    """Nothing is known."""
    return Glance(stamp, verdict.Memory(moved={"start": stamp["mono"]}, is_open=True))


def moved(table: FrameTable, glance: Glance, stamp: Stamp) -> Glance:
    """Tokens came: what was suspected is over."""
    activity = ActivitySampled(**stamp, moved={"start": glance.begun["mono"], "tokens": stamp["mono"]})
    memory, _ = verdict.step(table, glance.memory, activity, None, None)
    return replace(glance, memory=memory, told=None, moved=True)


def look(
    table: FrameTable,
    glance: Glance,
    event: StacksCaptured,
    rows: Mapping[int, ProcessRow],
    *,
    serves: bool,
    is_counted: bool,
) -> Glance:
    """One more look. `serves`: the run has started; what still starts may take its time. `is_counted`: its tokens can
    be seen."""
    looks = looks_at(table, event, rows, glance.looks, frozenset())
    standings = tuple(one.standing for one in looks)
    memory = replace(glance.memory, rows=rows, is_counted=is_counted)
    memory, conclusions = verdict.step(table, memory, event, "serving" if serves else "starting", None)
    verdicts = [one for one in conclusions if isinstance(one, VerdictChanged)]
    hang = find_hang(standings, None, {}) if serves else None
    threads = {str(one.standing.row.pid): one.thread for one in looks}
    before = {str(pid): one.thread for pid, one in glance.looks.items()}
    return replace(
        glance,
        memory=memory,
        told=verdicts[-1] if verdicts else glance.told,
        rows=rows,
        last=event,
        serves=serves,
        looks={one.standing.row.pid: one for one in looks},
        standings=standings,
        hangs=(*glance.hangs, hang)[-2:],
        doing=doings(looks, moving(before, threads), glance.doing, event.time),
        has_run=frozenset(one.standing.row.pid for one in looks if _has_run(one, glance.looks)),
        places=_counted(glance.places, standings),
        look_count=glance.look_count + 1,
    )


def _has_run(look: Look, before: Mapping[int, Look]) -> bool:
    known = before.get(look.standing.row.pid)
    count = look.thread.switch_count
    return count is None or known is None or known.thread.switch_count != count


def _tells(standing: Standing) -> bool:
    """It has a stack, or needs none."""
    return not standing.is_blind or standing.doing == "stopped"


def _counted(
    places: Mapping[int, Counter[tuple[str | None, str]]], standings: Sequence[Standing]
) -> dict[int, Counter[tuple[str | None, str]]]:
    found = dict(places)
    for one in standings:
        if _tells(one):
            frame = one.frame and f"{one.frame.rpartition(':')[0]})"
            found[one.row.pid] = found.get(one.row.pid, Counter()) + Counter([(frame, one.doing)])
    return found


# --- what it comes to -------------------------------------------------------------------------------------------------


def conclude(table: FrameTable, glance: Glance) -> Snapshot:
    """Everything that the looks tell. Raises ValueError where there was none."""
    if glance.last is None:
        raise ValueError("there was no look")
    observed_s = glance.last.mono - glance.begun["mono"]
    health, kind, culprits, said, evidence = _verdict(glance, observed_s)
    return Snapshot(
        processes=_processes(glance, glance.last),
        groups=_groups(table, glance.last),
        health=health,
        kind=kind,
        culprits=culprits,
        summary=said,
        evidence=evidence,
        look_count=glance.look_count,
        observed_s=observed_s,
    )


_Verdict = tuple[Health | None, str | None, list[Culprit], str, list[Evidence]]


def _verdict(glance: Glance, observed_s: float) -> _Verdict:
    told = glance.told
    if told is not None and (told.health == "suspect" or told.health == "stalled"):
        return told.health, told.kind, told.culprits, told.summary, told.evidence
    if not any(map(_tells, glance.standings)):
        said = "No stack could be read, so nobody can say whether it hangs: each process tells what it takes."
        return None, None, [], said, list(_evidence(glance, (), observed_s))
    hang = glance.hangs[-1] if glance.hangs else None
    if hang is None:
        return "ok", None, [], _calm(glance), list(_evidence(glance, (), observed_s))
    evidence = list(_evidence(glance, hang.culprits, observed_s))
    if _stands_out(glance, hang):
        said = f"{summary(hang)} That was so for {observed_s:.1f} s, which is no proof of a hang."
        return "suspect", hang.kind, [one.culprit for one in hang.culprits], said, evidence
    if _moves(glance, hang):
        return "ok", None, [], "It gets on: other calls at each look.", evidence
    return "ok", None, [], f"Nothing is wrong unless it stays like this: {summary(hang)}", evidence


def _calm(glance: Glance) -> str:
    """Nobody would be at fault."""
    if not glance.serves:
        return "It has not started yet, which takes its time: nobody is said to be at fault after so short a look."
    waits = all(one.classified.class_ in ("idle", "startup_wait") for one in glance.standings if _tells(one))
    return "Everybody waits for work." if waits else "Nobody holds anybody up."


def _stands_out(glance: Glance, hang: Hang) -> bool:
    """Two looks agree on who it is, and it waited alone all the time."""
    if len(glance.hangs) < 2 or glance.moved or not hang.culprits:
        return False
    before = glance.hangs[0]
    agree = before is not None and (before.kind, _pids(before)) == (hang.kind, _pids(hang))
    return agree and all(one.doing in WAITS_ALONE and one.row.pid not in glance.has_run for one in hang.culprits)


def _moves(glance: Glance, hang: Hang) -> bool:
    motion = {one.pid: one.motion for one in glance.doing}
    return any(motion.get(pid) in ("line", "function") for pid in _pids(hang))


def _pids(hang: Hang) -> tuple[int, ...]:
    return tuple(one.row.pid for one in hang.culprits or hang.waiting)


def _evidence(glance: Glance, culprits: Sequence[Standing], observed_s: float) -> list[Evidence]:
    looks = f"{glance.look_count} in {observed_s:.1f} s" if glance.look_count > 1 else "1"
    others = [one for one in glance.standings if one not in culprits and _tells(one)]
    since = glance.begun["time"]
    files = {file.pid: file.file for file in glance.last.stacks} if glance.last else {}
    said = [*said_together(culprits), *said_together(others)]
    return [
        Evidence(signal="looks", value=looks, since=since),
        *(Evidence(signal=names, value=what, since=since, file=files.get(one.row.pid)) for names, what, one in said),
    ]


# --- the parts --------------------------------------------------------------------------------------------------------


def _processes(glance: Glance, last: StacksCaptured) -> list[SeenProcess]:
    known = {one.row.pid for one in glance.standings if not one.is_blind or one.doing in WAITS_ALONE}
    doing = {one.pid: one for one in glance.doing if one.pid in known}
    errors = {file.pid: file.error for file in last.stacks}
    return [_process(glance, row, doing.get(row.pid), errors.get(row.pid)) for row in glance.rows.values()]


def _process(glance: Glance, row: ProcessRow, doing: ProcessDoing | None, error: str | None) -> SeenProcess:
    counts = glance.places.get(row.pid, Counter())
    total = counts.total()
    return SeenProcess(
        process=row.process,
        pid=row.pid,
        rank=row.rank,
        state=row.state,
        doing=doing.doing if doing else None,
        what=doing.what if doing else None,
        frame=doing.frame if doing else None,
        motion=doing.motion if doing and doing.frame else None,
        error=error,
        shares=[
            Share(frame=frame, doing=what, share=count / total)
            for (frame, what), count in counts.most_common(SHARES_KEPT)
        ],
    )


def _groups(table: FrameTable, last: StacksCaptured) -> list[SeenGroup]:
    names = labels({file.pid: file.process for file in last.stacks})
    threads: dict[str, ThreadStack] = {}
    for file in last.stacks:
        thread = main_thread(table, file)
        if thread is not None and thread.frames:
            threads[names[file.pid]] = thread
    return [
        SeenGroup(members=sorted(group.members, key=natural), frames=[frame_text(frame) for frame in group.frames])
        for group in merge(threads).groups
    ]


def frame_text(frame: Frame) -> str:
    """`function (file:line)`, `function (file)` where the line is not one."""
    return f"{frame.function} ({frame.file}:{frame.line})" if frame.line else f"{frame.function} ({frame.file})"
