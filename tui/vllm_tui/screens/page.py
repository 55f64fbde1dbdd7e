"""A page over the main screen: a title row, text to scroll, Esc goes back."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.events import Resize
from textual.screen import Screen

from vllm_tui.actions import Group
from vllm_tui.situation import Situation
from vllm_tui.widgets.header import Header
from vllm_tui.widgets.rows import Rows, Title
from vllm_tui.widgets.text_view import TextView


class Page(Screen[None]):
    """Subclasses say what stands on it for a situation and a width."""

    BINDINGS = [
        Binding("escape,q,ctrl+c", "app.pop_screen", "back", show=False),
        Binding("g", "scroll_to_end(False)", "top", show=False),
        Binding("G", "scroll_to_end(True)", "end", show=False),
    ]

    group: ClassVar[Group | None] = None
    """Of the keys that work here only."""

    def __init__(self, situation: Situation) -> None:
        super().__init__()
        self._situation = situation
        self._header = Header(id="header")
        self._title = Title(id="page-title")
        self._text = TextView(id="page-text")
        self._keys = Rows(id="page-keys")

    def page_title(self) -> Content:
        raise NotImplementedError

    def page_rows(self, width: int) -> list[Content]:
        raise NotImplementedError

    def keys(self) -> Sequence[tuple[str, str]]:
        """(key, label) of what can be done on this page only."""
        return ()

    def compose(self) -> ComposeResult:
        yield from (self._header, self._title, self._text, self._keys)

    def on_mount(self) -> None:
        self._header.show(self._situation)
        self._text.focus()

    def on_resize(self, event: Resize) -> None:
        self.fill(event.size.width)

    def show(self, situation: Situation) -> None:
        """Another moment; only pages that live draw themselves anew."""
        self._situation = situation
        if self.is_mounted:
            self._header.show(situation)

    def fill(self, width: int) -> None:
        """Write the page anew."""
        keys = (("Esc", "back"), *self.keys(), ("↑ ↓ PgUp PgDn g G", "scroll"))
        self._title.show(self.page_title())
        self._text.show_rows(self.page_rows(max(20, width - 3)))
        self._keys.show_rows([key_row(keys, width)])

    def save(self, path: Path, text: str, instead: str) -> None:
        """Write a file and say where, or why not and what to do `instead`."""
        try:
            path.write_text(text, "utf-8", errors="replace")
        except OSError as error:
            self.app.notify(f"Cannot write {path}: {error.strerror}. {instead}", severity="error", markup=False)
            return
        self.app.notify(f"Saved as {path}", markup=False)

    def action_scroll_to_end(self, bottom: bool) -> None:
        (self._text.scroll_end if bottom else self._text.scroll_home)(animate=False)


def key_row(keys: Sequence[tuple[str, str]], width: int) -> Content:
    """As many keys as fit; the help has them all."""
    row = Content("")
    for key, label in keys:
        entry = Content.assemble("  " if row else " ", (key, "bold $text-accent"), " ", label)
        if row.cell_length + entry.cell_length > width:
            break
        row += entry
    return row
