"""Verdicts where a thread beside the main one, or a process beside engine and workers, holds everybody up."""

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from tests.stack_notation import thread
from tests.verdict_story import (
    FUTEX,
    LOOP,
    NANOSLEEP,
    POLL,
    Story,
    engine_idle,
    engine_waits,
    front_idle,
    idle_worker,
    in_all_reduce,
)
from vllm_probes.events import ProcessesSampled
from vllm_probes.rows import ProcessRow, ThreadStack

POOL = "_worker (concurrent/futures/thread.py:83) < run (threading.py:982) < _bootstrap (threading.py:1002)"
INPUT = "process_input_sockets (vllm/v1/engine/core.py:1831) < run (threading.py:982)"
COORDINATOR = (
    "process_input_socket (vllm/v1/engine/coordinator.py:250) < run_coordinator (vllm/v1/engine/coordinator.py:170)"
)
RING = "vllm/distributed/device_communicators/shm_broadcast.py"


def looks(story: Story, stacks: Mapping[int, list[ThreadStack]]) -> Story:
    """All processes with all these threads; the first is the main one."""
    story.quiet(103, 100)
    own_ids = {
        pid: [replace(one, thread_id=pid + 100 * at) for at, one in enumerate(own)] for pid, own in stacks.items()
    }
    for at in (103, 106, 109, 112):
        story.see(at, own_ids)
    return story


def stuck(text: str, call: int = FUTEX) -> ThreadStack:
    return thread(text, name="side", state="S", syscall=call)


@pytest.mark.parametrize(
    ("pid", "held_up", "verdict"),
    [
        (1, stuck(f"encode (app/x.py:5) < {POOL}", FUTEX), ("frontend_stuck", [("APIServer", "lock")])),
        (1, stuck(f"encode (app/x.py:5) < {POOL}", NANOSLEEP), ("frontend_stuck", [("APIServer", "sleep")])),
        (2, stuck(f"wait (threading.py:327) < {INPUT}"), ("engine_stuck", [("EngineCore", "lock")])),
    ],
)
def test_a_side_thread_that_holds_requests_up(pid: int, held_up: ThreadStack, verdict: tuple[object, ...]) -> None:
    stacks = {1: [front_idle()], 2: [engine_idle()], 10: [idle_worker()], 11: [idle_worker()]}
    stacks[pid].append(held_up)
    assert looks(Story(), stacks).last == ("stalled", *verdict)


@pytest.mark.parametrize(
    ("pid", "side"),
    [
        (1, stuck(POOL)),
        (10, stuck(f"serve (app/cache.py:5) < {POOL}")),
        (2, stuck(f"poll (zmq/sugar/poll.py:106) < {INPUT}", POLL)),
    ],
)
def test_a_side_thread_that_holds_nobody_up(pid: int, side: ThreadStack) -> None:
    stacks = {1: [front_idle()], 2: [engine_idle()], 10: [idle_worker()], 11: [idle_worker()]}
    stacks[pid].append(side)
    assert looks(Story(), stacks).told == []


def test_a_lock_inside_the_ring_is_no_wait_for_a_message() -> None:
    reading = stuck(f"acquire_read ({RING}:780) < dequeue ({RING}:860) < {LOOP}")
    story = Story().looks(engine_waits(), in_all_reduce(), reading)
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "lock")])
    writing = stuck(f"acquire_write ({RING}:741) < enqueue ({RING}:937) < run_busy_loop (vllm/v1/engine/core.py:1500)")
    story = Story().looks(writing, idle_worker(), idle_worker())
    assert story.last == ("stalled", "engine_stuck", [("EngineCore", "lock")])


@pytest.mark.parametrize(
    ("coordinator", "culprits"),
    [
        (stuck(f"publish (app/x.py:4) < {COORDINATOR}"), [("engine_stuck", "DPCoordinator")]),
        (stuck(f"poll (zmq/sugar/poll.py:106) < {COORDINATOR}", POLL), [("rank_absent", "Worker_DP1")]),
    ],
)
def test_replicas_that_nobody_wakes(coordinator: ThreadStack, culprits: list[tuple[str, str]]) -> None:
    """One replica is in a step and waits for another, which waits for the word of the coordinator."""
    story = Story()
    rows = [replace(row, process=f"Worker_DP{at}") for at, row in enumerate(story.rows[2:])]
    story.say(ProcessesSampled, 2, rows=[*rows, replace(rows[0], pid=3, process="DPCoordinator", role="coordinator")])
    looks(story, {2: [engine_waits()], 3: [coordinator], 10: [in_all_reduce()], 11: [idle_worker()]})
    assert [(story.told[-1].kind, one.process) for one in story.told[-1].culprits] == culprits


def test_a_script_that_sits_still_beside_its_idle_engine_is_suspected() -> None:
    story = Story(workers=0, state="running")
    script = ProcessRow(pid=5, parent_pid=0, started=0, process="job.py", role="command")
    story.say(ProcessesSampled, 2, rows=[script], gone=[1])
    story.quiet(103, 100, requests=None)
    asleep = stuck("work (job.py:5) < <module> (job.py:9)", NANOSLEEP)
    for at in range(103, 130, 3):
        story.see(at, {2: [engine_idle()], 5: [asleep]})
    assert story.last[:2] == ("suspect", "unknown")
    assert [one.process for one in story.told[-1].culprits] == ["job.py"]


NATIVE = "hash_all (app/hashing.py:7) < run (threading.py:982) < _bootstrap (threading.py:1002)"


def busy(**more: object) -> ThreadStack:
    return replace(thread(NATIVE, name="Thread-7", state="R"), owns_gil=True, moves=False, **more)


def test_native_code_of_another_thread_lets_a_rank_run_no_python() -> None:
    place = "forward (vllm/model_executor/layers/linear.py:1781) < execute_model (app/m.py:9)"
    at_its_place = thread(place, name="MainThread", state="S", syscall=FUTEX)
    idle = {1: [front_idle()], 2: [engine_waits()], 10: [in_all_reduce()]}
    story = looks(Story(), {**idle, 11: [at_its_place, busy()]})
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "native_loop")])
    assert story.told[-1].culprits[0].frame == "hash_all (app/hashing.py:7)"
    awake = replace(at_its_place, state="R", syscall=None, owns_gil=False, moves=False)
    story = looks(Story(), {**idle, 11: [awake, busy()]})
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "native_loop")])
    # Python hands its lock on: whoever loops in it lets others run.
    story = looks(Story(), {**idle, 11: [at_its_place, busy(source="while True: pass")]})
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "lock")])
