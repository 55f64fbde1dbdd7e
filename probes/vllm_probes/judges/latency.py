"""How long requests took in the last minute, from histograms that only ever grow.

A histogram counts since the server began, so that a request of an hour ago weighs as much as the last one. The
difference of two looks at it is a histogram of what was measured between them.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from vllm_probes.rows import LatencyName, LatencyWindow

WINDOW_S = 60.0

Buckets = Mapping[float, float]
"""Upper bound in seconds, the last one infinite -> how many measurements were at most that long."""
Histograms = Mapping[LatencyName, Buckets]
"""Those that a page has; all its engines together."""


class Look(NamedTuple):
    """The histograms of one page."""

    mono: float
    histograms: Histograms


def remember(looks: Sequence[Look], look: Look) -> tuple[Look, ...]:
    """The looks of the window that ends with this one, oldest first; after a restart of the server this one alone."""
    if looks and not _goes_on(looks[-1].histograms, look.histograms):
        return (look,)
    return (*(one for one in looks if look.mono - one.mono <= WINDOW_S), look)


def windows(looks: Sequence[Look]) -> list[LatencyWindow]:
    """What was measured from the first of these looks to the last; a single one tells nothing.

    A histogram that the first look did not have began empty: vLLM V0 made each with the first request.
    """
    if len(looks) < 2:
        return []
    first, last = looks[0].histograms, looks[-1].histograms
    return [_window(name, _difference(first.get(name, {}), buckets)) for name, buckets in last.items()]


def quantile(fraction: float, buckets: Buckets) -> float | None:
    """The seconds that this fraction (0 to 1) of the measurements did not exceed, as Prometheus' histogram_quantile
    estimates them: on a straight line through the bucket.

    The lowest bucket begins at 0. The one without an end gives its begin: it took at least so long.
    None: nothing was measured, or no bucket has an end.
    """
    bounds = sorted(buckets)
    counts = list(accumulate((buckets[bound] for bound in bounds), max))  # a page can be made while it changes
    if len(bounds) < 2 or bounds[-1] != math.inf or counts[-1] <= 0:
        return None
    rank = fraction * counts[-1]
    start_s, below = min(0.0, bounds[0]), 0.0
    for end_s, count in zip(bounds[:-1], counts, strict=False):
        if count >= rank and count > 0:
            return start_s + (end_s - start_s) * (rank - below) / (count - below)
        start_s, below = end_s, count
    return start_s


def _goes_on(before: Histograms, after: Histograms) -> bool:
    """Every histogram has the same buckets still, and none has fallen."""
    return all(
        (now := after.get(name, {})).keys() == buckets.keys()
        and all(now[bound] >= count for bound, count in buckets.items())
        for name, buckets in before.items()
    )


def _difference(before: Buckets, after: Buckets) -> Buckets:
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def _window(name: LatencyName, buckets: Buckets) -> LatencyWindow:
    return LatencyWindow(
        name=name,
        count=buckets.get(math.inf, 0.0),
        p50_s=_estimate_s(0.5, buckets),
        p90_s=_estimate_s(0.9, buckets),
        p99_s=_estimate_s(0.99, buckets),
        finest_s=min(buckets, default=None),
    )


def _estimate_s(fraction: float, buckets: Buckets) -> float | None:
    """To a tenth of a millisecond: it is recorded for weeks, and no better known than that."""
    value_s = quantile(fraction, buckets)
    return None if value_s is None else round(value_s, 4)
