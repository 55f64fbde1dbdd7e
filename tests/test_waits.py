"""Who waits for whom, by what the processes do."""

from vllm_probes.judges.culprits import Standing
from vllm_probes.judges.frames import Classified, FrameClass
from vllm_probes.judges.waits import Edge, gathered, wait_for, waits_for_nobody
from vllm_probes.rows import ProcessRow, Role


def standings(**doing: str) -> dict[int, Standing]:
    """`standings(APIServer="idle", Worker_TP0="collective:all_reduce")`; pids from 1 on."""
    roles: dict[str, Role] = {"API": "api_server", "Eng": "engine_core", "Wor": "worker", "DPC": "coordinator"}
    found = {}
    for pid, (process, text) in enumerate(doing.items(), 1):
        class_, _, operation = text.partition(":")
        known: FrameClass = class_  # type: ignore[assignment]
        row = ProcessRow(pid=pid, parent_pid=0, started=0, process=process, role=roles.get(process[:3], "other"))
        found[pid] = Standing(row, Classified(known, operation=operation or None), "unknown", None)
    return found


def graph(**doing: str) -> tuple[list[str], list[str]]:
    """The edges as `A>B`, and who waits for nobody."""
    all_of = standings(**doing)
    edges = wait_for(all_of)
    name = {pid: standing.row.process.removeprefix("Worker_") for pid, standing in all_of.items()} | {None: "GPU"}
    drawn_edges = [f"{name[edge.waiter]}>{name[edge.target]}" for edge in edges]
    return drawn_edges, [name[pid] for pid in waits_for_nobody(all_of, edges)]


REDUCES, GATHERS = "collective:all_reduce", "collective:all_gather"


def test_a_rank_that_never_came() -> None:
    edges, free = graph(
        APIServer="idle", EngineCore="waiting_for_worker", Worker_TP0=REDUCES, Worker_TP1="lock", Worker_TP2=REDUCES
    )
    assert edges == [
        *("APIServer>EngineCore", "EngineCore>TP0", "EngineCore>TP1", "EngineCore>TP2", "TP0>TP1", "TP2>TP1"),
    ]
    assert free == ["TP1"]


def test_a_rank_that_went_idle_after_an_exception() -> None:
    edges, free = graph(APIServer="idle", EngineCore="waiting_for_worker", Worker_TP0=REDUCES, Worker_TP1="idle")
    assert edges == ["APIServer>EngineCore", "EngineCore>TP0", "TP0>TP1", "TP1>EngineCore"]
    assert free == []


def test_different_collectives() -> None:
    edges, free = graph(Worker_TP0=REDUCES, Worker_TP1=GATHERS, Worker_TP2=REDUCES)
    assert (edges, free) == (["TP0>TP1", "TP1>TP0", "TP1>TP2", "TP2>TP1"], [])


def test_all_in_the_same_collective_wait_for_the_gpu() -> None:
    edges, free = graph(Worker_TP0=REDUCES, Worker_TP1=REDUCES)
    assert (edges, free) == (["TP0>GPU", "TP1>GPU"], [])


def test_a_gpu_sync_waits_for_the_gpu() -> None:
    assert graph(APIServer="idle", EngineCore="gpu_sync") == (["APIServer>EngineCore", "EngineCore>GPU"], [])


def test_engine_and_workers_that_wait_for_each_other() -> None:
    edges, free = graph(APIServer="idle", EngineCore="waiting_for_worker", Worker_TP0="idle", Worker_TP1="idle")
    assert edges == [
        *("APIServer>EngineCore", "EngineCore>TP0", "EngineCore>TP1", "TP0>EngineCore", "TP1>EngineCore"),
    ]
    assert free == []


def test_an_idle_server_waits_for_clients() -> None:
    edges, free = graph(APIServer="idle", EngineCore="idle", Worker_TP0="idle")
    assert (edges, free) == (["EngineCore>APIServer", "TP0>EngineCore"], ["APIServer"])


def test_an_engine_that_works_by_itself() -> None:
    edges, free = graph(APIServer="idle", EngineCore="scheduling", Worker_TP0="idle")
    assert (edges, free) == (["APIServer>EngineCore", "TP0>EngineCore"], ["EngineCore"])


def test_a_start() -> None:
    edges, free = graph(APIServer="startup_wait", EngineCore="startup_wait", Worker="disk", Worker_TP1=REDUCES)
    assert edges == ["APIServer>EngineCore", "EngineCore>Worker", "EngineCore>TP1", "TP1>Worker"]
    assert free == ["Worker"]


def test_replicas_wait_for_their_own_first() -> None:
    edges, free = graph(
        EngineCore_DP0="waiting_for_worker",
        EngineCore_DP1="collective:all_reduce",
        Worker_DP0_TP0=REDUCES,
        Worker_DP0_TP1="compile",
        Worker_DP1_TP0="idle",
    )
    assert edges == [
        *("EngineCore_DP0>DP0_TP0", "EngineCore_DP0>DP0_TP1", "EngineCore_DP1>EngineCore_DP0"),
        *("DP0_TP0>DP0_TP1", "DP1_TP0>EngineCore_DP1"),
    ]
    assert free == ["DP0_TP1"]


def test_a_stage_waits_for_its_own_ranks_before_others() -> None:
    edges, _ = graph(
        Worker_PP0_TP0=REDUCES, Worker_PP0_TP1="disk", Worker_PP1_TP0="collective:recv", Worker_PP1_TP1="idle"
    )
    assert edges == ["PP0_TP0>PP0_TP1", "PP1_TP0>PP1_TP1"]
    edges, _ = graph(Worker_PP0_TP0="disk", Worker_PP0_TP1="disk", Worker_PP1_TP0="collective:recv")
    assert edges == ["PP1_TP0>PP0_TP0", "PP1_TP0>PP0_TP1"]


def test_what_is_waited_for() -> None:
    edges = wait_for(standings(APIServer="startup_wait", EngineCore="waiting_for_worker", Worker_TP0="idle"))
    assert edges == [Edge(1, 2, "start"), Edge(2, 3, "answer"), Edge(3, 2, "work")]
    assert wait_for(standings(EngineCore="gpu_sync")) == [Edge(1, None, "gpu")]
    assert wait_for(standings(Worker_TP0=REDUCES)) == [Edge(1, None, "all_reduce")]


def test_ranks_that_wait_for_the_same_stand_together() -> None:
    workers = {"Worker_TP0": REDUCES, "Worker_TP1": "lock", "Worker_TP2": REDUCES}
    edges = wait_for(standings(EngineCore="waiting_for_worker", **workers))
    assert gathered(edges) == {(frozenset((2, 3, 4)), "answer"): [1], (frozenset((3,)), "all_reduce"): [2, 4]}
