"""What processes do and which of them hold the others up, as every part of the screen tells it."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from vllm_probes.events import DoingChanged, VerdictChanged
from vllm_probes.model import AttemptModel
from vllm_probes.rates import EngineRates
from vllm_probes.rows import ProcessDoing
from vllm_tui.situation import Situation, from_unix_s

LOOK_LASTS_S = 40.0
"""While a run is quiet its stacks are looked at every 30 s at least, which may take some seconds."""


def verdict_look(verdict: VerdictChanged) -> tuple[str, str]:
    """(symbol, style) of a verdict and of the processes that it names."""
    return ("▲", "$text-warning") if verdict.health == "suspect" else ("✖", "$text-error")


def culprit_looks(attempt: AttemptModel | None) -> dict[int, tuple[str, str]]:
    """(symbol, style) of each process that the verdict names, by pid."""
    verdict = attempt.verdict if attempt else None
    return {one.pid: verdict_look(verdict) for one in verdict.culprits} if verdict else {}


def doings_now(situation: Situation) -> Mapping[int, ProcessDoing]:
    """What each process does, by pid; empty as soon as the look that showed it is outdated."""
    attempt = situation.attempt
    told = attempt.doing if attempt else None
    if attempt is None or told is None or attempt.ended is not None:
        return {}
    stopped_since = attempt.stop is not None and attempt.stop.mono > told.mono
    too_old = situation.now - told.mono > LOOK_LASTS_S
    if stopped_since or too_old or _tokens_moved(situation.model.rates, told):
        return {}
    return {one.pid: one for one in told.processes}


def _tokens_moved(rates: Iterable[EngineRates], told: DoingChanged) -> bool:
    """Since that look: a look by hand at a run that gets on is followed by nothing else."""
    return any(after.tokens_per_s for before, after in pairwise(rates) if before.mono >= told.mono)


def doing_s(situation: Situation, doing: ProcessDoing) -> float:
    """For how long, up to now."""
    told = situation.attempt.doing if situation.attempt else None
    return from_unix_s(doing.since, situation.now, told) if told else 0.0
