"""From stacks and quiet to a verdict: stories with real stacks of vLLM 0.32, and with GPUs as they are said to look.

The GPU stories are written by hand: no GPU was at hand, and a CPU shows none of them.
"""

import pytest
from msgspec.structs import replace

from tests.stack_notation import thread
from tests.verdict_story import (
    FUTEX,
    LOOP,
    NANOSLEEP,
    READ,
    STEP,
    Story,
    engine_idle,
    engine_waits,
    front_idle,
    idle_worker,
    in_all_reduce,
    in_lock,
)
from vllm_probes.events import ActivitySampled, LogRecorded, ProcessesSampled, StacksCaptured
from vllm_probes.rows import GpuProcess, GpuRow, StackFile

EPOLL = 232


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


def test_a_call_of_native_code_is_no_loop_of_python_because_something_else_ran_before_it() -> None:
    story = Story()
    story.quiet(103, 100)
    story.look(103, engine_waits(), in_all_reduce(), in_all_reduce())
    for at in (106, 109, 112, 115):
        native = thread(f"pow (app/x.py:5) < {STEP} < {LOOP}", name="MainThread", state="R", moves=False)
        story.look(at, engine_waits(), in_all_reduce(), native)
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "native_loop")])


@pytest.mark.parametrize(
    ("names", "there", "expected"),
    [
        (["Worker_PP0_TP0", "Worker_PP0_TP1", "Worker_PP1_TP0", "Worker_PP1_TP1"], {2}, ["Worker_PP1_TP1"]),
        (["Worker_DP0_TP0", "Worker_DP0_TP1", "Worker_DP1_TP0", "Worker_DP1_TP1"], {0}, ["Worker_DP0_TP1"]),
        (["Worker_DP0", "Worker_DP1", "Worker_DP2"], {1}, ["Worker_DP0", "Worker_DP2"]),
    ],
)
def test_ranks_of_another_stage_or_replica_are_idle_for_good_reasons(
    names: list[str], there: set[int], expected: list[str]
) -> None:
    story = Story(workers=len(names))
    rows = [replace(row, process=name) for row, name in zip(story.rows[2:], names, strict=True)]
    story.say(ProcessesSampled, 2, rows=rows)
    stacks = [in_all_reduce() if rank in there else idle_worker() for rank in range(len(names))]
    story.looks(engine_waits(), *stacks)
    assert story.last == ("stalled", "rank_absent", [(name, "idle") for name in expected])


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


def test_a_probe_is_work() -> None:
    story = Story(state="idle")
    story.say(ActivitySampled, 103, moved={"tokens": 50, "work": 100}, requests=0, connections=0, probed=True)
    for at in (103, 106, 109):
        story.look(at, engine_waits(), in_all_reduce(), in_lock())
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "lock")])


def test_a_rank_that_left_by_an_exception_is_named_though_it_waits_for_work() -> None:
    story = Story()
    story.say(LogRecorded, 99, line_number=5, level="error", pid=11, exception_line_number=7)
    assert story.looks(engine_waits(), in_all_reduce(), idle_worker()).last == (
        "stalled",
        "rank_absent",
        [("Worker_TP1", "idle")],
    )


def test_an_event_loop_inside_a_step_waits_for_no_work() -> None:
    loop = "select (selectors.py:468) < _run_once (asyncio/base_events.py:1884) < f (a.py:1)"
    step = "load (app/x.py:5) < execute_model (vllm/v1/worker/gpu_worker.py:700)"
    waits = thread(f"{loop} < {step} < {LOOP}", name="MainThread", state="S", syscall=EPOLL, descriptor="socket:[5]")
    assert Story().looks(engine_waits(), in_all_reduce(), waits).last == (
        "stalled",
        "rank_absent",
        [("Worker_TP1", "socket")],
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
