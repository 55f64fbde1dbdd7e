"""The last row of the screen: keys and what they do, those that cannot work now greyed."""

from textual.content import Content
from textual.events import Click

from vllm_tui.actions import Action, key_bar
from vllm_tui.widgets.rows import Panel


class KeyBar(Panel):
    """A key that is greyed can still be pressed or clicked, and then says why it does not work."""

    def rows(self, width: int) -> list[Content]:
        offered = key_bar(self._situation, width)
        return [Content.assemble(" ", Content("  ").join(self._entry(action) for action in offered))]

    def _entry(self, action: Action) -> Content:
        if action.reason(self._situation):
            return Content.styled(f"{action.key_label} {action.label}", "$foreground 40%")
        return Content.assemble((action.key_label, "bold $text-accent"), " ", action.label)

    async def on_click(self, event: Click) -> None:
        position = 1
        for action in key_bar(self._situation, self.size.width):
            end = position + len(action.key_label) + len(action.label) + 1
            if position <= event.x < end:
                await self.app.run_action(f"app.perform('{action.id}')")
            position = end + 2
