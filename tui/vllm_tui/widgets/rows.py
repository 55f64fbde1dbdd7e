"""Rows of text that repaint one by one, and the few ways to put a row together."""

import itertools
from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.segment import Segment
from textual.content import Content
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.visual import Visual
from textual.widget import Widget

from vllm_tui.format import printable
from vllm_tui.situation import Situation

LABEL_WIDTH = 14
MIN_TEXT_WIDTH = 10


class Rows(Widget):
    """A block of text, one `Content` a row; a row that did not change is not drawn again."""

    DEFAULT_CSS = """
    Rows { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._rows: list[Content] = []
        self._width = 0
        """For which the rows were made; those of another width are made anew when they are drawn."""
        self._row_count = 0
        """What the last layout made room for, or the next one is asked to: one can come between two shows."""
        self._strips: dict[int, Strip] = {}

    def rows(self, width: int) -> list[Content]:
        """The text for a width in cells; subclasses say what it is."""
        return self._rows

    def show_rows(self, rows: Sequence[Content]) -> None:
        """Show these rows from now on."""
        before, self._rows = self._rows, list(rows)
        if self._width != self.size.width:  # as of a panel that was hidden
            self._width = self.size.width
            self._strips.clear()
        if not len(before) == len(self._rows) == self._row_count:
            self._row_count = len(self._rows)
            self._strips.clear()
            self.refresh(layout=True)
        elif self.size.width:
            self._refresh_rows(before)

    def _refresh_rows(self, before: Sequence[Content]) -> None:
        for y, (old, new) in enumerate(zip(before, self._rows, strict=True)):
            if not old.is_same(new):
                self._refresh_row(y)

    def _refresh_row(self, y: int) -> None:
        """Draw what differs in a row."""
        before = self._strips.pop(y, None)
        after = self.render_line(y)
        start, end = difference(before, after) if before else (0, after.cell_length)
        if end > start:
            self.refresh(Region(start, y, end - start, 1))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        self._row_count = len(self.rows(width))
        return self._row_count

    def notify_style_update(self) -> None:
        self._strips.clear()
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        if self._width != self.size.width:
            self._width = self.size.width
            self._rows = self.rows(self._width)
            self._strips.clear()
        if y not in self._strips:
            self._strips[y] = self._render_row(y)
        return self._strips[y]

    def _render_row(self, y: int) -> Strip:
        width = self.size.width
        row = self._rows[y] if y < len(self._rows) else Content("")
        strips = Visual.to_strips(self, row, width, 1, self.visual_style, pad=True)
        return strips[0] if strips else Strip.blank(width, self.rich_style)


def difference(before: Strip, after: Strip) -> tuple[int, int]:
    """The cells from start to end outside of which two strips of one width are the same."""
    start = _equal_cells(before, after)
    end = after.cell_length - _equal_cells(reversed(before), reversed(after))
    return (start, end) if before.cell_length == after.cell_length else (0, after.cell_length)


def _equal_cells(before: Iterable[Segment], after: Iterable[Segment]) -> int:
    """Cells of the equal segments at the beginning of both."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    return sum(segment.cell_length for segment, _ in pairs)


class Panel(Rows):
    """Rows that follow from the situation and the width."""

    counts: ClassVar[bool] = False
    """Something on it goes on with the clock."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._situation = Situation()

    def show(self, situation: Situation) -> None:
        """Show another moment; a panel with nothing to say takes no place."""
        self._situation = situation
        rows = self.rows(self.size.width)
        if self.display is not bool(rows):
            self.display = bool(rows)
        self.show_rows(rows)


class Title(Rows):
    """The name of what is below it, as a line across the screen."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._title = Content("")

    def rows(self, width: int) -> list[Content]:
        return [rule(self._title, width)]

    def show(self, title: Content) -> None:
        """Show another title."""
        self._title = title
        self.show_rows(self.rows(self.size.width))


def spread(left: Content, right: Content, width: int) -> Content:
    """`left` at the left edge, `right` at the right one; `left` gives way where both do not fit."""
    room = max(0, width - right.cell_length)
    return Content.assemble(left.truncate(max(0, room - 1), ellipsis=True, pad=True), " " if room else "", right)


def rule(title: Content, width: int) -> Content:
    """The title of a panel, drawn as a line across it."""
    head = Content.assemble(("── ", "$secondary 60%"), title, " ")
    return Content.assemble(head, ("─" * max(0, width - head.cell_length), "$secondary 60%"))


def joined(parts: Sequence[Content | str], separator: str = " · ") -> Content:
    """Those parts that say something, with a dim separator between them."""
    contents = [Content(part) if isinstance(part, str) else part for part in parts]
    return Content.styled(separator, "dim").join([content for content in contents if content])


def cell(text: str, width: int, style: str = "", *, right: bool = False) -> Content:
    """A table cell of exactly `width` cells."""
    content = Content(text).truncate(width, ellipsis=True)
    padding = Content(" " * (width - content.cell_length))
    if style:
        content = content.stylize(style)
    return padding + content if right else content + padding


def entry(label: str, text: str, width: int) -> list[Content]:
    """A label with text of unknown origin wrapped beside it."""
    return hanging(Content.assemble("   ", cell(label, LABEL_WIDTH, "dim")), Content(printable(text)), width)


def hanging(head: Content, text: Content, width: int) -> list[Content]:
    """`head`, and `text` wrapped beside it."""
    lines = text.wrap(max(MIN_TEXT_WIDTH, width - head.cell_length - 1)) or [Content("")]
    blank = Content(" " * head.cell_length)
    return [Content.assemble(blank if index else head, line) for index, line in enumerate(lines)]
