"""From stacks and quiet to a verdict: stories with real stacks of vLLM 0.32, and with GPUs as they are said to look.

The GPU stories are written by hand: no GPU was at hand, and a CPU shows none of them.
"""

from typing import Any

import pytest

from tests.stack_notation import thread
from vllm_probes.events import (
    ActivitySampled,
    AttemptStarted,
    Event,
    GpusSampled,
    LogRecorded,
    ProcessesSampled,
    StacksCaptured,
    Stamp,
    State,
    StopRequested,
    VerdictChanged,
)
from vllm_probes.judges.aftermath import hang_finding
from vllm_probes.judges.frames import load_frames
from vllm_probes.judges.verdict import Memory, step
from vllm_probes.rows import GpuProcess, GpuRow, ProcessRow, StackFile, ThreadStack

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


def idle_worker() -> ThreadStack:
    return thread(f"{DEQUEUE} < {LOOP}", name="MainThread", state="S", syscall=POLL)


def in_all_reduce() -> ThreadStack:
    reduce = (
        "__call__ (torch/_ops.py:1279) < all_reduce (vllm/distributed/device_communicators/cpu_communicator.py:275)"
        " < all_reduce (vllm/distributed/device_communicators/cpu_communicator.py:85)"
        " < _all_reduce_out_place (vllm/distributed/parallel_state.py:750)"
        " < all_reduce (vllm/distributed/parallel_state.py:745)"
    )
    return thread(f"{reduce} < {STEP} < {LOOP}", name="MainThread", state="R")


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
        stacks = {1: front or front_idle(), 2: engine, **{10 + rank: one for rank, one in enumerate(workers)}}
        files = [
            StackFile(pid=pid, process=f"p{pid}", file=f"s/{pid}.json", threads=[stack])
            for pid, stack in stacks.items()
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


def test_the_rank_that_is_not_where_the_others_wait() -> None:
    story = Story().looks(engine_waits(), in_all_reduce(), in_lock())
    assert [(one.health, one.time) for one in story.told] == [("suspect", 1106.0), ("stalled", 1109.0)]
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "lock")])
    verdict = story.told[-1]
    assert verdict.since == 1100.0
    assert verdict.summary == "Worker_TP1 waits for a lock: acquire (app/pool.py:88); 1 process waits for it."
    assert verdict.culprits[0].frame == "acquire (app/pool.py:88)"
    culprit = next(one for one in verdict.evidence if one.signal == "Worker_TP1")
    assert (culprit.file, culprit.since) == ("s/11.json", 1100.0)


def test_nothing_is_said_after_one_look() -> None:
    story = Story()
    story.quiet(103, 100)
    story.look(103, engine_waits(), in_all_reduce(), in_lock())
    assert story.told == []


def test_tokens_that_move_again_take_it_back() -> None:
    story = Story().looks(engine_waits(), in_all_reduce(), in_lock())
    story.quiet(115, 114)
    assert story.last == ("ok", None, [])


def test_a_look_in_between_that_shows_something_else_begins_anew() -> None:
    story = Story()
    story.quiet(103, 100)
    for at, rank in ((103, 0), (106, 1), (109, 0), (112, 1)):
        ranks = [in_all_reduce(), in_lock()]
        story.look(at, engine_waits(), *(ranks if rank else reversed(ranks)))
    assert story.told == []


def test_an_idle_server_with_open_connections_is_well() -> None:
    story = Story(state="idle")
    story.quiet(103, 100, requests=0, connections=3)
    for at in (103, 106, 109, 112, 200):
        story.look(at, engine_idle(), idle_worker(), idle_worker())
    assert story.told == []


def test_no_work_no_verdict() -> None:
    story = Story(state="idle")
    story.quiet(103, 100, requests=0)
    for at in (103, 106, 109):
        story.look(at, engine_waits(), in_all_reduce(), in_lock())
    assert story.told == []


def test_a_rank_that_left_by_an_exception_is_named_though_it_waits_for_work() -> None:
    story = Story()
    story.say(LogRecorded, 99, line_number=5, level="error", pid=11, exception_line_number=7)
    assert story.looks(engine_waits(), in_all_reduce(), idle_worker()).last == (
        "stalled",
        "rank_absent",
        [("Worker_TP1", "idle")],
    )


def test_a_stopped_process_comes_first() -> None:
    stopped = thread(f"__call__ (torch/_ops.py:1279) < {STEP} < {LOOP}", name="MainThread", state="T", syscall=-1)
    assert Story().looks(engine_waits(), in_all_reduce(), stopped).last == (
        "stalled",
        "process_stopped",
        [("Worker_TP1", "stopped")],
    )


def test_a_frozen_process_is_stopped() -> None:
    story = Story()
    story.quiet(103, 100)
    for at in (103, 106, 109):
        stacks = {1: front_idle(), 2: engine_waits(), 10: in_all_reduce(), 11: in_all_reduce()}
        files = [StackFile(pid=pid, process="p", threads=[stack], frozen=pid == 10) for pid, stack in stacks.items()]
        story.say(StacksCaptured, at, reason="quiet", folder="s", stacks=files)
    assert story.last == ("stalled", "process_stopped", [("Worker_TP0", "stopped")])


def test_an_engine_that_does_something_else() -> None:
    stack = "put (app/log.py:3) < schedule (vllm/v1/core/sched/scheduler.py:591)"
    engine = thread(
        f"{stack} < run_busy_loop (vllm/v1/engine/core.py:1500)", name="MainThread", state="S", syscall=NANOSLEEP
    )
    assert Story().looks(engine, idle_worker(), idle_worker()).last == (
        "stalled",
        "engine_stuck",
        [("EngineCore", "sleep")],
    )


def test_a_front_end_that_blocks_its_event_loop() -> None:
    front = thread(
        "read (app/auth.py:9) < cmd (vllm/entrypoints/cli/serve.py:156)", state="S", syscall=READ, descriptor="pipe:[1]"
    )
    story = Story().looks(engine_idle(), idle_worker(), idle_worker(), front=front)
    assert story.last == ("stalled", "frontend_stuck", [("APIServer", "read")])


# --- as GPUs are said to look -----------------------------------------------------------------------------------------


def gpus(*busy: float) -> list[GpuRow]:
    return [
        GpuRow(index=index, used_bytes=1, busy_percent=percent, power_w=110.0, processes=[GpuProcess(pid=10 + index)])
        for index, percent in enumerate(busy)
    ]


def all_idle_in_python(story: Story) -> Story:
    return story.looks(engine_waits(), *[idle_worker() for _ in range(story.workers)])


def test_one_gpu_at_zero_names_its_rank() -> None:
    story = all_idle_in_python(Story(8, gpus=gpus(100, 100, 100, 0, 100, 100, 100, 100)))
    assert story.last == ("stalled", "rank_absent", [("Worker_TP3", "idle")])
    assert any(one.signal == "GPUs" and "3 at 0 %" in one.value for one in story.told[-1].evidence)


def test_all_gpus_busy_name_nobody() -> None:
    assert all_idle_in_python(Story(8, gpus=gpus(*[100] * 8))).last == ("stalled", "gpu_stuck", [])


def test_all_gpus_idle_mean_a_lost_message() -> None:
    assert all_idle_in_python(Story(8, gpus=gpus(*[0] * 8))).last == ("stalled", "lost_message", [])


def test_a_single_gpu_has_no_worker_process() -> None:
    stack = "synchronize (torch/cuda/streams.py:200) < get_output (vllm/v1/worker/gpu_model_runner.py:324)"
    engine = thread(
        f"{stack} < run_busy_loop (vllm/v1/engine/core.py:1500)", name="MainThread", state="S", syscall=FUTEX
    )
    assert Story(0, gpus=gpus(100)).looks(engine).last[:2] == ("stalled", "gpu_stuck")


# --- what must not be said --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leaf",
    [
        "linear (torch/nn/functional.py:134)",
        "exec_module (<frozen importlib._bootstrap_external>:940)",
        "_batch_encode_plus (transformers/tokenization_utils_fast.py:553)",
    ],
)
def test_what_runs_through_its_program_gets_on(leaf: str) -> None:
    story = Story()
    story.quiet(103, 100)
    for at in (103, 106, 109, 112, 120):
        busy = thread(f"{leaf} < f{at} (app/model.py:{at}) < {STEP} < {LOOP}", name="MainThread", state="R")
        story.look(at, engine_waits(), busy, busy)
    assert story.told == []


def test_a_loop_through_several_functions_is_no_progress() -> None:
    story = Story()
    story.quiet(103, 100)
    for at in (103, 106, 109, 112):
        looping = thread(f"f{at} (app/loop.py:{at}) < {STEP} < {LOOP}", name="MainThread", state="R")
        story.look(at, engine_waits(), in_all_reduce(), looping)
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "python_loop")])


@pytest.mark.parametrize(("callbacks", "told"), [(["a", "b", "c", "a"], []), (["a"] * 4, ["stalled"])])
def test_an_event_loop_that_goes_from_callback_to_callback_gets_on(callbacks: list[str], told: list[str]) -> None:
    story = Story()
    story.quiet(103, 100)
    for at, callback in zip((103, 106, 109, 112), callbacks, strict=True):
        stack = f"f{at} (app/x.py:{at}) < {callback} (app/x.py:1) < run (uvloop/__init__.py:92) < cmd (vllm/x.py:1)"
        front = thread(stack, name="MainThread", state="R")
        story.look(at, engine_idle(), idle_worker(), idle_worker(), front=front)
    assert [one.health for one in story.told] == told


def test_a_script_without_counters_computes_for_long() -> None:
    story = Story()
    for at in range(103, 200, 6):
        story.quiet(at, 100, requests=None)
        busy = thread(f"f{at} (app/model.py:{at}) < {STEP} < {LOOP}", name="MainThread", state="R", cpu_ticks=at * 100)
        story.look(at, engine_waits(), in_all_reduce(), busy)
    assert story.told == []


def test_a_program_of_which_nothing_is_known_is_only_suspected() -> None:
    story = Story(workers=0, state="running")
    story.rows = [ProcessRow(pid=1, parent_pid=0, started=0, process="job.py", role="command")]
    story.say(ProcessesSampled, 2, rows=story.rows, gone=[2])
    asleep = thread("work (job.py:5) < <module> (job.py:9)", name="MainThread", state="S", syscall=NANOSLEEP)
    for at in range(103, 200, 6):
        story.quiet(at, 100, requests=None)
        story.say(
            StacksCaptured, at, reason="quiet", folder="s", stacks=[StackFile(pid=1, process="x", threads=[asleep])]
        )
    assert [(one.health, one.kind) for one in story.told] == [("suspect", "unknown")]
    assert story.told[-1].culprits[0].frame == "work (job.py:5)"


@pytest.mark.parametrize("state", ["loading", "compiling", "warming_up", "starting"])
def test_a_start_that_computes_gets_on(state: State) -> None:
    story = Story(state=state)
    for at in range(103, 180, 6):
        story.quiet(at, 100)
        stack = f"load (app/weights.py:5) < {LOOP}"
        busy = thread(stack, name="MainThread", state="R", cpu_ticks=at * 100)
        story.look(at, engine_waits(), busy, busy)
    assert story.told == []


def test_a_start_in_which_one_rank_stands_still() -> None:
    story = Story(state="loading")
    for at in (103, 106, 109, 112, 120, 130, 161):
        story.quiet(at, 100)
        story.look(at, engine_waits(), idle_worker(), in_lock())
    assert [(one.health, one.time - 1100) for one in story.told] == [("suspect", 12.0), ("stalled", 61.0)]
    assert story.told[-1].kind == "startup_stuck"


def test_who_asks_for_the_end_gets_no_verdict() -> None:
    story = Story()
    story.say(StopRequested, 50, by="key")
    assert story.looks(engine_waits(), in_all_reduce(), in_lock()).told == []


def test_a_hang_is_not_over_when_everybody_has_given_up_waiting() -> None:
    story = Story().looks(engine_waits(), in_all_reduce(), in_lock())
    story.quiet(115, 100, requests=0)
    story.look(118, engine_waits(), in_all_reduce(), in_lock())
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "lock")])
    story.look(121, engine_idle(), idle_worker(), idle_worker())
    assert story.last == ("ok", None, [])


def test_a_hang_outlives_the_processes_that_were_in_it() -> None:
    story = Story().looks(engine_waits(), in_all_reduce(), in_lock())
    story.say(ProcessesSampled, 120, gone=[10])
    story.look(121, engine_idle(), idle_worker(), in_lock())
    story.state = "crashed"
    story.say(ProcessesSampled, 122, gone=[2, 11])
    assert story.last == ("dead", "rank_absent", [("Worker_TP1", "lock")])
    assert story.told[-1].summary.startswith("It hung, and then ended: Worker_TP1 waits for a lock")
    assert [one.health for one in story.told] == ["suspect", "stalled", "dead"]


def test_whoever_went_first_is_named() -> None:
    story = Story()
    story.say(ProcessesSampled, 120, gone=[11])
    story.state = "crashed"
    story.say(ProcessesSampled, 122, gone=[2, 10])
    assert story.last == ("dead", "unknown", [("Worker_TP1", "unknown")])
    assert story.told[-1].summary == "Worker_TP1 (pid 11) went first."


def test_the_hang_is_the_first_finding_of_the_end() -> None:
    told = Story().looks(engine_waits(), in_all_reduce(), in_lock()).told[-1]
    finding = hang_finding(told, "attempt-1.log")
    assert (finding.rule, finding.file, finding.line) == ("hang", "s/11.json", told.summary)
