"""A question in the middle of the screen, answered with one key."""

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Key
from textual.screen import ModalScreen
from textual.style import Style
from textual.widgets import Static

from vllm_tui.widgets.rows import Rows


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: the keys that give it, the first of which is shown, and what the dialog returns."""

    keys: str
    label: str
    value: str


class Question(ModalScreen[str | None]):
    """Returns the value of the choice, or None where the user thought better of it."""

    BINDINGS = [("escape,ctrl+c", "dismiss(None)", "Cancel")]

    def __init__(self, title: str, body: Sequence[Content], choices: Sequence[Choice]) -> None:
        super().__init__()
        self._title, self._body, self._choices = title, body, choices

    def compose(self) -> ComposeResult:
        with Vertical(id="question"):
            yield Static(Content.styled(self._title, "bold"), id="question-title")
            yield Static(Content("\n").join(self._body), id="question-body")
            yield ChoiceRow(self._choices)

    def on_key(self, event: Key) -> None:
        for choice in self._choices:
            if event.key in choice.keys.split(","):
                event.stop()
                self.dismiss(choice.value)
                return

    def action_choose(self, value: str) -> None:
        self.dismiss(value)


class ChoiceRow(Rows):
    """The keys of a question; each can be clicked too."""

    auto_links = False

    def __init__(self, choices: Sequence[Choice]) -> None:
        super().__init__(id="question-choices")
        entries = [
            choice_entry(choice.keys.partition(",")[0], choice.label, f"screen.choose('{choice.value}')")
            for choice in choices
        ]
        entries.append(choice_entry("Esc", "cancel", "screen.dismiss(None)"))
        self.show_rows([Content("   ").join(entries)])


def choice_entry(key: str, label: str, action: str) -> Content:
    text = Content.assemble((key.capitalize() if len(key) > 1 else key, "bold $text-accent"), " ", label)
    return text.stylize(Style.from_meta({"@click": action}))
