"""A question in the middle of the screen, answered with one key."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.events import Key
from textual.screen import ModalScreen
from textual.style import Style
from textual.widgets import Static

from vllm_tui.widgets.rows import Rows

Body = Callable[[int], list[Content]]
"""The rows of a text for a width in cells."""
GAP = "   "


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: the keys that give it, the first of which is shown, and what the dialog returns."""

    keys: str
    label: str
    value: str


class Question(ModalScreen[str | None]):
    """Returns the value of the choice, or None where the user thought better of it."""

    BINDINGS = [("escape,ctrl+c", "dismiss(None)", "Cancel")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]

    def __init__(self, title: str, body: Body, choices: Sequence[Choice]) -> None:
        super().__init__()
        self._title, self._body, self._choices = title, body, choices

    def compose(self) -> ComposeResult:
        with Vertical(id="question"):
            yield Static(Content.styled(self._title, "bold"), id="question-title")
            with VerticalScroll(id="question-body"):
                yield BodyRows(self._body)
            yield ChoiceRows(self._choices)

    def on_key(self, event: Key) -> None:
        for choice in self._choices:
            if event.key in choice.keys.split(","):
                event.stop()
                self.dismiss(choice.value)
                return

    def action_choose(self, value: str) -> None:
        self.dismiss(value)


class BodyRows(Rows):
    """The text of a question, wrapped to the width that it gets."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self._body = body

    def rows(self, width: int) -> list[Content]:
        return self._body(width)


class ChoiceRows(Rows):
    """The keys of a question, in as many rows as they need; each can be clicked too."""

    auto_links = False

    def __init__(self, choices: Sequence[Choice]) -> None:
        super().__init__(id="question-choices")
        self._entries = [
            choice_entry(choice.keys.partition(",")[0], choice.label, f"screen.choose('{choice.value}')")
            for choice in choices
        ]
        self._entries.append(choice_entry("Esc", "cancel", "screen.dismiss(None)"))

    def rows(self, width: int) -> list[Content]:
        return list(side_by_side(self._entries, width))


def side_by_side(entries: Sequence[Content], width: int) -> Iterator[Content]:
    """As many entries in a row as fit, at least one."""
    row = entries[0]
    for entry in entries[1:]:
        longer = Content.assemble(row, GAP, entry)
        if longer.cell_length > width:
            yield row
            longer = entry
        row = longer
    yield row


def choice_entry(key: str, label: str, action: str) -> Content:
    text = Content.assemble((key.capitalize() if len(key) > 1 else key, "bold $text-accent"), " ", label)
    return text.stylize(Style.from_meta({"@click": action}))
