"""How the app was left."""

from dataclasses import dataclass
from typing import Literal

from vllm_probes.model import SessionModel

Leaving = Literal["stopped", "left_running", "ended", "keeper_lost", "refused"]


@dataclass(frozen=True, slots=True)
class AppResult:
    """How the app was left, and the last that was known."""

    leaving: Leaving
    model: SessionModel
