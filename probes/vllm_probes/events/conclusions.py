"""What a judge made of observations: can be thrown away and recomputed."""

from typing import Literal

from vllm_probes.events.base import Conclusion, State
from vllm_probes.rows import Culprit, Evidence, Finding, ProcessDoing


class StateChanged(Conclusion, frozen=True, kw_only=True):
    state: State
    reason: str | None = None
    """In a few words, where the state alone does not tell."""


class PhaseChanged(Conclusion, frozen=True, kw_only=True):
    """A step of the start-up."""

    phase: str
    label: str
    line_number: int
    """Of the log; 0: something else showed it."""


class ProgressChanged(Conclusion, frozen=True, kw_only=True):
    """Progress that vLLM printed itself."""

    label: str
    done: float
    total: float
    eta: str | None = None


class Exited(Conclusion, frozen=True, kw_only=True):
    """The end of an attempt, root cause first."""

    code: int | None
    signal: int | None
    findings: list[Finding] = []


class LimitChanged(Conclusion, frozen=True, kw_only=True):
    """What keeps a serving run from being faster; never more than a hint."""

    limit: str | None
    """Name of the limit; None: nothing stands out."""
    summary: str = ""
    """One sentence."""
    evidence: list[Evidence] = []


class DoingChanged(Conclusion, frozen=True, kw_only=True):
    """What each process does; none: they get on, and what was said of them is over."""

    processes: list[ProcessDoing] = []


class DeadlineChanged(Conclusion, frozen=True, kw_only=True):
    """A time-out of vLLM itself that runs, or that runs no more."""

    name: str | None = None
    """The variable that sets it; None: none runs."""
    gives_up_mono: float | None = None
    """CLOCK_MONOTONIC seconds at which it ends."""
    what: str = ""
    """What vLLM does then, as half a sentence."""


class VerdictChanged(Conclusion, frozen=True, kw_only=True):
    """Whether the run gets on, and if not who holds it up."""

    health: Literal["ok", "suspect", "stalled", "dead"]
    kind: str | None = None
    """Of hang; None when ok."""
    culprits: list[Culprit] = []
    summary: str = ""
    """One sentence."""
    evidence: list[Evidence] = []
    since: float | None = None
    """Unix seconds of the last progress."""
