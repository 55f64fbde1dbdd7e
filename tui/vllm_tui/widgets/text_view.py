"""Many rows of text to scroll through, of which only those on the screen are rendered."""

from collections.abc import Sequence

from textual.content import Content
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.visual import Visual


class TextView(ScrollView):
    """A page of rows; Textual's own keys scroll it."""

    DEFAULT_CSS = """
    TextView { text-wrap: nowrap; height: 1fr; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: list[Content] = []

    def show_rows(self, rows: Sequence[Content]) -> None:
        """Show these rows from now on; the place stays where it is."""
        self._rows = list(rows)
        self.virtual_size = Size(max((row.cell_length for row in rows), default=0), len(rows))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        left, top = self.scroll_offset
        width = self.scrollable_content_region.width
        if top + y >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        full = max(self.virtual_size.width, width)
        strips = Visual.to_strips(self, self._rows[top + y], full, 1, self.visual_style, pad=True)
        return strips[0].crop(left, left + width) if strips else Strip.blank(width, self.rich_style)
