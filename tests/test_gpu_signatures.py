"""What GPUs look like when something is wrong. No GPU was at hand: the rows are written after public reports."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.gpus import GpuModel
from vllm_probes.judges.gpu_signatures import (
    HARMFUL_THROTTLING,
    Baseline,
    Scene,
    Signature,
    learn,
    scene,
    signatures,
)
from vllm_probes.rows import GpuCard, GpuProcess, GpuRow, ProcessRow
from vllm_probes.sensors.nvml_calls import throttle_words

GIB = 1 << 30


def gpu(index: int, busy: float | None, power_w: float | None, memory: float | None = 0.0, **more: Any) -> GpuRow:
    return GpuRow(index=index, busy_percent=busy, power_w=power_w, memory_busy_percent=memory, **more)


def a_scene(*rows: GpuRow, **fields: Any) -> Scene:
    """A run that stands still with work to do, on these GPUs of 700 W."""
    usual: dict[str, Any] = {
        "cards": {row.index: GpuCard(index=row.index, power_limit_w=700.0) for row in rows},
        "strangers": {},
        "baseline": Baseline(),
        "progressing": False,
        "pending": True,
        "since": 1000.0,
    }
    return Scene(rows={row.index: row for row in rows}, **(usual | fields))


def found(*rows: GpuRow, **fields: Any) -> dict[str, tuple[int, ...]]:
    return {one.kind: one.indices for one in signatures(a_scene(*rows, **fields))}


WORKED = Baseline(working_w=dict.fromkeys(range(16), 410.0))
SPINS, WORKS, IDLE = (100.0, 152.0, 0.0), (100.0, 420.0, 45.0), (0.0, 110.0, 0.0)


def gpus(*kinds: tuple[float, float, float]) -> list[GpuRow]:
    return [gpu(index, *kind) for index, kind in enumerate(kinds)]


CASES: list[tuple[str, list[GpuRow], dict[str, Any], dict[str, tuple[int, ...]]]] = [
    ("all spin", gpus(SPINS, SPINS, SPINS), {"baseline": WORKED}, {"spin": (0, 1, 2)}),
    ("one spins, before any baseline", gpus(SPINS), {}, {"spin": (0,)}),
    ("one spins, idle at 130 W", gpus(SPINS), {"baseline": Baseline(idle_w={0: 130.0})}, {"spin": (0,)}),
    ("96 % is busy", [gpu(0, 96.0, 152.0)], {}, {"spin": (0,)}),
    ("one never came", gpus(SPINS, IDLE, SPINS), {"baseline": WORKED}, {"asymmetric": (1,), "spin": (0, 2)}),
    ("one of two never came", gpus(SPINS, IDLE), {"baseline": WORKED}, {"asymmetric": (1,), "spin": (0,)}),
    (
        "two of sixteen never came",
        gpus(*([SPINS] * 7 + [IDLE]) * 2),
        {"baseline": WORKED},
        {"asymmetric": (7, 15), "spin": (*range(7), *range(8, 15))},
    ),
    ("one alone, the others idle (nccl#1550)", gpus(SPINS, IDLE, IDLE), {"baseline": WORKED}, {"spin": (0,)}),
    ("nobody has launched anything", gpus(IDLE, IDLE), {}, {"parked": (0, 1)}),
    ("a single idle one", gpus(IDLE), {}, {"parked": (0,)}),
    ("nothing to do", gpus(IDLE, IDLE), {"pending": False}, {}),
    ("nobody knows whether there is work", gpus(IDLE, IDLE), {"pending": None}, {}),
    ("it gets on", gpus(SPINS, IDLE), {"progressing": True}, {}),
    ("nobody knows whether it gets on", gpus(SPINS, IDLE), {"progressing": None}, {}),
    ("a long kernel", gpus(WORKS, WORKS), {"baseline": WORKED}, {}),
    ("busy with memory", [gpu(0, 100.0, 152.0, 60.0)], {}, {}),
    ("power as ever: this model draws little", gpus(SPINS), {"baseline": Baseline({0: 160.0})}, {}),
    (
        "one is half busy: something moves",
        [*gpus(SPINS, IDLE), gpu(2, 50.0, 200.0)],
        {"baseline": WORKED},
        {"spin": (0,)},
    ),
    ("unknown busy", [gpu(0, None, 152.0), gpu(1, None, 110.0)], {}, {}),
    ("unknown power", [gpu(0, 100.0, None)], {"baseline": WORKED}, {}),
    ("unknown memory", [gpu(0, 100.0, 152.0, None)], {"baseline": WORKED}, {}),
    ("unknown limit and no baseline", gpus(SPINS), {"cards": {}}, {}),
    (
        "a lost one hides nothing of the others",
        [GpuRow(index=0, error="GPU is lost"), *gpus(IDLE, SPINS)[1:]],
        {},
        {"spin": (1,)},
    ),
    ("a lost one may not be idle", [gpu(0, *IDLE), GpuRow(index=1, error="GPU is lost")], {}, {}),
    ("no GPU of the run", [], {}, {}),
    ("hot", [gpu(3, 100.0, 420.0, 45.0, throttle=["hot", "power cap"])], {"progressing": True}, {"throttling": (3,)}),
    (
        "power brake",
        [gpu(3, 100.0, 420.0, 45.0, throttle=["power brake"])],
        {"progressing": None},
        {"throttling": (3,)},
    ),
    ("full load", [gpu(3, 100.0, 700.0, 45.0, throttle=["power cap"])], {"progressing": True}, {}),
    ("hot, but at rest", [gpu(3, 5.0, 420.0, 45.0, throttle=["hot"])], {"progressing": True}, {}),
    ("hot, and nobody knows how busy", [gpu(3, None, 420.0, 45.0, throttle=["hot"])], {"progressing": True}, {}),
]


@pytest.mark.parametrize(("rows", "fields", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_signatures(rows: list[GpuRow], fields: dict[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    assert found(*rows, **fields) == expected


def only(signatures: list[Signature]) -> Signature:
    (signature,) = signatures
    return signature


def test_the_evidence_names_figures_and_since_when() -> None:
    spin = only(signatures(a_scene(*gpus(SPINS), baseline=WORKED)))
    assert [(one.signal, one.value, one.since) for one in spin.evidence] == [
        ("GPU 0", "100 % busy, memory 0 %, 152 of 700 W (410 W while tokens moved)", 1000.0)
    ]


def test_the_evidence_of_a_missing_one_shows_the_others_too() -> None:
    missing = signatures(a_scene(*gpus(SPINS, IDLE)))[0]
    assert [one.signal for one in missing.evidence] == ["GPU 1", "GPU 0"]


# --- from the model of a session --------------------------------------------------------------------------------------


def a_model(*rows: GpuRow) -> GpuModel:
    cards = {row.index: GpuCard(index=row.index, power_limit_w=700.0) for row in rows}
    return GpuModel(status="ok", cards=cards, rows={row.index: row for row in rows})


def worker(pid: int, rank: int, visible: str | None = None) -> ProcessRow:
    name = f"Worker_TP{rank}"
    return ProcessRow(pid=pid, parent_pid=1, started=0, process=name, role="worker", rank=rank, visible_devices=visible)


def held(index: int, *holders: GpuProcess, busy: float = 0.0) -> GpuRow:
    return gpu(index, busy, 110.0, processes=list(holders))


OURS = [GpuProcess(pid=10, used_bytes=60 * GIB), GpuProcess(pid=11, used_bytes=60 * GIB)]
THEIRS = GpuProcess(pid=99, used_bytes=20 * GIB, process="python", user="ann")
PROCESSES = {10: worker(10, 0, "2,3"), 11: worker(11, 1, "2,3")}


def kinds(gpus: GpuModel, **more: Any) -> dict[str, tuple[int, ...]]:
    usual = {"progressing": False, "pending": True}
    return {one.kind: one.indices for one in signatures(scene(gpus, PROCESSES, Baseline(), **(usual | more)))}


def test_gpus_of_others_are_no_part_of_it() -> None:
    rows = [held(0, THEIRS, busy=100.0), held(1), held(2, OURS[0]), held(3, OURS[1])]
    assert kinds(a_model(*rows)) == {"parked": (2, 3)}


def test_memory_that_somebody_else_holds_on_a_visible_gpu() -> None:
    rows = [held(0, THEIRS), held(2, OURS[0], THEIRS), held(3, OURS[1])]
    assert kinds(a_model(*rows), pending=False) == {"held_memory": (2,)}
    assert kinds(a_model(*rows), pending=False, later_pids={99}) == {}
    signature = only(signatures(scene(a_model(*rows), PROCESSES, Baseline(), progressing=True, pending=True)))
    assert [(one.signal, one.value) for one in signature.evidence] == [
        ("GPU 2 memory of others", "20.0 GiB: python (pid 99) of ann")
    ]


@pytest.mark.parametrize("used_bytes", [None, 10 << 20])
def test_a_desktop_holds_nothing(used_bytes: int | None) -> None:
    rows = [held(2, OURS[0], GpuProcess(pid=99, used_bytes=used_bytes)), held(3, OURS[1])]
    assert kinds(a_model(*rows), pending=False) == {}


def test_a_run_that_has_not_come_to_its_gpus_shows_nothing() -> None:
    assert kinds(a_model(held(2), held(3))) == {}


# --- the baseline -----------------------------------------------------------------------------------------------------


def test_a_baseline_is_learnt_while_tokens_move_only() -> None:
    working, spinning = gpus(WORKS), gpus(SPINS)
    baseline = learn(Baseline(), working, progressing=True)
    assert learn(baseline, spinning, progressing=False) == baseline
    assert learn(baseline, spinning, progressing=None) == baseline
    assert baseline.working_w == {0: 420.0}


def test_a_baseline_follows_a_new_load_within_some_samples() -> None:
    baseline = learn(Baseline(), gpus(WORKS), progressing=True)
    for _ in range(10):
        baseline = learn(baseline, [gpu(0, 100.0, 300.0)], progressing=True)
    assert baseline.working_w[0] == pytest.approx(300, abs=15)


rows_of_any_kind = st.builds(
    GpuRow,
    index=st.integers(0, 4),
    busy_percent=st.none() | st.floats(0, 100),
    memory_busy_percent=st.none() | st.floats(0, 100),
    power_w=st.none() | st.floats(0, 1000),
    used_bytes=st.none() | st.integers(0, 80 * GIB),
    throttle=st.lists(st.sampled_from(["hot", "power cap", "power brake", "hardware slowdown", "new"]), max_size=2),
    error=st.none() | st.just("GPU is lost"),
)


@given(st.lists(st.tuples(rows_of_any_kind, st.sampled_from([True, False, None])), max_size=40))
def test_a_baseline_lies_within_what_was_seen(samples: list[tuple[GpuRow, bool | None]]) -> None:
    baseline = Baseline()
    for row, progressing in samples:
        baseline = learn(baseline, [row], progressing=progressing)
    for learnt in (baseline.working_w, baseline.idle_w):
        for index, power_w in learnt.items():
            seen = [row.power_w for row, _ in samples if row.index == index and row.power_w is not None]
            assert min(seen) - 1e-6 <= power_w <= max(seen) + 1e-6


@given(st.lists(rows_of_any_kind, max_size=5), st.sampled_from([True, False, None]), st.sampled_from([True, None]))
def test_whatever_is_unknown_nobody_is_named_without_a_figure(
    rows: list[GpuRow], progressing: bool | None, pending: bool | None
) -> None:
    known = {row.index: row for row in rows}
    for signature in signatures(a_scene(*known.values(), progressing=progressing, pending=pending)):
        assert all(known[index].busy_percent is not None for index in signature.indices)
        assert signature.kind == "throttling" or progressing is False
        assert signature.evidence


def test_words_of_throttling_are_those_of_the_driver() -> None:
    words = {word for bit in range(10) for word in throttle_words(1 << bit)}
    assert words >= HARMFUL_THROTTLING
