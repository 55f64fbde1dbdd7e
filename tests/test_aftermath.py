"""What is known at the end of a run beside its log, and what findings make of it."""

import pytest

from vllm_probes.events import AttemptStarted, CommandEnded, Exited, GpusSampled, LogRecorded, ProcessesSampled, Stamp
from vllm_probes.judges.frames import load_frames
from vllm_probes.judges.judging import Knowledge, Memory, judge
from vllm_probes.judges.rules import load_rules
from vllm_probes.rows import GpuCard, GpuProcess, GpuRow, ProcessRow

KNOWLEDGE = Knowledge(load_rules().by_id, load_frames())
GIB = 1 << 30
NO_ROOM = "ValueError: No available memory for the cache blocks."


def fix_with(*holders: tuple[int, GpuProcess]) -> str:
    """What the post-mortem of a run without room for its KV cache says while these have memory of these GPUs."""
    rows = [GpuRow(index=at, processes=[one for index, one in holders if index == at]) for at in range(4)]
    worker = ProcessRow(pid=10, parent_pid=1, started=0, process="Worker_TP0", role="worker", rank=0)
    events = [
        (AttemptStarted, {"command": ["x"], "levers": [], "log": "l", "shim_pid": 2, "expects_vllm": True}),
        (ProcessesSampled, {"rows": [worker]}),
        (GpusSampled, {"cards": [GpuCard(index=at) for at in range(4)], "rows": rows}),
        (LogRecorded, {"line_number": 1, "rule": "kv-cache-none", "line": NO_ROOM, "level": "error"}),
        (CommandEnded, {"code": 1, "signal": None}),
    ]
    memory = Memory()
    for at, (kind, fields) in enumerate(events):
        memory, told = judge(KNOWLEDGE, memory, kind(**Stamp(time=at, mono=at, node="n", attempt=1), **fields))
    (exited,) = [one for one in told if isinstance(one, Exited)]
    return exited.findings[0].fix


def holder(pid: int, used_gib: float, **fields: str) -> GpuProcess:
    return GpuProcess(pid=pid, used_bytes=int(used_gib * GIB), **{"process": "python", **fields})


def test_who_holds_the_memory_of_the_gpus_is_named() -> None:
    told = fix_with((3, holder(99, 61.5, user="ann")), (0, holder(98, 2.0)), (1, GpuProcess(pid=10, used_bytes=GIB)))
    assert told.startswith(
        "Others have memory of these GPUs: python of ann (pid 99) has 61.5 GiB of GPU 3; "
        "python (pid 98) has 2.0 GiB of GPU 0. Raise"
    )


@pytest.mark.parametrize(
    "holders",
    [
        [],
        [(0, GpuProcess(pid=10, used_bytes=70 * GIB))],
        [(0, holder(99, 0.01, process="Xorg"))],
        [(0, GpuProcess(pid=7001, used_bytes=70 * GIB))],
    ],
)
def test_nobody_is_named_where_nobody_else_has_much(holders: list[tuple[int, GpuProcess]]) -> None:
    assert fix_with(*holders).startswith("Raise")


def test_the_largest_three_are_enough() -> None:
    told = fix_with(*((at % 4, holder(100 + at, at + 1)) for at in range(8)))
    assert [f"pid {pid}" in told for pid in (107, 106, 105, 104)] == [True, True, True, False]
