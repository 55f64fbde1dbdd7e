"""The stacks of all ranks as one tree, what moved since the last look, and who is the odd one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from vllm_probes.judges.ranksets import natural
from vllm_probes.rows import Frame, ThreadStack

Motion = Literal["frozen", "line", "function"]
"""The same functions and lines; the same functions at other lines; other functions."""


class Group(NamedTuple):
    """Ranks with the same stack. `frames`: innermost first; a line that they do not share is 0."""

    members: frozenset[str]
    frames: tuple[Frame, ...]


class Node(NamedTuple):
    """One call of the tree; the calls that it makes follow it, one deeper."""

    depth: int
    """0: the outermost call."""
    frame: Frame
    """Its line is 0 where the ranks are at different ones."""
    members: frozenset[str]
    ending: frozenset[str]
    """Whose stack ends here."""


class Tree(NamedTuple):
    """Every rank is in exactly one group, largest group first, and in the nodes of its stack, from the root on."""

    members: frozenset[str]
    groups: tuple[Group, ...]
    nodes: tuple[Node, ...]


class Line(NamedTuple):
    """One line of a drawing of the tree."""

    depth: int
    frame: Frame
    present: frozenset[str]
    absent: frozenset[str]
    """Of all ranks of the tree."""
    is_leaf: bool
    """Some rank's stack ends here."""


_Path = tuple[tuple[str, str, int], ...]
"""Function, file and line of each call from the root on; the line is 0 where lines do not count."""


class _Kind(NamedTuple):
    """Ranks with one path, as bits in the natural order of the labels: sets of ranks are joined at every node."""

    path: _Path
    frames: tuple[Frame, ...]
    """The outermost call first."""
    bits: int


def merge(stacks: Mapping[str, ThreadStack], by_line: bool = False) -> Tree:
    """One tree of the stacks of many ranks, by their labels (`ranksets.labels`).

    Calls are the same when function and file are, with `by_line` also the line. The order of the ranks does not matter.
    """
    members = sorted(stacks, key=natural)
    paths: dict[_Path, list[int]] = {}
    for position, member in enumerate(members):
        paths.setdefault(_path(stacks[member].frames, by_line), []).append(position)
    kinds = [_kind(path, [stacks[members[position]] for position in at], at) for path, at in paths.items()]
    groups = tuple(Group(_members(kind.bits, members), kind.frames[::-1]) for kind in sorted(kinds, key=_order_of_kind))
    return Tree(frozenset(members), groups, tuple(_nodes(kinds, members)))


def lines(tree: Tree) -> Iterator[Line]:
    """The tree from the root on, each call before the calls that it makes, what most ranks do first."""
    for node in tree.nodes:
        yield Line(node.depth, node.frame, node.members, tree.members - node.members, bool(node.ending))


def moving(before: Mapping[str, ThreadStack], after: Mapping[str, ThreadStack]) -> dict[str, Motion]:
    """How the stack of each rank moved between two looks; ranks that only one of them has are left out."""
    return {member: _motion(before[member].frames, after[member].frames) for member in after if member in before}


def odd_ones(tree: Tree) -> tuple[Group, ...]:
    """The groups beside that of more than half of the ranks; none where there is no such majority."""
    if not tree.groups or 2 * len(tree.groups[0].members) <= len(tree.members):
        return ()
    return tree.groups[1:]


def _path(frames: Iterable[Frame], by_line: bool) -> _Path:
    return tuple([(frame.function, frame.file, frame.line if by_line else 0) for frame in frames][::-1])


def _kind(path: _Path, stacks: list[ThreadStack], positions: list[int]) -> _Kind:
    calls = zip(*(stack.frames[::-1] for stack in stacks), strict=True)
    return _Kind(path, tuple(_shared(call) for call in calls), sum(1 << position for position in positions))


def _shared(frames: Sequence[Frame]) -> Frame:
    """The same call of several ranks, without a line that they do not share."""
    first = frames[0]
    is_one = all(frame.line == first.line for frame in frames)
    return first if is_one else Frame(function=first.function, file=first.file)


def _nodes(kinds: list[_Kind], members: list[str]) -> Iterator[Node]:
    """The tree, root first; without recursion, since a stack may be deeper than ours."""
    open_branches = [(0, kinds)]
    while open_branches:
        depth, branch = open_branches.pop()
        if depth:
            frame = _shared([kind.frames[depth - 1] for kind in branch])
            ending = [kind for kind in branch if len(kind.path) == depth]
            yield Node(depth - 1, frame, _members(_bits(branch), members), _members(_bits(ending), members))
        calls: dict[tuple[str, str, int], list[_Kind]] = {}
        for kind in branch:
            if len(kind.path) > depth:
                calls.setdefault(kind.path[depth], []).append(kind)
        inner = sorted(calls.values(), key=lambda kinds: _order(_bits(kinds)), reverse=True)
        open_branches += [(depth + 1, kinds) for kinds in inner]


def _bits(kinds: list[_Kind]) -> int:
    bits = 0
    for kind in kinds:
        bits |= kind.bits
    return bits


def _order(bits: int) -> tuple[int, int]:
    """What most ranks do first, then by the first rank."""
    return -bits.bit_count(), bits & -bits


def _order_of_kind(kind: _Kind) -> tuple[int, int]:
    return _order(kind.bits)


def _members(bits: int, members: list[str]) -> frozenset[str]:
    found = []
    while bits:
        found.append(members[(bits & -bits).bit_length() - 1])
        bits &= bits - 1
    return frozenset(found)


def _motion(before: list[Frame], after: list[Frame]) -> Motion:
    if _path(before, False) != _path(after, False):
        return "function"
    return "frozen" if _path(before, True) == _path(after, True) else "line"
