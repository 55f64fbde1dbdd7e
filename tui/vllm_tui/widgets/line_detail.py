"""One line of the log, whole and wrapped, with what its prefix says."""

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from vllm_probes.log.line import parse_line
from vllm_tui.widgets.log_style import process_style
from vllm_tui.widgets.rows import Title, joined


class LineDetail(VerticalScroll):
    """Below the log while it is open; follows the cursor."""

    def compose(self) -> ComposeResult:
        yield Title(id="line-detail-title")
        yield Static(id="line-detail-text")

    @property
    def is_open(self) -> bool:
        return not self.has_class("-closed")

    def open(self) -> None:
        self.remove_class("-closed")

    def close(self) -> None:
        self.add_class("-closed")

    def show(self, number: int, first: str, *more: str) -> None:
        """Show line `number` (from 1), and `more` of its record behind it."""
        parsed = parse_line(first)
        place = f"{parsed.file}:{parsed.line}" if parsed.file and parsed.line else parsed.file or ""
        title = joined(
            [
                Content.styled(f"Line {number:,}{f' +{len(more)}' if more else ''}", "bold"),
                Content.styled(parsed.process or "", process_style(parsed.process or "", parsed.rank)),
                f"pid {parsed.pid}" if parsed.pid else "",
                (parsed.level or "").upper(),
                parsed.stamp or "",
                place,
                Content.styled(f"{'Tab scrolls, ' if more else ''}y copies, Esc closes", "dim"),
            ]
        )
        self.query_one("#line-detail-title", Title).show(title)
        messages = [parsed.message or first, *(parse_line(line).message for line in more)]
        self.query_one("#line-detail-text", Static).update(Content("\n".join(messages)))
