"""Rows of text that repaint one by one, and the few ways to put a row together."""

from collections.abc import Sequence

from textual.app import RenderResult
from textual.content import Content
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.visual import Visual
from textual.widget import Widget

from vllm_tui.format import printable
from vllm_tui.situation import Situation

LABEL_WIDTH = 14


class Rows(Widget):
    """A block of text, one `Content` a row; a row that did not change is not drawn again."""

    DEFAULT_CSS = """
    Rows { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._rows: list[Content] = []

    def rows(self, width: int) -> list[Content]:
        """The text for a width in cells; subclasses say what it is."""
        return self._rows

    def show_rows(self, rows: Sequence[Content]) -> None:
        """Show these rows from now on."""
        before, self._rows = self._rows, list(rows)
        if len(before) != len(self._rows):
            self.refresh(layout=True)
            return
        for y, (old, new) in enumerate(zip(before, self._rows, strict=True)):
            if not old.is_same(new):
                self.refresh(Region(0, y, self.size.width, 1))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.rows(width))

    def render(self) -> RenderResult:
        return Content("\n").join(self._rows)

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        strips = Visual.to_strips(self, self._rows[y], width, 1, self.visual_style, pad=True)
        return strips[0] if strips else Strip.blank(width, self.rich_style)


class Panel(Rows):
    """Rows that follow from the situation and the width."""

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

    def on_resize(self) -> None:
        self.show(self._situation)


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


def entry(label: str, text: str, width: int, style: str = "") -> list[Content]:
    """A label with text of unknown origin wrapped beside it."""
    lines = Content.styled(printable(text), style).wrap(max(20, width - LABEL_WIDTH - 4)) or [Content("")]
    labels = [cell(label, LABEL_WIDTH, "dim"), *[cell("", LABEL_WIDTH)] * (len(lines) - 1)]
    return [Content.assemble("   ", head, line) for head, line in zip(labels, lines, strict=True)]
