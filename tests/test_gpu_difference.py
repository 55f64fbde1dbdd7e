"""What of a look at the GPUs is worth telling."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from vllm_probes.events import GpusSampled
from vllm_probes.gpus import GpuModel
from vllm_probes.rows import GpuCard, GpuProcess, GpuRow
from vllm_probes.sensors.gpu import PROCESS_STEP_BYTES, STEPS, GpuSample, difference

MIB = 1 << 20
CARD = GpuCard(index=0, name="H100", power_limit_w=700.0)
ROW = GpuRow(
    index=0,
    used_bytes=1000 * MIB,
    busy_percent=50.0,
    memory_busy_percent=20.0,
    power_w=300.0,
    temperature_c=60.0,
    sm_clock_mhz=1980.0,
    processes=[GpuProcess(pid=7, used_bytes=900 * MIB)],
)
SAMPLE = GpuSample(status="ok", driver="570", cuda="12.8", cards=[CARD], rows=[ROW])


def tell(model: GpuModel, sample: GpuSample, mono: float = 1.0) -> GpuSample | None:
    """As a keeper does."""
    news = difference(model, sample)
    if news is not None:
        model.apply(GpusSampled(time=mono, mono=mono, node="here", attempt=1, **asdict(news)))
    return news


def told() -> GpuModel:
    model = GpuModel()
    assert tell(model, SAMPLE) == SAMPLE
    return model


@pytest.mark.parametrize(
    ("change", "is_news"),
    [
        ({}, False),
        ({"busy_percent": 52.0}, False),
        ({"busy_percent": 53.0}, True),
        ({"busy_percent": None}, True),
        ({"memory_busy_percent": 23.0}, True),
        ({"used_bytes": 1015 * MIB}, False),
        ({"used_bytes": 984 * MIB}, True),
        ({"power_w": 304.9}, False),
        ({"power_w": 295.0}, True),
        ({"temperature_c": 61.0}, False),
        ({"temperature_c": 62.0}, True),
        ({"sm_clock_mhz": 1980.0 - 49}, False),
        ({"sm_clock_mhz": 1980.0 - 50}, True),
        ({"throttle": ["hot"]}, True),
        ({"error": "GPU is lost"}, True),
        ({"processes": None}, True),
        ({"processes": []}, True),
        ({"processes": [GpuProcess(pid=8, used_bytes=900 * MIB)]}, True),
        ({"processes": [GpuProcess(pid=7, used_bytes=963 * MIB)]}, False),
        ({"processes": [GpuProcess(pid=7, used_bytes=964 * MIB)]}, True),
        ({"processes": [GpuProcess(pid=7)]}, True),
        ({"processes": [GpuProcess(pid=7, used_bytes=900 * MIB, process="python", user="ann")]}, False),
    ],
)
def test_a_row_is_told_when_it_changed_by_more_than_noise(change: dict[str, Any], is_news: bool) -> None:
    sample = replace(SAMPLE, rows=[replace(ROW, **change)])
    expected = replace(sample, cards=[]) if is_news else None
    assert difference(told(), sample) == expected


@pytest.mark.parametrize(("before", "now"), [(2.0, 0.0), (98.0, 100.0), (0.0, 2.0)])
def test_a_gpu_that_comes_to_rest_or_is_full_is_told_at_once(before: float, now: float) -> None:
    model = told()
    tell(model, replace(SAMPLE, rows=[replace(ROW, busy_percent=before)]))
    news = difference(model, replace(SAMPLE, rows=[replace(ROW, busy_percent=now)]))
    assert (news is not None) == (now in (0.0, 100.0))


@pytest.mark.parametrize(
    ("change", "is_news"),
    [
        ({"power_limit_w": 696.0}, False),
        ({"power_limit_w": 400.0}, True),
        ({"power_limit_w": None}, True),
        ({"mig": True}, True),
        ({"name": "H200"}, True),
    ],
)
def test_a_card_is_told_when_it_changed(change: dict[str, Any], is_news: bool) -> None:
    sample = replace(SAMPLE, cards=[replace(CARD, **change)])
    assert difference(told(), sample) == (replace(sample, rows=[]) if is_news else None)


def test_only_what_differs_is_told() -> None:
    other = replace(ROW, index=1)
    model = told()
    news = tell(model, replace(SAMPLE, rows=[ROW, other]))
    assert news is not None
    assert (news.cards, news.rows) == ([], [other])


@pytest.mark.parametrize(
    ("status", "change"),
    [
        ("failed", {"reason": "It died."}),
        ("absent", {"reason": "There is none."}),
        ("silent", {"answered_mono": 1.0}),
        ("ok", {"driver": "580"}),
        ("ok", {"cuda": "13.0"}),
    ],
)
def test_a_change_of_the_driver_is_told_once(status: Any, change: dict[str, Any]) -> None:
    model, sample = told(), replace(SAMPLE, status=status, **change)
    assert tell(model, sample, 2.0) == replace(sample, cards=[], rows=[])
    assert tell(model, sample, 3.0) is None


def test_a_driver_that_fell_silent_again_is_told_with_its_last_answer() -> None:
    model = told()
    tell(model, replace(SAMPLE, status="silent", answered_mono=1.0), 7.0)
    assert difference(model, replace(SAMPLE, status="silent", answered_mono=9.0)) is not None


def test_a_host_without_a_driver_is_told_once() -> None:
    model, absent = GpuModel(), GpuSample(status="absent", reason="There is none.")
    assert tell(model, absent) == absent
    assert tell(model, absent, 2.0) is None


numbers = {
    "used_bytes": st.integers(0, 200 * MIB),
    "busy_percent": st.floats(0, 100),
    "memory_busy_percent": st.floats(0, 100),
    "power_w": st.floats(50, 80),
    "temperature_c": st.integers(30, 40),
    "sm_clock_mhz": st.integers(300, 600),
}
processes = st.builds(GpuProcess, pid=st.integers(1, 3), used_bytes=st.none() | st.integers(0, 200 * MIB))
rows = st.builds(
    GpuRow,
    index=st.just(0),
    throttle=st.lists(st.sampled_from(["hot", "power cap"]), unique=True),
    processes=st.none() | st.lists(processes, unique_by=lambda process: process.pid),
    **{name: st.none() | values for name, values in numbers.items()},
)


@given(st.lists(rows, max_size=12))
def test_however_slowly_things_change_the_model_is_never_far_off(course: list[GpuRow]) -> None:
    model = GpuModel()
    for mono, row in enumerate(course):
        tell(model, GpuSample(status="ok", rows=[row]), float(mono))
        known = model.rows[0]
        assert (known.throttle, known.error) == (row.throttle, row.error)
        assert all(is_near(getattr(known, name), getattr(row, name), step) for name, step in STEPS.items())
        assert (known.processes is None) == (row.processes is None)
        before = {process.pid: process.used_bytes for process in known.processes or ()}
        now = {process.pid: process.used_bytes for process in row.processes or ()}
        assert before.keys() == now.keys()
        assert all(is_near(before[pid], now[pid], PROCESS_STEP_BYTES) for pid in now)


def is_near(known: float | None, real: float | None, step: float) -> bool:
    return known is real is None or (known is not None and real is not None and abs(known - real) < step)
