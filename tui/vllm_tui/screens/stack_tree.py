"""Merged stacks as rows: what each group does, and the tree of their calls with who is there and who is not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from textual.content import Content

from vllm_probes.judges.frame_names import is_standard_library, last_name
from vllm_probes.judges.frames import FrameTable
from vllm_probes.judges.ranksets import render
from vllm_probes.judges.stackmerge import Node, Tree
from vllm_probes.rows import Frame
from vllm_tui.format import duration, plural, printable
from vllm_tui.screens.stack_looks import Forest, Group, Wait, table
from vllm_tui.widgets.rows import cell, hanging, joined

WIDE = 100
MARK_WIDTH = 3
MOTION_WIDTH = 30
LONGEST_RANKS = 20
ODD = ("◆", "$text-accent")
_WRAPPERS = ("torch/nn/modules/module.py", "torch/utils/_contextlib.py", "torch/distributed/c10d_logger.py")
"""Files whose calls say nothing: they hand on to the next one."""


# --- what each group does ---------------------------------------------------------------------------------------------


def group_rows(groups: Sequence[Group], width: int) -> list[Content]:
    """A table; where it is narrow, the place of each group stands below it."""
    if not groups:
        return []
    who_width = min(max(12, *(len(render(group.labels)) for group in groups)), max(20, width // 5))
    does_width = min(max(len(printable(group.what)) for group in groups), width // 3)
    head = Content.assemble(
        " " * MARK_WIDTH,
        cell("who", who_width + 2),
        cell("does", does_width),
        cell("for", 9, right=True),
        "   ",
        cell("since the look before", MOTION_WIDTH) if width >= WIDE else "since the look before",
        "where" if width >= WIDE else "",
    )
    rows = [row for group in groups for row in group_row(group, who_width, does_width, width)]
    return [head.stylize("dim").truncate(width), *rows]


def group_row(group: Group, who_width: int, does_width: int, width: int) -> list[Content]:
    symbol, style = group.look or (ODD if group.is_odd else ("", ""))
    loud = f"bold {style}" if symbol else ""
    notes = [Content(group.motion), Content.styled("odd one out" if group.is_odd else "", loud)]
    motion = joined([note for note in notes if note.plain])
    where = printable(group.frame or "")
    row = Content.assemble(
        cell(f" {symbol}", MARK_WIDTH, loud),
        cell(who_text(group, who_width), who_width, loud or "bold"),
        "  ",
        cell(printable(group.what), does_width, loud),
        cell("" if group.doing_s is None else duration(group.doing_s), 9, loud, right=True),
        "   ",
    )
    if width >= WIDE:
        motion = motion.truncate(MOTION_WIDTH - 2, ellipsis=True)
        motion = motion.pad_right(MOTION_WIDTH - motion.cell_length)
        where = where_text(where, width - row.cell_length - MOTION_WIDTH)
        return [Content.assemble(row, motion, (where, "" if symbol else "dim")).truncate(width, ellipsis=True)]
    indent = " " * (MARK_WIDTH + who_width + 2)
    place = Content.assemble(indent, (where_text(where, width - len(indent)), "dim"))
    rows = [Content.assemble(row, motion), *([place] if where else [])]
    return [one.truncate(width, ellipsis=True) for one in rows]


def who_text(group: Group, room: int) -> str:
    """`TP0-2,4-7`, or `127 workers` where the ranks make too long a text: the tree has them."""
    text = render(group.labels)
    return text if len(text) <= room else f"{len(group.labels)} {printable(group.kind).lower()}"


def where_text(frame: str, room: int) -> str:
    """`function (file:line)`; where there is no room for it, without the folders."""
    function, _, place = frame.partition(" (")
    return frame if len(frame) <= room or not place else f"{function} ({place.rpartition('/')[2]}"


def wait_rows(waits: Sequence[Wait], width: int) -> list[Content]:
    """`EngineCore → TP0-1  answer`, one row for those who wait for the same; whoever waits for nobody is bold."""
    sides = [(render(one.waiters), render(one.targets) or "GPU", one) for one in waits]
    room, target_room = (min(max((len(side[at]) for side in sides), default=0), width // 3) for at in (0, 1))
    return [
        Content.assemble(
            " " * MARK_WIDTH,
            cell(waiters, room),
            (" → ", "dim"),
            cell(targets, target_room, "bold" if one.is_end else ""),
            (f"   {printable(one.what)}", "dim"),
        ).truncate(width, ellipsis=True)
        for waiters, targets, one in sides
    ]


def trouble_rows(troubles: Sequence[tuple[str, str]], width: int) -> list[Content]:
    """(process, why there are no stacks of it), wrapped."""
    return [
        row
        for process, why in troubles
        for row in hanging(
            Content.assemble((" ✖ ", "bold $text-error"), (f"{printable(process)}  ", "bold")),
            Content.styled(printable(why), "$text-error"),
            width,
        )
    ]


# --- the tree ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Branch:
    """Calls that the same ranks have made, one inside the other, and where they part."""

    nodes: list[Node]
    branches: list["Branch"] = field(default_factory=list)


def branches(tree: Tree) -> list[Branch]:
    """The tree from the root on."""
    roots: list[Branch] = []
    path: list[Branch] = []
    for node in tree.nodes:
        while path and path[-1].nodes[-1].depth >= node.depth:
            path.pop()
        if path and path[-1].nodes[-1].members == node.members:
            path[-1].nodes.append(node)
            continue
        branch = Branch([node])
        (path[-1].branches if path else roots).append(branch)
        path.append(branch)
    return roots


@dataclass(frozen=True, slots=True)
class Call:
    """One line of the drawing."""

    text: str
    frame: Frame
    present: frozenset[str]
    is_first: bool
    """Of its branch."""


def calls(roots: Sequence[Branch], *, folded: bool) -> Iterator[Call]:
    """The lines of the drawing, without those calls that say little where it is folded."""
    yield from _calls(roots, "", folded)


def _calls(siblings: Sequence[Branch], indent: str, folded: bool) -> Iterator[Call]:
    parts = len(siblings) > 1 or bool(indent)
    for position, branch in enumerate(siblings):
        is_last = position == len(siblings) - 1
        lead, rest = (("└", " ") if is_last else ("├", "│")) if parts else ("", "")
        shown = [node for node in branch.nodes if not folded or not is_dull(branch, node, table())]
        shown = shown or branch.nodes[:1]
        before = branch.nodes[0].depth - 1
        for at, node in enumerate(shown):
            between = "⋯" if node.depth > before + 1 else "─" if parts and not at else " "
            text = f"{indent}{rest if at else lead}{between} {printable(last_name(node.frame.function))}"
            yield Call(text, node.frame, node.members, at == 0)
            before = node.depth
        yield from _calls(branch.branches, f"{indent}{rest}  ", folded)


def is_dull(branch: Branch, node: Node, known: FrameTable) -> bool:
    """A call that tells nothing: of Python's own library, a wrapper, or around the main loop; never a stack's end."""
    if node.ending:
        return False
    loops = [one.depth for one in branch.nodes if known.is_loop(one.frame, main=True)]
    around = bool(loops) and node.depth < loops[-1]
    return around or is_standard_library(node.frame.file) or node.frame.file in _WRAPPERS


def forest_rows(forest: Forest, width: int, *, by_line: bool, folded: bool) -> list[Content]:
    """A heading, and the tree below it."""
    tree = forest.tree(by_line=by_line)
    lines = list(calls(branches(tree), folded=folded))
    hidden = len(tree.nodes) - len(lines)
    folding = Content.styled(f"{plural(hidden, 'call')} folded" if hidden else "", "dim")
    who = Content.styled(render(tree.members), "bold") if len(tree.members) > 1 else Content("")
    heading = joined([Content.styled(f" {printable(forest.title)}", "bold $text-accent"), who, folding], "  ")
    return [heading.truncate(width, ellipsis=True), *call_rows(forest, lines, width)]


def call_rows(forest: Forest, lines: Sequence[Call], width: int) -> Iterator[Content]:
    """Call, place and ranks side by side; where there is not room for all, places lose their beginnings."""
    ranks = [rank_mark(forest, line) for line in lines] if len(forest.members) > 1 else [Content("")] * len(lines)
    places = [place_text(line.frame, short=width < WIDE) for line in lines]
    call_width = min(max((len(line.text) for line in lines), default=0), width * 45 // 100)
    rank_width = min(max((mark.cell_length for mark in ranks), default=0), width * 36 // 100)
    place_width = min(max(map(len, places), default=0), width - MARK_WIDTH - call_width - rank_width - 4)
    for line, mark, place in zip(lines, ranks, places, strict=True):
        dull = "dim" if is_standard_library(line.frame.file) else ""
        place = place if len(place) <= place_width else "…" + place[len(place) - place_width + 1 :]
        yield Content.assemble(
            " " * MARK_WIDTH,
            cell(line.text, call_width, dull),
            "  ",
            cell(place, place_width, "dim"),
            "  ",
            mark.truncate(rank_width, ellipsis=True),
        )


def rank_mark(forest: Forest, line: Call) -> Content:
    """Who is there, and who of the same kind is not; louder where ranks part."""
    absent = frozenset(forest.members) - line.present
    is_named = line.present <= forest.looks.keys()
    symbol, style = forest.looks[min(line.present)] if is_named else ODD if line.present <= forest.odd else ("", "")
    loud = f"bold {style}" if symbol else "bold" if line.is_first and absent else "" if absent else "dim"
    mark = f"{symbol} " if symbol else "  "
    there, missing = rank_texts(line.present, absent)
    return Content.assemble((f"{mark}{there}", loud), (f"  {missing}" if missing else "", "dim"))


def rank_texts(present: frozenset[str], absent: frozenset[str]) -> tuple[str, str]:
    """`TP0-2,4-7` and `not TP3`; of many ranks only those that are fewer: `all but DP9_TP5`, or `not 127 others`."""
    there, missing = render(present), render(absent)
    if len(there) > LONGEST_RANKS and 0 < len(absent) < len(present):
        return f"all but {missing}", ""
    if len(missing) > LONGEST_RANKS:
        missing = f"{len(absent)} others"
    return there, f"not {missing}" if absent else ""


def place_text(frame: Frame, *, short: bool) -> str:
    """`file:line`; without the line where the ranks do not share it."""
    file = frame.file.rpartition("/")[2] if short else frame.file
    return printable(f"{file}:{frame.line}" if frame.line else file)
