"""Stacks of a TP hang as a capture tells them (made): all ranks but one in an all-reduce, that one before it."""

from typing import Any

from tests.stack_notation import thread
from tests.ui_source import Script
from vllm_probes.events import DoingChanged, StacksCaptured, VerdictChanged
from vllm_probes.rows import Culprit, ProcessDoing, StackFile, ThreadStack

LOOP = (
    "worker_busy_loop (vllm/v1/executor/multiproc_executor.py:1041) < "
    "worker_main (vllm/v1/executor/multiproc_executor.py:930) < run (multiprocessing/process.py:108) < "
    "spawn_main (multiprocessing/spawn.py:122) < <module> (<string>:1)"
)
REDUCES = (
    "all_reduce (torch/distributed/distributed_c10d.py:22) < all_reduce (vllm/distributed/parallel_state.py:724) < "
    f"forward (vllm/model_executor/models/llama.py:90) < _call_impl (torch/nn/modules/module.py:1750) < {LOOP}"
)
LOCKS = f"acquire (threading.py:12) < _condense (vllm/v1/worker/gpu_model_runner.py:40) < {LOOP}"
ENGINE = (
    "select (selectors.py:415) < get_response (vllm/v1/executor/multiproc_executor.py:90) < "
    "run_busy_loop (vllm/v1/engine/core.py:64) < run_engine_core (vllm/v1/engine/core.py:51)"
)
COPIES = "get (queue.py:171) < async_output_busy_loop (vllm/v1/executor/multiproc_executor.py:183)"
FUTEX, POLL = 202, 7
"""Numbers of system calls of x86_64."""


def waits(text: str, pid: int, **fields: Any) -> ThreadStack:
    return thread(text, **{"thread_id": pid, "name": "MainThread", "state": "S", "syscall": FUTEX, **fields})


def stacks(odd: int = 3, *, workers: int = 8, odd_stack: str = LOCKS) -> list[StackFile]:
    """The processes of `Script.tree`; `odd` is the rank that is not there."""
    engine = StackFile(pid=4013, process="EngineCore", threads=[waits(ENGINE, 4013, syscall=POLL)])
    found = [engine]
    for rank in range(workers):
        pid = 4031 + rank
        main = waits(odd_stack if rank == odd else REDUCES, pid)
        copies = thread(COPIES, thread_id=9000 + rank, name="WorkerAsyncOutputCopy", state="S", syscall=FUTEX)
        found.append(StackFile(pid=pid, process=f"Worker_TP{rank}", threads=[main, copies]))
    return found


def captured(script: Script, at: float, *files: StackFile, **more: Any) -> StacksCaptured:
    return script.stacks_captured(at, *(files or stacks()), **{"reason": "quiet", **more})


def doing(script: Script, at: float, odd: int = 3, since: float | None = None) -> DoingChanged:
    """What a look shows, and that it has been so since then."""
    time = script.stamp(at if since is None else since)["time"]
    rows = [ProcessDoing(pid=4013, doing="socket", what="waits for workers", since=time)]
    for rank in range(8):
        does = ("lock", "waits for a lock") if rank == odd else ("collective", "all_reduce")
        rows.append(ProcessDoing(pid=4031 + rank, doing=does[0], what=does[1], since=time))
    return DoingChanged(**script.stamp(at), processes=rows)


def verdict(script: Script, at: float, health: Any = "stalled", odd: int = 3, **fields: Any) -> VerdictChanged:
    frame = "_condense (vllm/v1/worker/gpu_model_runner.py:40)"
    name = f"Worker_TP{odd}"
    known = {
        "kind": "rank_absent",
        "culprits": [Culprit(process=name, pid=4031 + odd, rank=odd, doing="lock", frame=frame)],
        "summary": f"{name} waits for a lock: {frame}; 7 processes wait for it.",
        "since": script.stamp(at - 9)["time"],
    }
    return VerdictChanged(**script.stamp(at), health=health, **{**known, **fields})
