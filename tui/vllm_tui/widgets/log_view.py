"""The log: rows of an index, rendered one by one as they come into view, with a cursor, or following the end."""

from textual.binding import Binding
from textual.cache import FIFOCache
from textual.content import Content
from textual.events import Click, MouseScrollDown, MouseScrollUp
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.style import Style
from textual.visual import Visual
from textual.widget import Widget

from vllm_probes.log.rows import LogLine, LogRows
from vllm_tui.widgets.log_style import gutter, left_out, styled_line

SIDE_STEP = 20
WHEEL_STEP = 3
DRAWN_ROWS = 500
"""Rows that are kept as they were drawn: a window that moves on by a few draws only those."""
COMPACT_BELOW_CELLS = 100


class LogView(Widget, can_focus=True):
    """A window on `LogRows`. While it follows, it moves on by a few rows at once: one row at a time would paint the
    whole window for every line, which is what a slow connection feels most."""

    DEFAULT_CSS = """
    LogView { height: 1fr; min-height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS = [
        Binding("up,k", "move(-1)", "line up", show=False),
        Binding("down,j", "move(1)", "line down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("left", "shift(-1)", "left", show=False),
        Binding("right", "shift(1)", "right", show=False),
    ]

    class Moved(Message):
        """The cursor or the window has moved, or following began or ended."""

        can_bubble = True

    class LineClicked(Message):
        """A line was clicked; the cursor is on it."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: LogRows | None = None
        self._count = 0
        self._top = 0
        self._height = 0
        """For which the window was made; one of another height is made anew when it is drawn."""
        self._left = 0
        self._needle = ""
        self._explanation = ""
        self._anchor: int | None = None
        """The line, from 0, that the user was at when the rows were replaced; its row may be found only later."""
        self._seen_line = 0
        """Lines before this one have been in the window."""
        self._generation = 0
        self._drawn: FIFOCache[tuple[LogLine, str, int, int], Strip] = FIFOCache(DRAWN_ROWS)
        """By line, needle, step to the side, and width."""
        self.cursor = 0
        self.following = True

    # --- what is shown --------------------------------------------------------------------------------------------

    def show(self, rows: LogRows) -> None:
        """Show another log, from its end."""
        self._rows, self._count, self._generation = rows, rows.line_count, rows.index.generation
        self._seen_line = 0
        self.follow()

    def replace(self, rows: LogRows) -> None:
        """Show other rows of the same log; unless it follows, the cursor stays at its line, or at the next one."""
        self._anchor = None if self.following else self.line
        self._rows, self._count = rows, rows.line_count
        self._go_to_anchor()
        self._settle()

    def grow(self) -> None:
        """The rows may have become more (or other ones, after a truncation)."""
        if self._rows is None:
            return
        before, self._count = self._count, self._rows.line_count
        if self._generation != self._rows.index.generation:
            self._generation, self._seen_line, self._anchor = self._rows.index.generation, 0, None
        if self._go_to_anchor() or self._count < before:
            self._settle()
        elif self.following and self._count > self._top + self.size.height:
            grown = self._count - before
            slack = max(0, self.size.height // 6 - grown)
            self._top = max(0, self._count - self.size.height + slack)
            self.refresh()
        else:  # the last row may have been unfinished
            self._refresh_rows(before - 1, self._count)
        self._see()
        if self.following:
            self.cursor = max(0, self._count - 1)

    def _go_to_anchor(self) -> bool:
        """Put the cursor on the row of the anchor, amid the window; True when it was elsewhere."""
        if self._anchor is None or self._rows is None:
            return False
        row = min(self._rows.row_from(self._anchor), max(0, self._count - 1))
        if row == self.cursor:
            return False
        self.cursor, self._top = row, max(0, row - self.size.height // 2)
        return True

    def explain(self, text: str) -> None:
        """Say why there is no row, where there is none."""
        if text != self._explanation:
            self._explanation = text
            self._refresh_rows(self._top, self._top + 1)

    def highlight(self, needle: str) -> None:
        """Make every occurrence of `needle` stand out."""
        self._needle = needle
        self.refresh()

    @property
    def highlighted(self) -> bool:
        """Something that is shown may stand out."""
        return bool(self._needle and self._count)

    @property
    def unseen_count(self) -> int:
        """Rows below the lowest one that has been in the window."""
        if self.following or self._rows is None:
            return 0
        return max(0, self._count - self._rows.row_from(self._seen_line))

    def _see(self) -> None:
        bottom = self._count if self.following else min(self._count, self._top + self.size.height)
        if self._rows and 0 < bottom <= self._rows.line_count:
            self._seen_line = max(self._seen_line, self._rows.line_of(bottom - 1) + 1)

    @property
    def line(self) -> int | None:
        """The line, from 0, under the cursor; where the rows do not have it, the one that the user was at."""
        if self._anchor is not None:
            return self._anchor
        return self._rows.line_of(self.cursor) if self._rows and self.cursor < self._rows.line_count else None

    def current(self) -> LogLine | None:
        """The line under the cursor."""
        lines = self._rows.read(self.cursor, 1) if self._rows and self._count else []
        return lines[0] if lines else None

    # --- moving ---------------------------------------------------------------------------------------------------

    def go_to(self, row: int, *, centred: bool = False) -> None:
        """Put the cursor on a row and the row into the window, with what surrounds it where it was not in it."""
        if not self._count:
            return
        self._see()
        self.following, self._anchor = False, None
        self.cursor = row
        if centred and not self._top <= row < self._top + self.size.height:
            self._top = row - self.size.height // 2
        self._settle()

    def go_to_line(self, line: int) -> None:
        """Put the cursor on a line, from 0, amid the window; on one that is not indexed yet, as soon as it is."""
        self.following, self._anchor = False, line
        self._go_to_anchor()
        self._settle()

    def follow(self) -> None:
        """Show the end and stay there."""
        self.following, self._anchor = True, None
        self._settle()

    def action_move(self, step: int) -> None:
        if not self._count or (self.following and step > 0):
            return
        if not self.following and self.cursor + step >= self._count:
            self.follow()
        else:
            self.go_to(self.cursor + step)

    def action_page(self, direction: int) -> None:
        step = max(1, self.size.height - 1) * direction
        self._top += step
        self.action_move(step)

    def action_shift(self, direction: int) -> None:
        self._left = max(0, self._left + direction * SIDE_STEP)
        self.refresh()
        self.post_message(self.Moved())

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        event.stop()
        self._scroll_window(-WHEEL_STEP)

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        event.stop()
        if self._count and not self.following:
            self._scroll_window(WHEEL_STEP)

    def _scroll_window(self, step: int) -> None:
        """Move the window; the cursor stays inside it."""
        last_top = max(0, self._count - self.size.height)
        if step > 0 and self._top + step >= last_top:
            self.follow()
            return
        self._top = max(0, min(self._top, last_top) + step)
        self.go_to(max(self._top, min(self.cursor, self._top + self.size.height - 1)))

    def on_click(self, event: Click) -> None:
        row = self._top + event.y
        if row < self._count:
            self.go_to(row)
            self.post_message(self.LineClicked())

    def _settle(self) -> None:
        """Bring cursor and window into the rows that there are, and draw."""
        self._fit()
        self.refresh()
        self.post_message(self.Moved())

    def _fit(self) -> None:
        self._height = self.size.height
        height = max(1, self._height)
        last = max(0, self._count - 1)
        if self.following:
            self.cursor, self._top = last, max(0, self._count - height)
        else:
            self.cursor = max(0, min(self.cursor, last))
            lowest = max(0, self._count - height)
            self._top = max(0, self.cursor - height + 1, min(self._top, self.cursor, lowest))
        self._see()

    # --- drawing --------------------------------------------------------------------------------------------------

    def _refresh_rows(self, first: int, end: int) -> None:
        top, bottom = max(first - self._top, 0), min(end - self._top, self.size.height)
        if bottom > top:
            self.refresh(Region(0, top, self.size.width, bottom - top))

    def render_line(self, y: int) -> Strip:
        if self._height != self.size.height:
            self._fit()
        width, row = self.size.width, self._top + y
        if not self._count and y == 0:
            return self._row(Content.styled(f" {self._explanation}", "dim"), self.visual_style)
        lines = self._rows.read(row, 1) if self._rows and row < self._count else []
        if not lines:
            return Strip.blank(width, self.rich_style)
        if row == self.cursor and not self.following:
            style = self.visual_style + self.get_visual_style("log--cursor", partial=True)
            return self._row(self._row_content(lines[0], "▌", width), style)
        key = lines[0], self._needle, self._left, width
        if (drawn := self._drawn.get(key)) is None:
            content = self._row_content(lines[0], gutter(lines[0].level), width)
            self._drawn[key] = drawn = self._row(content, self.visual_style)
        return drawn

    def notify_style_update(self) -> None:
        self._drawn.clear()
        super().notify_style_update()

    def _row(self, content: Content, style: Style) -> Strip:
        strips = Visual.to_strips(self, content, self.size.width, 1, style, pad=True)
        return strips[0] if strips else Strip.blank(self.size.width, self.rich_style)

    def _row_content(self, line: LogLine, edge: tuple[str, str] | str, width: int) -> Content:
        text = styled_line(line, self._needle, compact=width < COMPACT_BELOW_CELLS)
        note = left_out(line)
        room = width - 1 - len(note)
        shown = text[self._left : self._left + room + 1]
        if note:
            shown = shown.truncate(room, ellipsis=True, pad=True)
        return Content.assemble(edge, shown, (note, "bold $text-accent"))

    COMPONENT_CLASSES = {"log--cursor"}
