"""Every key and what it does; those that do not work now say why."""

from textual.content import Content

from vllm_tui.actions import GROUPS, Action, in_group
from vllm_tui.screens.page import Page
from vllm_tui.widgets.rows import cell

KEY_WIDTH = 9


class HelpPage(Page):
    """Made from the table of actions."""

    def page_title(self) -> Content:
        return Content.styled("Keys", "bold")

    def page_rows(self, width: int) -> list[Content]:
        rows: list[Content] = []
        for group in GROUPS:
            if actions := list(in_group(group, self._situation)):
                rows += [Content(""), Content.styled(f" {group}", "bold")]
                rows += [row for action in actions for row in self._entry(action, width)]
        return rows[1:]

    def _entry(self, action: Action, width: int) -> list[Content]:
        reason = action.reason(self._situation)
        text = Content(action.help)
        if reason:
            text = Content.assemble(text.stylize("$foreground 50%"), (f" — not now: {reason}", "$text-warning"))
        lines = text.wrap(max(20, width - KEY_WIDTH - 4)) or [Content("")]
        heads = [cell(action.key_label, KEY_WIDTH, "bold $text-accent"), *[cell("", KEY_WIDTH)] * (len(lines) - 1)]
        return [Content.assemble("   ", head, line) for head, line in zip(heads, lines, strict=True)]
