"""One capture of stacks as the page shows it: what each process does, who is like whom, and who is not."""

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from vllm_probes.events import StacksCaptured
from vllm_probes.judges.culprits import Standing, said
from vllm_probes.judges.frames import FrameTable, load_frames, main_thread
from vllm_probes.judges.looks import Look, looks_at
from vllm_probes.judges.ranksets import labels, natural
from vllm_probes.judges.stackmerge import Motion, Tree, merge, moving, odd_ones
from vllm_probes.judges.titles import identify
from vllm_probes.judges.waits import gathered, wait_for, waits_for_nobody
from vllm_probes.model import SessionModel
from vllm_probes.rows import ProcessRow, Role, StackFile, ThreadStack

_KINDS: dict[Role, str] = {"worker": "Workers", "engine_core": "Engines", "api_server": "API servers"}
_MOTIONS: dict[Motion, str] = {"frozen": "frozen", "line": "line moves", "function": "function moves"}


@dataclass(frozen=True, slots=True)
class Member:
    """A process of a capture."""

    label: str
    kind: str
    """What it is one of: workers are compared with workers."""
    thread: ThreadStack
    """The main one."""
    standing: Standing
    motion: Motion | None
    doing_s: float | None
    """At the time of the capture. None: only the latest look tells."""
    look: tuple[str, str] | None
    """Symbol and style of the verdict that names it."""
    others: Sequence[ThreadStack] = ()
    """Its other threads."""

    @property
    def what(self) -> str:
        return said(self.standing)

    @property
    def frame(self) -> str | None:
        return self.standing.frame


@dataclass(frozen=True, slots=True)
class Forest:
    """Threads of one kind: those of the workers, say, or the ones of one name."""

    title: str
    members: Mapping[str, ThreadStack]
    odd: frozenset[str] = frozenset()
    """Whose functions are not those of the majority."""
    looks: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def tree(self, *, by_line: bool) -> Tree:
        return merge(self.members, by_line)


class Wait(NamedTuple):
    """Processes that wait for the same, by their labels; for the GPU where `targets` is empty."""

    waiters: frozenset[str]
    targets: frozenset[str]
    what: str
    is_end: bool
    """Whoever is waited for waits for nobody."""


@dataclass(frozen=True, slots=True)
class Group:
    """Processes of one kind that do the same at the same place."""

    labels: frozenset[str]
    kind: str
    what: str
    frame: str | None
    motion: str
    doing_s: float | None
    """As long as all of them."""
    is_odd: bool
    look: tuple[str, str] | None


def members(model: SessionModel, captured: StacksCaptured, named: Mapping[int, tuple[str, str]]) -> list[Member]:
    """The processes that have stacks, by kind, name and rank."""
    earlier = _before(model, captured)
    before = {look.standing.row.pid: look for look in (_looks(earlier, {}) if earlier else ())}
    looks = {look.standing.row.pid: look for look in _looks(captured, before)}
    motions = moving(_threads(before), _threads(looks))
    since = _since(model, captured)
    label = labels({file.pid: file.process for file in captured.stacks})
    found = [
        _member(
            file,
            looks[file.pid],
            label=label[file.pid],
            motion=motions.get(str(file.pid)),
            doing_s=captured.time - since[file.pid] if file.pid in since else None,
            look=named.get(file.pid),
        )
        for file in captured.stacks
        if file.pid in looks
    ]
    kinds = list(_KINDS.values())
    return sorted(
        found, key=lambda one: (kinds.index(one.kind) if one.kind in kinds else len(kinds), natural(one.label))
    )


def _member(file: StackFile, seen: Look, **more: Any) -> Member:
    main = main_thread(table(), file) or seen.thread
    return Member(
        kind=_KINDS.get(seen.standing.row.role, file.process),
        thread=main,
        standing=seen.standing,
        others=[thread for thread in file.threads if thread is not main],
        **more,
    )


def _threads(looks: Mapping[int, Look]) -> dict[str, ThreadStack]:
    return {str(pid): look.thread for pid, look in looks.items()}


@cache
def table() -> FrameTable:
    """What is known of frames; the numbers of system calls are taken for those of this machine."""
    return load_frames(machine=platform.machine())


def _looks(captured: StacksCaptured, before: Mapping[int, Look]) -> list[Look]:
    """Processes that have stacks; what has ended since has no row in the model."""
    files = [file for file in captured.stacks if any(thread.frames for thread in file.threads)]
    rows = {file.pid: _row(file) for file in files}
    return looks_at(table(), captured, rows, before, ())


def _row(file: StackFile) -> ProcessRow:
    role = identify([f"VLLM::{file.process}"]).role
    return ProcessRow(pid=file.pid, parent_pid=0, started=0.0, process=file.process, role=role)


def _before(model: SessionModel, captured: StacksCaptured) -> StacksCaptured | None:
    earlier = [one for one in model.stacks if one.attempt == captured.attempt and one.mono < captured.mono]
    return earlier[-1] if earlier else None


def _since(model: SessionModel, captured: StacksCaptured) -> dict[int, float]:
    """By pid, where the latest look is of this capture."""
    doing = next((one.doing for one in model.attempts if one.number == captured.attempt), None)
    return {one.pid: one.since for one in doing.processes} if doing and doing.mono == captured.mono else {}


# --- alike and not alike ----------------------------------------------------------------------------------------------


def forests(of: Sequence[Member], *, all_threads: bool) -> list[Forest]:
    """The main threads of each kind; with `all_threads` also the others, those of one name together."""
    kinds = list(dict.fromkeys(one.kind for one in of))
    return [forest for kind in kinds for forest in _of_kind(kind, [one for one in of if one.kind == kind], all_threads)]


def _of_kind(kind: str, of: Sequence[Member], all_threads: bool) -> Iterator[Forest]:
    looks = {one.label: one.look for one in of if one.look}
    main = {one.label: one.thread for one in of}
    title = kind if len(of) > 1 else of[0].label
    yield Forest(title, main, _odd(main), looks)
    others: dict[str, dict[str, ThreadStack]] = {}
    for one in of if all_threads else ():
        count: Counter[str] = Counter()
        for thread in one.others:
            name = thread.name or "unnamed thread"
            count[name] += 1
            again = f" ({count[name]})" if count[name] > 1 else ""
            others.setdefault(f"{name}{again}", {})[one.label] = thread
    for name, threads in others.items():
        yield Forest(f"{title}, {name}", threads)


def _odd(threads: Mapping[str, ThreadStack]) -> frozenset[str]:
    return frozenset(label for group in odd_ones(merge(threads)) for label in group.members)


def groups(of: Sequence[Member]) -> list[Group]:
    """Whoever is named first, then the odd ones, then what most of a kind do."""
    odd = {label for forest in forests(of, all_threads=False) for label in forest.odd}
    alike: dict[object, list[Member]] = {}
    for one in of:
        alike.setdefault((one.kind, one.what, one.frame, one.look, one.label in odd), []).append(one)
    found = [_group(together, together[0].label in odd) for together in alike.values()]
    return sorted(found, key=lambda group: (group.look is None, not group.is_odd))


def waits(of: Sequence[Member]) -> list[Wait]:
    """Who waits for whom, the front end first."""
    standings = {one.standing.row.pid: one.standing for one in reversed(of)}
    label = {one.standing.row.pid: one.label for one in of}
    edges = wait_for(standings)
    free = frozenset(label[pid] for pid in waits_for_nobody(standings, edges))
    found = []
    for (pids, what), waiters in gathered(edges).items():
        targets = frozenset(label[pid] for pid in pids if pid is not None)
        is_end = bool(targets) and targets <= free
        found.append(Wait(frozenset(label[pid] for pid in waiters), targets, what, is_end))
    return found


def _group(of: Sequence[Member], is_odd: bool) -> Group:
    first = of[0]
    known_s = [one.doing_s for one in of if one.doing_s is not None]
    return Group(
        labels=frozenset(one.label for one in of),
        kind=first.kind,
        what=first.what,
        frame=first.frame,
        motion=_motion_together([one.motion for one in of]),
        doing_s=min(known_s) if len(known_s) == len(of) else None,
        is_odd=is_odd,
        look=first.look,
    )


def _motion_together(motions: Sequence[Motion | None]) -> str:
    """`frozen`, or `5 frozen, 2 line moves`; empty where there is no look before."""
    count = Counter(_MOTIONS[motion] for motion in motions if motion)
    if len(count) < 2:
        return next(iter(count), "")
    return ", ".join(f"{number} {word}" for word, number in count.most_common())
