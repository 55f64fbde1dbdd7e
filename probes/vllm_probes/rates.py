"""What happened between two looks at /metrics."""

from collections.abc import Sequence

import msgspec

from vllm_probes.events import EndpointSampled
from vllm_probes.rows import EngineSample


class EngineRates(msgspec.Struct, kw_only=True):
    """Rates between two looks at /metrics, summed over the engines. None: unknown."""

    mono: float
    tokens_per_s: float | None = None
    running: float | None = None
    waiting: float | None = None
    ttft_s: float | None = None
    """Mean over the requests that got their first token in between."""
    tpot_s: float | None = None


def engine_rates(before: EndpointSampled, after: EndpointSampled) -> EngineRates:
    """What happened between two looks; a counter that fell (a restarted server) gives None."""
    elapsed_s = after.mono - before.mono
    tokens = _increase(before, after, "generation_tokens")
    return EngineRates(
        mono=after.mono,
        tokens_per_s=tokens / elapsed_s if tokens is not None and elapsed_s > 0 else None,
        running=total(after.engines, "running"),
        waiting=total(after.engines, "waiting"),
        ttft_s=_mean(before, after, "ttft"),
        tpot_s=_mean(before, after, "tpot"),
    )


def total(engines: Sequence[EngineSample], field: str) -> float | None:
    """Over the engines that tell; None where none does."""
    values = [value for engine in engines if (value := getattr(engine, field)) is not None]
    return sum(values) if values else None


def _increase(before: EndpointSampled, after: EndpointSampled, field: str) -> float | None:
    old, new = total(before.engines, field), total(after.engines, field)
    return new - old if old is not None and new is not None and new >= old else None


def _mean(before: EndpointSampled, after: EndpointSampled, histogram: str) -> float | None:
    count = _increase(before, after, f"{histogram}_count")
    sum_s = _increase(before, after, f"{histogram}_sum_s")
    return sum_s / count if count and sum_s is not None else None
