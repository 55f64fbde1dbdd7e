"""What a stack proves, with what the kernel says of the thread; and which threads of a process count."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stack_notation import frames, thread
from vllm_probes.judges.frame_names import called_operator, is_standard_library
from vllm_probes.judges.frames import (
    load_frames,
    main_thread,
    threads_that_matter,
)
from vllm_probes.rows import Frame, StackFile, ThreadStack

TABLE = load_frames()
FUTEX, NANOSLEEP, READ, WAIT4, FLOCK, OPENAT, POLL, RECV = 202, 230, 0, 61, 73, 257, 7, 45
CALLS = [call for entry in TABLE.entries for sample in entry.samples for call in frames(sample)]

REAL_ALL_REDUCE = (
    "__call__ (torch/_ops.py:1279) < all_reduce (vllm/distributed/device_communicators/cpu_communicator.py:275)"
    " < all_reduce (vllm/distributed/device_communicators/cpu_communicator.py:85)"
    " < _all_reduce_out_place (vllm/distributed/parallel_state.py:750)"
    " < all_reduce (vllm/distributed/parallel_state.py:745)"
    " < forward (vllm/model_executor/layers/linear.py:1781)"
)
IMPOSTOR = "all_reduce (vllm/distributed/parallel_state.py:724) < forward (vllm/model_executor/layers/linear.py:1781)"
C10D = (
    "all_reduce (torch/distributed/distributed_c10d.py:3240) < wrapper (torch/distributed/c10d_logger.py:83)"
    " < step (t.py:1)"
)


@pytest.mark.parametrize(
    "fields", [{"state": "R"}, {"state": "S", "syscall": FUTEX}, {"state": "S", "syscall": POLL}, {}, {"syscall": -1}]
)
@pytest.mark.parametrize("stack", [REAL_ALL_REDUCE, C10D])
def test_a_rank_that_waits_for_its_peers(stack: str, fields: dict[str, Any]) -> None:
    found = TABLE.classify(thread(stack, **fields))
    assert (found.class_, found.operation) == ("collective", "all_reduce")


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "S", "syscall": NANOSLEEP},
        {"state": "S", "syscall": WAIT4},
        {"state": "S", "syscall": FLOCK},
        {"state": "S", "syscall": OPENAT},
        {"state": "S", "syscall": READ, "descriptor": "/tmp/fifo"},
        {"state": "S", "syscall": READ, "descriptor": "pipe:[5]"},
    ],
)
@pytest.mark.parametrize("stack", [REAL_ALL_REDUCE, C10D, IMPOSTOR])
def test_no_rank_waits_for_its_peers_like_that(stack: str, fields: dict[str, Any]) -> None:
    assert TABLE.classify(thread(stack, **fields)).class_ != "collective"


@pytest.mark.parametrize(
    "fields", [{"state": "R"}, {"syscall": FUTEX}, {"syscall": RECV, "descriptor": "socket:[5]"}, {}]
)
@pytest.mark.parametrize(
    "below",
    [
        "",
        "acquire (threading.py:138) < ",
        "wait (threading.py:327) < wait (threading.py:629) < ",
        "poll (zmq/sugar/poll.py:106) < ",
        "spin (plugin.py:9) < ",
    ],
)
def test_a_name_alone_is_no_collective(below: str, fields: dict[str, Any]) -> None:
    assert TABLE.classify(thread(below + IMPOSTOR, **fields)).class_ in ("running", "lock")


def test_a_rank_that_joins_its_group_may_sleep() -> None:
    stack = "_new_process_group_helper (torch/distributed/distributed_c10d.py:2169) < main (train.py:1)"
    found = TABLE.classify(thread(stack, state="S", syscall=NANOSLEEP))
    assert (found.class_, found.operation) == ("collective", "init_process_group")


def test_a_collective_is_told_by_operation_and_site() -> None:
    found = TABLE.classify(thread(C10D.replace("step (t.py:1)", "_run_ar (vllm/v1/worker/dp_utils.py:75)")))
    assert found.frame == frames(C10D)[0]
    assert (found.operation, found.site) == (
        "all_reduce",
        Frame(function="_run_ar", file="vllm/v1/worker/dp_utils.py", line=75),
    )
    assert found.why == "It waits for the other ranks in an all-reduce."


def test_a_gpu_sync_in_a_communicator_is_a_wait_for_peers() -> None:
    sync = "synchronize (torch/cuda/streams.py:245) < {} < main (run.py:1)"
    init = sync.format("_init_comm (vllm/distributed/device_communicators/pynccl.py:190)")
    found = TABLE.classify(thread(init))
    assert (found.class_, found.operation) == ("collective", "_init_comm")
    assert TABLE.classify(thread(sync.format("forward (model.py:3)"))).class_ == "gpu_sync"


QUEUE = "wait (threading.py:327) < get (queue.py:171) < "
RING = "poll (zmq/sugar/poll.py:106) < acquire_read (vllm/distributed/device_communicators/shm_broadcast.py:864) < "


@pytest.mark.parametrize(
    ("stack", "fields", "class_"),
    [
        (QUEUE + "_process_input_queue (vllm/v1/engine/core.py:1588)", {"syscall": FUTEX}, "idle"),
        (QUEUE + "_process_input_queue (vllm/v1/engine/core.py:1588)", {"state": "R"}, "idle"),
        ("_process_input_queue (vllm/v1/engine/core.py:1588)", {"syscall": FUTEX}, "running"),
        (QUEUE + "f (x.py:1) < _process_input_queue (vllm/v1/engine/core.py:1588)", {"syscall": FUTEX}, "lock"),
        (RING + "worker_busy_loop (vllm/v1/executor/multiproc_executor.py:1041)", {"syscall": POLL}, "idle"),
        ("worker_busy_loop (vllm/v1/executor/multiproc_executor.py:1041)", {"state": "R"}, "running"),
        (QUEUE + "async_output_busy_loop (vllm/v1/executor/multiproc_executor.py:1033)", {"syscall": FUTEX}, "idle"),
        ("run (asyncio/runners.py:118)", {"state": "S", "syscall": 281}, "idle"),
        ("run (asyncio/runners.py:118)", {"state": "R"}, "running"),
        ("run (asyncio/runners.py:118)", {"state": "S", "syscall": NANOSLEEP}, "running"),
        ("_report_continuous_usage (vllm/usage/usage_lib.py:255)", {"state": "S", "syscall": NANOSLEEP}, "idle"),
        (RING + "collective_rpc (vllm/v1/executor/multiproc_executor.py:440)", {"syscall": POLL}, "waiting_for_worker"),
        ("f (x.py:1) < schedule (vllm/v1/core/sched/scheduler.py:700)", {}, "scheduling"),
        ("wait (threading.py:327) < f (x.py:1)", {}, "lock"),
        (
            "__call__ (torch/_ops.py:875) < call (c1.py:694) < __call__ (torch/_inductor/output_code.py:763)",
            {},
            "torch_op",
        ),
        ("select (selectors.py:415) < f (x.py:1)", {}, "running"),
        ("", {}, "running"),
    ],
)
def test_evidence(stack: str, fields: dict[str, Any], class_: str) -> None:
    assert TABLE.classify(thread(stack, **fields)).class_ == class_


def test_names_may_be_qualified_and_paths_absolute() -> None:
    stack = (
        "Condition.wait (/usr/lib/python3.11/threading.py:327) < Queue.get (/opt/py/lib/python3.11/queue.py:171)"
        " < EngineCoreProc._process_input_queue (/v/lib/python3.11/site-packages/vllm/v1/engine/core.py:1588)"
    )
    assert TABLE.classify(thread(stack, syscall=FUTEX)).class_ == "idle"
    assert TABLE.classify(thread(stack.replace("/usr/lib/python3.11/", "/home/me/tools/"))).class_ == "running"


@pytest.mark.parametrize(
    ("file", "class_"),
    [
        ("v1/engine/core.py", "idle"),
        ("/home/me/vllm/vllm/v1/engine/core.py", "idle"),
        ("engine/core.py", "lock"),
        ("my/engine/core.py", "lock"),
    ],
)
def test_vllm_that_is_run_from_its_sources(file: str, class_: str) -> None:
    stack = QUEUE + f"_process_input_queue ({file}:1588)"
    assert TABLE.classify(thread(stack, syscall=FUTEX)).class_ == class_


def test_numbers_of_system_calls_are_those_of_the_machine() -> None:
    on_arm = load_frames(machine="aarch64")
    assert on_arm.classify(thread(C10D, state="S", syscall=98)).class_ == "collective"
    assert on_arm.classify(thread(C10D, state="S", syscall=115)).class_ == "running"


def test_the_operator_of_a_compiled_model_decides_once_it_is_known() -> None:
    stack = "__call__ (torch/_ops.py:875) < call (c1.py:694) < __call__ (torch/_inductor/output_code.py:763)"
    assert TABLE.classify(thread(stack)).class_ == "torch_op"
    operator = called_operator("        torch.ops._C.shm_allreduce.default(0, buf0)")
    assert operator is not None
    known = ThreadStack(thread_id=1, frames=[operator, *frames(stack)])
    assert (TABLE.classify(known).class_, TABLE.classify(known).operation) == ("collective", "all_reduce")


@pytest.mark.parametrize(
    ("line", "operator"),
    [
        ("torch.ops._C.shm_allreduce.default(0, buf0)", "shm_allreduce (torch/ops/_C)"),
        ("buf1 = torch.ops.vllm.unified_attention(a)", "unified_attention (torch/ops/vllm)"),
        ("buf1 = empty_strided_cpu((1, 2))", None),
        ("alloc_from_pool = torch.ops.inductor", None),
        ("torch.ops.<b>.x(1)", None),
    ],
)
def test_called_operator(line: str, operator: str | None) -> None:
    assert called_operator(line) == (frames(operator)[0] if operator else None)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("threading.py", True),
        ("asyncio/base_events.py", True),
        ("<frozen importlib._bootstrap>", True),
        ("/usr/lib/python3.12/concurrent/futures/thread.py", True),
        ("<string>", False),
        ("zmq/asyncio.py", False),
        ("/usr/lib/python3/dist-packages/requests/api.py", False),
        ("vllm/v1/engine/core.py", False),
        ("concurrent/futures/thread.py", True),
        ("code/project/plugin.py", False),
        ("test/project/plugin.py", False),
        ("profile/project/plugin.py", False),
        ("plugin.py", False),
    ],
)
def test_standard_library(file: str, expected: bool) -> None:
    assert is_standard_library(file) is expected


names = st.sampled_from([call.function for call in CALLS]) | st.text(max_size=8)
files = st.sampled_from([call.file for call in CALLS]) | st.text(max_size=8)
calls = st.builds(Frame, function=names, file=files, line=st.integers(0, 99))
threads = st.builds(
    ThreadStack,
    thread_id=st.just(1),
    frames=st.lists(calls, max_size=12),
    state=st.sampled_from([None, "R", "S", "D", "T"]),
    syscall=st.none() | st.integers(-1, 470),
    descriptor=st.none() | st.sampled_from(["socket:[1]", "pipe:[1]", "/a"]),
)


@given(threads)
def test_whatever_is_found_is_on_the_stack(any_thread: ThreadStack) -> None:
    found = TABLE.classify(any_thread)
    assert (found.operation is not None) == (found.site is not None) == (found.class_ == "collective")
    assert all(frame is None or frame in any_thread.frames for frame in (found.frame, found.site))


@given(threads)
def test_lines_do_not_count(any_thread: ThreadStack) -> None:
    elsewhere = [Frame(function=call.function, file=call.file, line=call.line + 1) for call in any_thread.frames]
    moved = TABLE.classify(ThreadStack(**{**fields_of(any_thread), "frames": elsewhere}))
    assert moved.rules == TABLE.classify(any_thread).rules


def fields_of(stack: ThreadStack) -> dict[str, Any]:
    return {name: getattr(stack, name) for name in stack.__struct_fields__}


# --- threads of a process ---------------------------------------------------------------------------------------------

BUSY_LOOP = "worker_busy_loop (vllm/v1/executor/multiproc_executor.py:1041)"
OUTPUT = (
    "synchronize (torch/cuda/streams.py:245) < get_output (vllm/v1/worker/gpu_model_runner.py:324)"
    " < async_output_busy_loop (vllm/v1/executor/multiproc_executor.py:1034)"
)
POOL_IDLE = "_worker (concurrent/futures/thread.py:81) < run (threading.py:982)"
POOL_BUSY = "encode (app.py:3) < _worker (concurrent/futures/thread.py:83)"


def process(*threads: ThreadStack, pid: int = 7) -> StackFile:
    return StackFile(pid=pid, process="Worker_TP0", threads=list(threads))


def test_the_main_thread_is_the_one_that_runs_the_main_loop() -> None:
    ray = process(thread(thread_id=7, name="MainThread"), thread(RING + BUSY_LOOP, thread_id=8, name="actor"))
    assert main_thread(TABLE, ray) is ray.threads[1]


def test_the_main_thread_by_pid_then_by_name_then_the_first() -> None:
    first, named, own = (
        thread("f (x.py:1)", thread_id=n, name=name) for n, name in enumerate(["a", "MainThread", "c"], 6)
    )
    assert main_thread(TABLE, process(first, named, own, pid=8)) is own
    assert main_thread(TABLE, process(first, named, own, pid=99)) is named
    assert main_thread(TABLE, process(first, own, pid=99)) is first
    assert main_thread(TABLE, process()) is None
    assert threads_that_matter(TABLE, process()) == []


def matter(*threads: ThreadStack) -> list[tuple[int, str]]:
    return [(one.thread_id, found.class_) for one, found in threads_that_matter(TABLE, process(*threads))]


def test_a_thread_with_a_place_in_vllm_matters_whatever_its_name() -> None:
    idle, output = thread(RING + BUSY_LOOP, thread_id=7), thread(OUTPUT, thread_id=8)
    monitor = thread("wait (threading.py:331) < run (tqdm/_monitor.py:69)", thread_id=9)
    assert matter(monitor, output, idle) == [(7, "idle"), (8, "gpu_sync")]


@pytest.mark.parametrize("main", ["wait (threading.py:327) < f (x.py:1)", "f (x.py:1)"])
def test_another_thread_matters_when_the_main_thread_waits_for_a_lock(main: str) -> None:
    held = thread(main, thread_id=7, state="S", syscall=FUTEX)
    assert matter(held, thread(POOL_BUSY, thread_id=8), thread(POOL_IDLE, thread_id=9)) == [
        (7, "lock" if "threading" in main else "running"),
        (8, "running"),
    ]


def test_no_thread_is_named_twice() -> None:
    held = thread(f"f (x.py:1) < {BUSY_LOOP}", thread_id=7, state="S", syscall=FUTEX)
    assert matter(held, thread(OUTPUT, thread_id=8)) == [(7, "running"), (8, "gpu_sync")]


def test_another_thread_does_not_matter_while_the_main_thread_is_not_held_up() -> None:
    assert matter(thread("f (x.py:1)", thread_id=7, state="R"), thread(POOL_BUSY, thread_id=8)) == [(7, "running")]
