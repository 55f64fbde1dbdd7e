"""What happened between two looks at /metrics."""

from collections.abc import Sequence

import msgspec

from vllm_probes.events import EndpointSampled
from vllm_probes.rows import EngineSample


class EngineRates(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What happened between two looks at /metrics, all engines together. None: unknown."""

    mono: float
    tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    preemptions: float | None = None
    """How many in between."""
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """0 to 1, the mean of the engines."""
    ttft_s: float | None = None
    """Mean over the requests that got their first token in between."""
    tpot_s: float | None = None
    engines: dict[str, float | None] = {}
    """Tokens a second of each engine by its label; a single one has `tokens_per_s`."""


def engine_rates(before: EndpointSampled, after: EndpointSampled) -> EngineRates:
    """What happened between two looks; an engine whose counter fell (a restart) or that has just come tells nothing."""
    elapsed_s = after.mono - before.mono
    old, new = before.engines, after.engines
    return EngineRates(
        mono=after.mono,
        tokens_per_s=_per_s(old, new, "generation_tokens", elapsed_s),
        prompt_tokens_per_s=_per_s(old, new, "prompt_tokens", elapsed_s),
        preemptions=_increase(old, new, "preemptions"),
        running=total(new, "running"),
        waiting=total(new, "waiting"),
        kv_usage=mean(new, "kv_usage"),
        ttft_s=_mean_s(old, new, "ttft"),
        tpot_s=_mean_s(old, new, "tpot"),
        engines={one.engine: _per_s(old, [one], "generation_tokens", elapsed_s) for one in new} if len(new) > 1 else {},
    )


def total(engines: Sequence[EngineSample], field: str) -> float | None:
    """Over the engines that tell; None where none does."""
    values = _known(engines, field)
    return sum(values) if values else None


def mean(engines: Sequence[EngineSample], field: str) -> float | None:
    """Over the engines that tell; None where none does."""
    values = _known(engines, field)
    return sum(values) / len(values) if values else None


def _known(engines: Sequence[EngineSample], field: str) -> list[float]:
    return [value for engine in engines if (value := getattr(engine, field)) is not None]


def _per_s(before: Sequence[EngineSample], after: Sequence[EngineSample], field: str, elapsed_s: float) -> float | None:
    increase = _increase(before, after, field)
    return increase / elapsed_s if increase is not None and elapsed_s > 0 else None


def _increase(before: Sequence[EngineSample], after: Sequence[EngineSample], field: str) -> float | None:
    """Of the engines that both looks know and whose counter did not fall; None where there is none."""
    old = {engine.engine: getattr(engine, field) for engine in before}
    pairs = [(old.get(engine.engine), getattr(engine, field)) for engine in after]
    increases = [now - then for then, now in pairs if then is not None and now is not None and now >= then]
    return sum(increases) if increases else None


def _mean_s(before: Sequence[EngineSample], after: Sequence[EngineSample], histogram: str) -> float | None:
    count = _increase(before, after, f"{histogram}_count")
    sum_s = _increase(before, after, f"{histogram}_sum_s")
    return sum_s / count if count and sum_s is not None else None
