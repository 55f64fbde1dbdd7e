"""Quantiles of the last minute from histograms that only grow."""

import math
from bisect import bisect_left
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.judges.latency import WINDOW_S, Buckets, Look, quantile, remember, windows
from vllm_probes.rows import LatencyWindow

INF = math.inf
BOUNDS = (0.1, 0.5, 2.0, INF)


def histogram(measured: list[float], bounds: tuple[float, ...] = BOUNDS) -> Buckets:
    return {bound: float(sum(value <= bound for value in measured)) for bound in bounds}


bounds_lists = st.lists(st.floats(0.001, 1000), min_size=1, max_size=12, unique=True).map(
    lambda bounds: (*sorted(bounds), INF)
)
durations = st.lists(st.floats(0, 2000), min_size=1, max_size=40)
fractions = st.floats(0, 1)


@pytest.mark.parametrize(
    ("fraction", "buckets", "expected_s"),
    [
        (0.5, {0.1: 0, 0.5: 10, INF: 10}, 0.3),
        (0.5, {0.1: 4, 0.5: 10, INF: 10}, 0.1 + 0.4 * 1 / 6),
        (0.9, {0.1: 10, INF: 10}, 0.09),
        (1.0, {0.1: 10, INF: 10}, 0.1),
        (0.0, {0.1: 0, 0.5: 10, INF: 10}, 0.1),
        (0.99, {0.1: 1, 0.5: 2, INF: 10}, 0.5),
        (0.5, {0.1: 0, 0.5: 0, INF: 10}, 0.5),
        (0.5, {INF: 10, 0.5: 10, 0.1: 0}, 0.3),
        (0.5, {0.1: 6, 0.5: 5, INF: 10}, 0.1 * 5 / 6),
        (0.5, {-0.5: 10, INF: 10}, -0.5),
        (0.5, {0.1: 0, 0.5: 0, INF: 0}, None),
        (0.5, {0.1: 0, 0.5: 10}, None),
        (0.5, {INF: 10}, None),
        (0.5, {}, None),
    ],
)
def test_quantiles_are_those_of_prometheus(fraction: float, buckets: Buckets, expected_s: float | None) -> None:
    assert quantile(fraction, buckets) == (None if expected_s is None else pytest.approx(expected_s))


@given(durations, bounds_lists, st.integers(1, 100))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(
    measured: list[float], bounds: tuple[float, ...], percent: int
) -> None:
    true_s = sorted(measured)[max(0, math.ceil(len(measured) * percent / 100) - 1)]
    bucket = bisect_left(bounds, true_s)
    estimate_s = quantile(percent / 100, histogram(measured, bounds))
    assert estimate_s is not None
    if bounds[bucket] == INF:
        assert estimate_s == bounds[bucket - 1]
    else:
        start_s = bounds[bucket - 1] if bucket else 0.0
        assert start_s <= estimate_s or estimate_s == pytest.approx(start_s)
        assert estimate_s <= bounds[bucket] or estimate_s == pytest.approx(bounds[bucket])


@given(durations, bounds_lists, st.lists(fractions, min_size=2, max_size=6))
def test_quantiles_rise_with_the_fraction(measured: list[float], bounds: tuple[float, ...], asked: list[float]) -> None:
    found = [quantile(fraction, histogram(measured, bounds)) or 0.0 for fraction in sorted(asked)]
    assert all(low <= high or low == pytest.approx(high) for low, high in pairwise(found))


@given(st.dictionaries(st.floats(-1e9, 1e9) | st.just(INF), st.floats(0, 1e9)), fractions)
def test_any_buckets_have_a_quantile_or_none(buckets: dict[float, float], fraction: float) -> None:
    value_s = quantile(fraction, buckets)
    assert value_s is None or min(0.0, min(buckets)) <= value_s <= max(bound for bound in buckets if bound < INF)


def look(mono: float, *measured: float) -> Look:
    return Look(mono, {"ttft": histogram(list(measured))})


def test_a_window_is_what_was_measured_since_its_first_look() -> None:
    looks = remember((), look(100, 0.05, 0.05, 3.0))
    assert windows(looks) == []
    looks = remember(looks, look(105, 0.05, 0.05, 3.0, 0.3, 0.3))
    assert windows(looks) == [LatencyWindow(name="ttft", count=2, p50_s=0.3, p90_s=0.46, p99_s=0.496, finest_s=0.1)]


def test_a_minute_in_which_nothing_was_measured_has_no_quantiles() -> None:
    looks = remember(remember((), look(100, 0.3)), look(105, 0.3))
    assert windows(looks) == [LatencyWindow(name="ttft", count=0, finest_s=0.1)]


@given(st.lists(st.tuples(st.floats(1, 30), durations), min_size=2, max_size=20))
def test_the_window_has_the_measurements_of_the_last_minute(steps: list[tuple[float, list[float]]]) -> None:
    mono, measured, looks, told = 0.0, list[float](), tuple[Look, ...](), list[tuple[float, int]]()
    for elapsed_s, new in steps:
        mono += elapsed_s
        measured += new
        told.append((mono, len(measured)))
        looks = remember(looks, look(mono, *measured))
    in_window = [count for at, count in told if mono - at <= WINDOW_S]
    assert len(looks) == len(in_window)
    expected = histogram(measured[in_window[0] :])
    assert [window.count for window in windows(looks)] == [expected[INF]] * (len(looks) > 1)
    if len(looks) > 1 and expected[INF]:
        assert windows(looks)[0].p90_s == pytest.approx(quantile(0.9, expected), abs=1e-4)


@pytest.mark.parametrize(
    "after",
    [
        look(105, 0.05),
        Look(105, {"ttft": {0.1: 5.0, 9.0: 9.0, INF: 9.0}}),
        Look(105, {"ttft": {0.1: 5.0, 0.5: 9.0, INF: 9.0}}),
        Look(105, {"tpot": histogram([0.05])}),
        Look(105, {}),
    ],
    ids=["counts fell", "other bounds", "fewer bounds", "another histogram", "none"],
)
def test_a_server_that_was_restarted_begins_a_window(after: Look) -> None:
    before = (look(95), look(100, 0.05, 0.05, 3.0))
    assert remember(before, after) == (after,)


def test_a_histogram_that_comes_with_the_first_request_began_empty() -> None:
    looks = remember((Look(100, {}),), look(105, 0.3, 0.3))
    assert [(window.name, window.count) for window in windows(looks)] == [("ttft", 2)]
