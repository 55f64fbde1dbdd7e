"""One row to type a text into that is looked for."""

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static


class SearchBar(Horizontal):
    """There while a search is typed; `hint` says what its keys do."""

    def __init__(self, needle: str, hint: str) -> None:
        super().__init__(id="search")
        self._needle, self._hint = needle, hint

    def compose(self) -> ComposeResult:
        yield Static(Content.styled(" /", "bold"))
        yield SearchLine(self._needle, self._hint)


class SearchLine(Input):
    """The text to look for; Esc closes it."""

    BINDINGS = [("escape", "close", "close")]

    class Closed(Message):
        """The user does not want to search."""

    def __init__(self, needle: str, hint: str) -> None:
        super().__init__(value=needle, placeholder=hint)
        self.cursor_blink = False

    def on_mount(self) -> None:
        self.focus()

    def action_close(self) -> None:
        self.post_message(self.Closed())
