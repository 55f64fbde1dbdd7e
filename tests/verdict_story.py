"""Stories for the hang detector: stacks of vLLM 0.32 as they were seen, and the events of a server around them."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.stack_notation import thread
from vllm_probes.events import (
    ActivitySampled,
    AttemptStarted,
    Event,
    GpusSampled,
    ProcessesSampled,
    StacksCaptured,
    Stamp,
    State,
    VerdictChanged,
)
from vllm_probes.judges.frames import load_frames
from vllm_probes.judges.verdict import Memory, step
from vllm_probes.rows import GpuRow, ProcessRow, StackFile, ThreadStack

TABLE = load_frames()
POLL, FUTEX, READ, NANOSLEEP = 7, 202, 0, 230
STEP = (
    "execute_model (vllm/v1/worker/gpu_worker.py:80)"
    " < _execute_worker_rpc (vllm/v1/executor/multiproc_executor.py:1000)"
)
LOOP = "worker_busy_loop (vllm/v1/executor/multiproc_executor.py:1041)"
DEQUEUE = (
    "poll (zmq/sugar/poll.py:106) < wait (vllm/distributed/device_communicators/shm_broadcast.py:210)"
    " < acquire_read (vllm/distributed/device_communicators/shm_broadcast.py:780)"
    " < dequeue (vllm/distributed/device_communicators/shm_broadcast.py:860)"
)
ALL_REDUCE = (
    "__call__ (torch/_ops.py:1279) < all_reduce (vllm/distributed/device_communicators/cpu_communicator.py:275)"
    " < all_reduce (vllm/distributed/device_communicators/cpu_communicator.py:85)"
    " < _all_reduce_out_place (vllm/distributed/parallel_state.py:750)"
    " < all_reduce (vllm/distributed/parallel_state.py:745)"
)


def idle_worker() -> ThreadStack:
    return thread(f"{DEQUEUE} < {LOOP}", name="MainThread", state="S", syscall=POLL)


def in_all_reduce() -> ThreadStack:
    return thread(f"{ALL_REDUCE} < {STEP} < {LOOP}", name="MainThread", state="R")


def in_lock() -> ThreadStack:
    return thread(f"acquire (app/pool.py:88) < {STEP} < {LOOP}", name="MainThread", state="S", syscall=FUTEX)


def engine_waits() -> ThreadStack:
    wait = "get_response (vllm/v1/executor/multiproc_executor.py:433) < run_busy_loop (vllm/v1/engine/core.py:1500)"
    return thread(f"{DEQUEUE} < {wait}", name="MainThread", state="S", syscall=POLL)


def engine_idle() -> ThreadStack:
    stack = "wait (threading.py:327) < get (queue.py:171) < _process_input_queue (vllm/v1/engine/core.py:1588)"
    return thread(f"{stack} < run_busy_loop (vllm/v1/engine/core.py:1500)", name="MainThread", state="S", syscall=FUTEX)


def front_idle() -> ThreadStack:
    return thread(
        "run (asyncio/runners.py:118) < run (uvloop/__init__.py:92) < cmd (vllm/entrypoints/cli/serve.py:156)",
        name="MainThread",
        state="S",
        syscall=281,
    )


class Story:
    """A server of so many ranks, one event after the other; seconds since its launch."""

    def __init__(self, workers: int = 2, *, state: State = "serving", gpus: list[GpuRow] | None = None) -> None:
        self.memory, self.state, self.told = Memory(), state, list[VerdictChanged]()
        self.workers = workers
        roles: list[tuple[int, str, Any, int | None]] = [(1, "APIServer", "api_server", None)]
        roles += [(2, "EngineCore", "engine_core", None)]
        roles += [(10 + rank, f"Worker_TP{rank}", "worker", rank) for rank in range(workers)]
        self.rows = [
            ProcessRow(pid=pid, parent_pid=0, started=0, process=name, role=role, rank=rank)
            for pid, name, role, rank in roles
        ]
        self.say(AttemptStarted, 0, command=["x"], levers=[], log="l", shim_pid=9)
        self.say(ProcessesSampled, 1, rows=self.rows)
        if gpus is not None:
            self.say(GpusSampled, 2, rows=gpus)

    def say(self, kind: type[Event], at: float, **fields: Any) -> None:
        event = kind(**Stamp(time=1000.0 + at, mono=at, node="n", attempt=1), **fields)
        self.memory, conclusions = step(TABLE, self.memory, event, self.state, None)
        self.told += [one for one in conclusions if isinstance(one, VerdictChanged)]

    def quiet(self, at: float, moved: float, *, requests: float | None = 1, connections: int = 0) -> None:
        self.say(ActivitySampled, at, moved={"tokens": moved}, requests=requests, connections=connections)

    def look(self, at: float, engine: ThreadStack, *workers: ThreadStack, front: ThreadStack | None = None) -> None:
        workers_stacks = {10 + rank: [one] for rank, one in enumerate(workers)}
        self.see(at, {1: [front or front_idle()], 2: [engine], **workers_stacks})

    def see(self, at: float, stacks: Mapping[int, Sequence[ThreadStack]]) -> None:
        """One look at the threads of these processes, by pid."""
        files = [
            StackFile(pid=pid, process=f"p{pid}", file=f"s/{pid}.json", threads=list(threads))
            for pid, threads in stacks.items()
        ]
        self.say(StacksCaptured, at, reason="quiet", folder="s", stacks=files)

    def looks(self, engine: ThreadStack, *workers: ThreadStack, front: ThreadStack | None = None) -> "Story":
        """Quiet since second 100, and the looks that the keeper takes then."""
        self.quiet(103, 100)
        for at in (103, 106, 109, 112):
            self.look(at, engine, *workers, front=front)
        return self

    @property
    def last(self) -> tuple[str, str | None, list[tuple[str, str]]]:
        verdict = self.told[-1]
        return verdict.health, verdict.kind, [(one.process, one.doing) for one in verdict.culprits]
