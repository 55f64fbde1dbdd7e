"""What every part of the screen is told: the session's model, the clock, and how the view stands to the keeper."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vllm_probes.events import CommandEnded, Event
from vllm_probes.model import AttemptModel, SessionModel
from vllm_probes.rows import Hold, ProcessRef

Connection = Literal["waiting", "live", "lost", "recording"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How a recording is played."""

    paused: bool
    speed: float
    over: bool


@dataclass(frozen=True, slots=True)
class Situation:
    """One moment. `now` is CLOCK_MONOTONIC seconds of the node, or the time of the last event of a recording."""

    model: SessionModel = field(default_factory=SessionModel)
    now: float = 0.0
    connection: Connection = "waiting"
    readonly: bool = False
    pace: Pace | None = None
    blocked_levers: Mapping[str, str] = field(default_factory=dict)
    """Why a lever cannot be pulled with this command, by lever id."""

    @property
    def attempt(self) -> AttemptModel | None:
        return self.model.attempt

    @property
    def explained(self) -> AttemptModel | None:
        """The latest attempt whose end has findings."""
        return next((one for one in reversed(self.model.attempts) if one.exited and one.exited.findings), None)

    @property
    def leftovers(self) -> list[ProcessRef]:
        return self.attempt.leftovers if self.attempt else []

    @property
    def alive(self) -> bool:
        """Something of the tree still runs, as far as we know."""
        attempt = self.attempt
        if attempt is None or attempt.over:
            return False
        return attempt.ended is None or bool(attempt.leftovers)

    @property
    def command_runs(self) -> bool:
        """The command itself has not ended."""
        return self.attempt is not None and not self.attempt.over and self.attempt.ended is None

    @property
    def is_attached(self) -> bool:
        """Somebody else started it: it is only watched."""
        return self.attempt is not None and self.attempt.launch.attached_pid is not None

    @property
    def stopping(self) -> bool:
        """Somebody asked for the end and it has not come yet."""
        return self.alive and self.attempt is not None and self.attempt.stop is not None

    @property
    def holds(self) -> list[Hold]:
        """What a relaunch waits for; empty where none waits."""
        return self.attempt.gate.holds if self.attempt and self.attempt.gate else []

    @property
    def standing(self) -> str:
        """How the attempt stands, as the end of a sentence: questions are asked about this."""
        if self.attempt is None:
            return "nothing has been started"
        name = f"attempt {self.attempt.number}"
        if self.stopping:
            return f"{name} is being stopped"
        if self.leftovers:
            return f"{name} has ended and left processes behind"
        if self.holds:
            return f"{name} waits to be started again"
        return f"{name} runs" if self.alive else f"{name} has ended"

    @property
    def levers(self) -> list[str]:
        return self.attempt.launch.levers if self.attempt else []

    @property
    def up_s(self) -> float | None:
        """Seconds since the launch, or from the launch to the end."""
        if (attempt := self.attempt) is None:
            return None
        if attempt.ended:
            return lasted_s(attempt, attempt.ended)
        return (attempt.tree_ended.mono if attempt.tree_ended else self.now) - attempt.started_mono


def from_unix_s(time: float, until_mono: float, told: Event) -> float:
    """Seconds from a unix time to one of the monotonic clock, by an event that has both."""
    return until_mono - told.mono + told.time - time


def lasted_s(attempt: AttemptModel, ended: CommandEnded) -> float:
    """Seconds from the launch to the end of the command."""
    return end_mono(ended) - attempt.started_mono


def end_mono(ended: CommandEnded) -> float:
    """When the command ended; where nobody knows, when that was noticed."""
    return ended.mono if ended.ended_mono is None else ended.ended_mono
