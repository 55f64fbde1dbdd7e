"""Verdicts on layouts that a CPU does not show, written by hand: several GPUs, stages, replicas, nodes; and more."""

import pytest
from msgspec.structs import replace

from tests.stack_notation import thread
from tests.verdict_story import LOOP, STEP, Story, engine_idle, engine_waits, idle_worker, in_all_reduce, in_lock
from vllm_probes.events import CommandEnded, GpusSampled, ProcessesSampled
from vllm_probes.rows import GpuProcess, GpuRow, ThreadStack

SYNCHRONIZE = (
    "synchronize (torch/cuda/streams.py:231) < async_output_busy_loop (vllm/v1/executor/multiproc_executor.py:960)"
)
MATMUL = f"linear (torch/nn/functional.py:134) < {STEP} < {LOOP}"


def gpus(*busy: float, power_w: float = 118.0) -> list[GpuRow]:
    """One for each rank."""
    return [
        GpuRow(
            index=rank,
            busy_percent=percent,
            power_w=power_w if percent else 80.0,
            processes=[GpuProcess(pid=10 + rank, used_bytes=1 << 30)],
        )
        for rank, percent in enumerate(busy)
    ]


def look_with_output_thread(story: Story, at: float) -> None:
    """As a GPU run hangs: every main thread is idle, and rank 0's thread of outputs waits for its GPU."""
    output = thread(SYNCHRONIZE, name="WorkerAsyncOutputCopy", state="S", syscall=202, thread_id=99)
    stacks = {2: [engine_waits()], **{10 + rank: [idle_worker()] for rank in range(story.workers)}}
    stacks[10].append(output)
    story.see(
        at,
        {pid: [one if one is output else replace(one, thread_id=pid) for one in own] for pid, own in stacks.items()},
    )


@pytest.mark.parametrize(
    ("rows", "kind", "culprits"),
    [
        (gpus(100, 100, 100, 100), "gpu_stuck", []),
        (gpus(100, 100, 0, 100), "rank_absent", ["Worker_TP2"]),
        (gpus(0, 0, 0, 0), "lost_message", []),
        (gpus(100, 100, 100, 100, power_w=690), None, None),
    ],
)
def test_all_main_threads_idle_and_one_output_awaited(
    rows: list[GpuRow], kind: str | None, culprits: list[str] | None
) -> None:
    story = Story(4, gpus=rows)
    story.quiet(103, 100)
    for at in (103, 106, 109, 112):
        look_with_output_thread(story, at)
    if kind is None:
        assert story.told == []
    else:
        assert story.last[:2] == ("stalled", kind)
        assert [name for name, _ in story.last[2]] == culprits


def test_a_step_that_keeps_gpus_at_work_takes_its_minute() -> None:
    story = Story(2, gpus=gpus(100, 100, power_w=690))
    story.quiet(103, 100)
    for at in range(103, 163, 3):
        look_with_output_thread(story, at)
    assert story.told == []


@pytest.mark.parametrize("name", ["Worker_PP{}_TP{}", "Worker_DP{}_TP{}"])
def test_a_stage_or_replica_that_computes_leaves_the_other_idle(name: str) -> None:
    story = Story(4)
    rows = [replace(row, process=name.format(*divmod(at, 2))) for at, row in enumerate(story.rows[2:])]
    story.say(ProcessesSampled, 2, rows=rows)
    story.quiet(103, 100)
    for at in range(103, 133, 3):
        computing = thread(MATMUL, name="MainThread", state="R")
        pair = (computing, in_all_reduce()) if at % 2 else (in_all_reduce(), computing)
        story.look(at, engine_waits(), idle_worker(), idle_worker(), *pair)
    assert story.told == []


def test_a_front_end_that_is_held_up_hides_that_the_engine_works() -> None:
    story = Story()
    story.quiet(103, 100)
    front = thread("acquire (app/x.py:1) < handle (app/y.py:5) < run (uvloop/__init__.py:92)", state="S", syscall=202)
    for at in (103, 106, 109, 112):
        story.look(at, engine_waits(), in_all_reduce(), in_all_reduce(), front=front)
    assert story.last == ("stalled", "frontend_stuck", [("APIServer", "lock")])


def test_a_rank_in_state_d_needs_no_stack() -> None:
    unread = ThreadStack(thread_id=1, state="D", cpu_ticks=5)
    story = Story().looks(engine_waits(), in_all_reduce(), unread)
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "uninterruptible")])


def test_weights_that_are_copied_for_a_sleep_take_their_time() -> None:
    copying = thread(
        "copy_ (torch/_tensor.py:1) < sleep (vllm/device_allocator/cumem.py:200)"
        f" < sleep (vllm/v1/worker/gpu_worker.py:130) < {LOOP}",
        name="MainThread",
        state="S",
        syscall=202,
    )
    assert Story().looks(engine_waits(), copying, copying).told == []


def test_waiting_for_other_nodes_is_at_most_suspect() -> None:
    meeting = thread(
        "barrier (torch/distributed/distributed_c10d.py:1) < "
        "init_process_group (torch/distributed/distributed_c10d.py:1710)"
        f" < init_device (vllm/v1/worker/gpu_worker.py:300) < {LOOP}",
        name="MainThread",
        state="S",
        syscall=202,
    )
    story = Story(state="starting")
    for at in range(103, 500, 6):
        story.quiet(at, 100, requests=None)
        story.look(at, engine_waits(), meeting, meeting)
    assert {one.health for one in story.told} <= {"suspect"}


def test_a_helper_that_is_stopped_is_nobodys_fault() -> None:
    story = Story()
    helper = replace(story.rows[0], pid=50, process="ray", role="other", state="T")
    story.say(ProcessesSampled, 2, rows=[helper])
    story.quiet(103, 100)
    for at in (103, 106, 109, 112):
        story.see(at, {2: [engine_idle()], 10: [idle_worker()], 11: [idle_worker()], 50: [idle_worker()]})
    assert story.told == []


def test_a_loop_that_is_known_stays_known_after_a_long_pause() -> None:
    story = Story()
    story.quiet(103, 100)
    for at in (103, 106, 109, 112, 115, 170, 300, 700):
        looping = thread(f"f{at} (app/loop.py:{at}) < {STEP} < {LOOP}", name="MainThread", state="R")
        story.look(at, engine_waits(), in_all_reduce(), looping)
    assert [one.health for one in story.told] == ["suspect", "stalled"]


def test_nothing_is_said_after_the_end() -> None:
    story = Story()
    story.say(CommandEnded, 100, code=0, signal=None)
    story.state = "exited"
    story.looks(engine_waits(), in_all_reduce(), in_lock())
    assert story.told == []


def test_clients_that_come_and_go_do_not_hide_a_hang() -> None:
    story = Story()
    for at in (103, 106, 109, 112, 115):
        story.quiet(at, 100, requests=0, connections=int(at % 2))
        story.look(at + 0.5, engine_waits(), in_all_reduce(), in_lock())
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "lock")])


def test_gpus_are_told_to_the_story() -> None:
    story = Story(2)
    story.say(GpusSampled, 3, rows=gpus(100, 0))
    assert story.memory.gpus[1].busy_percent == 0
