"""Everything about the launch that the main screen has only a word for."""

import shlex
import time
from collections.abc import Iterator, Sequence

from textual.binding import Binding
from textual.content import Content

from vllm_probes.launch.levers import unset_line
from vllm_probes.model import AttemptModel
from vllm_probes.rows import Change
from vllm_tui.format import duration, ending, state_word
from vllm_tui.screens.page import Page
from vllm_tui.situation import Situation, lasted_s
from vllm_tui.widgets.rows import entry


class DetailsPage(Page):
    """Command, changes, debug settings with their costs, attempts and troubles."""

    BINDINGS = [Binding("u", "copy_unset", "copy unset", show=False)]

    def keys(self) -> Sequence[tuple[str, str]]:
        inherited = unset_line(self._situation.model.debug_settings)
        return (("u", "copy the unset line"),) if inherited else ()

    def page_title(self) -> Content:
        return Content.styled("Details", "bold")

    def page_rows(self, width: int) -> list[Content]:
        sections = (launch_rows, setting_rows, attempt_rows, trouble_rows)
        return [row for section in sections for row in section(self._situation, width)]

    def action_copy_unset(self) -> None:
        line = unset_line(self._situation.model.debug_settings)
        if line:
            self.app.copy_to_clipboard(line)
        self.app.notify(f"Copied: {line}" if line else "No debug variable came from the shell.", markup=False)


def heading(text: str) -> list[Content]:
    return [Content(""), Content.styled(f" {text}", "bold")]


def launch_rows(situation: Situation, width: int) -> Iterator[Content]:
    model, attempt = situation.model, situation.attempt
    yield from heading("Launch")[1:]
    command = attempt.launch.command if attempt else model.command
    yield from entry("command", shlex.join(command), width)
    yield from entry("folder", model.cwd, width)
    yield from entry("session", model.session, width)
    yield from entry("host", model.node, width)
    for change in attempt.launch.changes if attempt else []:
        yield from entry("changed", change_text(change), width)


def change_text(change: Change) -> str:
    """`CUDA_LAUNCH_BLOCKING: not set → 1`."""
    if change.before is None and change.after is not None:
        return f"+ {change.name} {change.after}".rstrip()
    if change.after is None:
        return f"- {change.name} {change.before or ''}".rstrip()
    return f"~ {change.name}: {change.before} → {change.after}"


def setting_rows(situation: Situation, width: int) -> Iterator[Content]:
    settings = situation.model.debug_settings
    yield from heading("Debug settings in force")
    if not settings:
        yield Content.styled("   none", "dim")
    for setting in settings:
        yield from entry(setting.origin, f"{setting.setting}: {setting.cost}", width)
    for checked in situation.attempt.arrived.values() if situation.attempt else []:
        mark = "✓ arrived" if checked.arrived else "✗ not in vLLM"
        yield from entry(mark, f"{checked.lever} ({checked.where})", width)
    if line := unset_line(settings):
        yield from entry("turn off", line, width)


def attempt_rows(situation: Situation, width: int) -> Iterator[Content]:
    yield from heading("Attempts")
    for attempt in situation.model.attempts:
        at = time.strftime("%H:%M:%S", time.localtime(attempt.started))
        yield from entry(f"{attempt.number}  {at}", attempt_text(attempt), width)


def attempt_text(attempt: AttemptModel) -> str:
    """`eager · CRASHED · ended with code 1 after 12 s`."""
    parts = [", ".join(attempt.launch.levers) or "as typed", state_word(attempt.state)]
    if attempt.ended:
        how = ending(attempt.ended.code, attempt.ended.signal)
        parts.append(f"{how} after {duration(lasted_s(attempt, attempt.ended))}")
    return " · ".join(parts)


def trouble_rows(situation: Situation, width: int) -> Iterator[Content]:
    if situation.model.troubles:
        yield from heading("Troubles of vllm-tui itself")
    for trouble in situation.model.troubles:
        yield from entry(trouble.severity, f"{trouble.what} {trouble.hint}", width)
