"""Calls the user to the terminal when a verdict becomes `stalled`."""

from typing import Literal

from vllm_probes.events import Event, ModelRestored, VerdictChanged
from vllm_probes.model import SessionModel
from vllm_tui.format import printable

Notify = Literal["bell", "osc9", "off"]


class Alarm:
    """Once a hang: a verdict that wavers between `suspect` and `stalled` calls nobody twice."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._called = False

    def take(self, event: Event, model: SessionModel) -> str:
        """What to write to the terminal for one event; the `model` has it already. Often nothing.

        What had happened before the view was there calls nobody: it is on the screen that the user opens.
        """
        verdict = model.attempt.verdict if model.attempt else None
        if verdict is None or verdict.health == "ok":
            self._called = False
        if verdict is None or verdict.health != "stalled" or self._called:
            return ""
        self._called = True
        if isinstance(event, ModelRestored):
            return ""
        return self._call(model.name, verdict)

    def _call(self, session: str, verdict: VerdictChanged) -> str:
        """BEL, or OSC 9, which terminals show as a notification of the desktop."""
        match self._notify:
            case "bell":
                return "\a"
            case "osc9":
                return f"\x1b]9;{printable(f'vLLM stalled ({session}): {verdict.summary}')}\a"
        return ""
