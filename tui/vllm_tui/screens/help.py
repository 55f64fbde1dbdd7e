"""Every key and what it does; those that do not work now say why."""

from collections import Counter
from collections.abc import Sequence

from textual.content import Content

from vllm_tui.actions import GROUPS, Action, in_group
from vllm_tui.screens.page import Page
from vllm_tui.widgets.rows import cell, hanging

KEY_WIDTH = 9
MANY = 3


class HelpPage(Page):
    """Made from the table of actions."""

    def page_title(self) -> Content:
        return Content.styled("Keys", "bold")

    def page_rows(self, width: int) -> list[Content]:
        rows: list[Content] = []
        for group in GROUPS:
            if actions := list(in_group(group, self._situation)):
                shared = shared_reason([action.reason(self._situation) for action in actions])
                rows += [Content(""), Content.styled(f" {group}", "bold")]
                if shared:
                    note = Content.styled(f"Not now, where it is grey: {shared}", "$text-warning")
                    rows += hanging(Content("   "), note, width)
                rows += [row for action in actions for row in self._entry(action, shared, width)]
        return rows[1:]

    def _entry(self, action: Action, shared: str | None, width: int) -> list[Content]:
        reason = action.reason(self._situation)
        text = Content.styled(action.help, "$foreground 50%" if reason else "")
        if reason and reason != shared:
            text = Content.assemble(text, (f" — not now: {reason}", "$text-warning"))
        return hanging(
            Content.assemble("   ", cell(action.key_label, KEY_WIDTH, "" if reason else "bold $text-accent")),
            text,
            width,
        )


def shared_reason(reasons: Sequence[str | None]) -> str | None:
    """The reason that so many keys share that it is said once for all of them."""
    counts = Counter(reason for reason in reasons if reason)
    return next((reason for reason, count in counts.most_common(1) if count >= MANY), None)
