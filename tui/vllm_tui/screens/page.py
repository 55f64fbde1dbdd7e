"""A page over the main screen: a title row, text to scroll, Esc goes back."""

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.events import Resize
from textual.screen import Screen

from vllm_tui.situation import Situation
from vllm_tui.widgets.header import Header
from vllm_tui.widgets.rows import Rows, Title
from vllm_tui.widgets.text_view import TextView


class Page(Screen[None]):
    """Subclasses say what stands on it for a situation and a width."""

    BINDINGS = [
        Binding("escape", "app.pop_screen", "back", show=False),
        Binding("g", "scroll_to_end(False)", "top", show=False),
        Binding("G", "scroll_to_end(True)", "end", show=False),
    ]

    def __init__(self, situation: Situation) -> None:
        super().__init__()
        self._situation = situation

    def page_title(self) -> Content:
        raise NotImplementedError

    def page_rows(self, width: int) -> list[Content]:
        raise NotImplementedError

    def keys(self) -> Sequence[tuple[str, str]]:
        """(key, label) of what can be done here."""
        return (("Esc", "back"), ("↑ ↓ PgUp PgDn g G", "scroll"))

    def compose(self) -> ComposeResult:
        yield Header(id="header")
        yield Title(id="page-title")
        yield TextView(id="page-text")
        yield Rows(id="page-keys")

    def on_mount(self) -> None:
        self.query_one(Header).show(self._situation)
        self.query_one(TextView).focus()

    def on_resize(self, event: Resize) -> None:
        self.fill(event.size.width)

    def show(self, situation: Situation) -> None:
        """Another moment; only pages that live draw themselves anew."""
        self._situation = situation
        if self.is_mounted:
            self.query_one(Header).show(situation)

    def fill(self, width: int) -> None:
        """Write the page anew."""
        entries = [Content.assemble((key, "bold $text-accent"), " ", label) for key, label in self.keys()]
        self.query_one("#page-title", Title).show(self.page_title())
        self.query_one(TextView).show_rows(self.page_rows(max(20, width - 3)))
        self.query_one("#page-keys", Rows).show_rows([Content.assemble(" ", Content("   ").join(entries))])

    def action_scroll_to_end(self, bottom: bool) -> None:
        view = self.query_one(TextView)
        (view.scroll_end if bottom else view.scroll_home)(animate=False)
