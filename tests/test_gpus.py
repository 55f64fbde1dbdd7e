"""Who lives on which GPU, and which GPUs a run may use."""

from collections.abc import Iterable

import pytest

from vllm_probes.events import GpusSampled, Stamp
from vllm_probes.gpus import GpuModel, residents, strangers, visible_indices, visible_to_run
from vllm_probes.rows import GpuCard, GpuProcess, GpuRow, ProcessRow, Role

CARDS = {index: GpuCard(index=index, uuid=f"GPU-{index}{index}aa-bb") for index in range(4)}


def stamp(mono: float) -> Stamp:
    return Stamp(time=mono, mono=mono, node="n", attempt=1)


def process(
    pid: int, role: Role, rank: int | None = None, *, parent: int = 1, visible: str | None = None
) -> ProcessRow:
    name = f"Worker_TP{rank}" if rank is not None else role
    return ProcessRow(
        pid=pid, parent_pid=parent, started=0, process=name, role=role, rank=rank, visible_devices=visible
    )


def run(*rows: ProcessRow) -> dict[int, ProcessRow]:
    return {row.pid: row for row in rows}


def model(used: Iterable[list[tuple[int, int]]]) -> GpuModel:
    """A driver that tells (pid, bytes) for each GPU."""
    gpus = GpuModel()
    rows = [
        GpuRow(index=index, used_bytes=1, processes=[GpuProcess(pid=pid, used_bytes=size) for pid, size in ones])
        for index, ones in enumerate(used)
    ]
    gpus.apply(GpusSampled(**stamp(1), cards=list(CARDS.values()), rows=rows))
    return gpus


def names(found: dict[int, list]) -> dict[int, list[str]]:  # type: ignore[type-arg]
    return {index: [one.row.process for one in ones] for index, ones in found.items() if ones}


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("2", [2]),
        ("3,1", [3, 1]),
        (" 1 , 2", [1, 2]),
        ("0,7,1", [0]),
        ("1,1,2", [1]),
        ("GPU-22aa-bb", [2]),
        ("GPU-3,GPU-1", [3, 1]),
        ("GPU-", []),
        ("none", []),
        ("MIG-22aa", []),
    ],
)
def test_what_cuda_makes_of_the_variable(setting: str | None, indices: list[int]) -> None:
    assert visible_indices(setting, CARDS) == indices


def test_the_driver_tells_who_lives_where() -> None:
    found = residents(model([[(10, 5)], [(11, 6), (99, 1)]]), run(process(10, "worker", 0), process(11, "worker", 1)))
    assert names(found) == {0: ["Worker_TP0"], 1: ["Worker_TP1"]}
    assert [one.used_bytes for one in found[1]] == [6]
    assert not any(one.inferred for ones in found.values() for one in ones)


def test_pids_of_another_namespace_are_replaced_by_the_order_of_ranks() -> None:
    processes = run(
        process(5, "engine_core", visible="2,3"),
        process(10, "worker", 0, parent=5, visible="2,3"),
        process(11, "worker", 1, parent=5, visible="2,3"),
    )
    found = residents(model([[], [], [(7001, 5)], [(7002, 5)]]), processes)
    assert names(found) == {2: ["Worker_TP0"], 3: ["Worker_TP1"]}
    assert all(one.inferred and one.used_bytes is None for ones in found.values() for one in ones)


def test_each_data_parallel_engine_counts_its_ranks_from_its_own_first_gpu() -> None:
    processes = run(
        process(5, "engine_core"),
        process(6, "engine_core"),
        process(10, "worker", 0, parent=5, visible="0,1"),
        process(11, "worker", 1, parent=5, visible="0,1"),
        process(12, "worker", 2, parent=6, visible="2,3"),
        process(13, "worker", 3, parent=6, visible="2,3"),
    )
    found = residents(model([[], [], [], []]), processes)
    assert names(found) == {0: ["Worker_TP0"], 1: ["Worker_TP1"], 2: ["Worker_TP2"], 3: ["Worker_TP3"]}
    assert visible_to_run(processes, CARDS) == [0, 1, 2, 3]


def test_an_engine_without_workers_lives_on_its_first_gpu() -> None:
    assert names(residents(model([[], []]), run(process(5, "engine_core", visible="1")))) == {1: ["engine_core"]}


def test_nobody_is_placed_before_any_memory_is_used() -> None:
    gpus = GpuModel()
    gpus.apply(GpusSampled(**stamp(1), cards=list(CARDS.values()), rows=[GpuRow(index=0, used_bytes=0)]))
    assert residents(gpus, run(process(10, "worker", 0))) == {}


def test_a_stranger_is_who_is_not_of_the_run() -> None:
    gpus = model([[(10, 5), (99, 7), (98, 7)]])
    rows = [GpuProcess(pid=10), GpuProcess(pid=99, process="python"), GpuProcess(pid=98)]
    gpus.apply(GpusSampled(**stamp(2), rows=[GpuRow(index=0, used_bytes=1, processes=rows)]))
    assert [one.pid for one in strangers(gpus, run(process(10, "worker", 0)))[0]] == [99]


def test_nobody_is_placed_by_rank_where_a_process_of_this_host_is_named() -> None:
    """Memory of an earlier run, before this one has any: pids can be compared, and none is of this run."""
    gpus = model([[]])
    named = [GpuProcess(pid=99, process="VLLM::Worker_TP0")]
    gpus.apply(GpusSampled(**stamp(2), rows=[GpuRow(index=0, used_bytes=1, processes=named)]))
    processes = run(process(10, "worker", 0))
    assert names(residents(gpus, processes)) == {}
    assert [one.pid for one in strangers(gpus, processes)[0]] == [99]


def test_nobody_is_a_stranger_where_pids_cannot_be_compared() -> None:
    assert strangers(model([[(7001, 5)]]), run(process(10, "worker", 0))) == {}


def test_a_run_sees_every_gpu_until_something_says_otherwise() -> None:
    assert visible_to_run({}, CARDS) == [0, 1, 2, 3]
    assert visible_to_run(run(process(5, "engine_core", visible="1")), CARDS) == [1]


def test_a_silent_driver_keeps_what_it_said_last() -> None:
    gpus = model([[(10, 5)]])
    gpus.apply(GpusSampled(**stamp(9), status="silent", answered_mono=3.0, reason="It does not answer."))
    assert (gpus.status, gpus.answered_mono, gpus.rows[0].used_bytes) == ("silent", 3.0, 1)
    gpus.apply(GpusSampled(**stamp(12)))
    assert (gpus.status, gpus.answered_mono) == ("ok", 12)


def test_histories_are_bounded() -> None:
    gpus = GpuModel()
    for second in range(1000):
        gpus.apply(GpusSampled(**stamp(second), rows=[GpuRow(index=0, busy_percent=second % 100)]))
    assert len(gpus.histories[0]) < 300
    assert gpus.histories[0][-1] == (999, 99)
