"""What is not said of a run that gets on, or of which too little can be seen; and what becomes of a verdict."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.stack_notation import thread
from tests.verdict_story import (
    ALL_REDUCE,
    FUTEX,
    LOOP,
    NANOSLEEP,
    POLL,
    STEP,
    Story,
    engine_idle,
    engine_waits,
    idle_worker,
    in_all_reduce,
    in_lock,
)
from vllm_probes.events import (
    ActivitySampled,
    AttemptStarted,
    ProcessesSampled,
    StacksCaptured,
    State,
    StopRequested,
    VerdictChanged,
)
from vllm_probes.judges.aftermath import hang_finding
from vllm_probes.judges.verdict import STALLED_S, START_STALLED_S, START_SUSPECT_S, SUSPECT_S
from vllm_probes.rows import DebugSetting, ProcessRow, StackFile, ThreadStack

Stack = Callable[[], ThreadStack]


def unread(state: str = "S", ticks: int = 0) -> ThreadStack:
    return ThreadStack(thread_id=1, state=state, cpu_ticks=ticks)


def test_without_stacks_the_rank_that_rests_while_others_spin_is_suspected() -> None:
    story = Story()
    story.quiet(103, 100)
    for at in (103, 106, 109, 112, 115):
        story.look(at, unread(), unread("R", ticks=at * 100), unread(), front=unread())
    assert [one.health for one in story.told] == ["suspect"]
    assert story.last == ("suspect", "rank_absent", [("Worker_TP1", "unknown")])


def test_a_rank_that_can_be_read_beside_one_that_spins_unread() -> None:
    story = Story()
    story.quiet(103, 100)
    for at in (103, 106, 109, 112, 115):
        story.look(at, engine_waits(), unread("R", ticks=at * 100), in_lock())
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "lock")])


def test_without_stacks_nothing_is_said_of_ranks_that_all_do_the_same() -> None:
    story = Story()
    story.quiet(103, 100)
    for at in (103, 106, 109, 112, 115):
        story.look(at, unread(), unread("R", ticks=at * 100), unread("R", ticks=at * 100), front=unread())
        story.look(at + 1, unread(), unread(), unread(), front=unread())
    assert story.told == []


def test_a_rank_whose_stacks_are_missing_is_not_taken_for_one_that_is_there() -> None:
    story = Story().looks(engine_waits(), in_all_reduce(), unread())
    assert story.last == ("suspect", "rank_absent", [("Worker_TP1", "unknown")])


def test_a_stopped_process_without_stacks_is_known() -> None:
    story = Story().looks(engine_waits(), in_all_reduce(), unread("T"))
    assert story.last == ("stalled", "process_stopped", [("Worker_TP1", "stopped")])


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


@pytest.mark.parametrize(("callbacks", "told"), [(["a", "b", "c", "a"], []), (["a"] * 4, ["suspect", "stalled"])])
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
    in_load = thread(f"acquire (app/pool.py:88) < {LOOP}", name="MainThread", state="S", syscall=FUTEX)
    for at in (103, 106, 109, 112, 120, 130, 161):
        story.quiet(at, 100)
        story.look(at, engine_waits(), idle_worker(), in_load)
    assert [(one.health, one.time - 1100) for one in story.told] == [("suspect", 12.0), ("stalled", 61.0)]
    assert story.told[-1].kind == "startup_stuck"


def test_a_program_whose_ranks_make_steps_has_started() -> None:
    """Of one that is no server nothing else tells."""
    story = Story(state="warming_up")
    for at in (103, 106, 109, 112):
        story.quiet(at, 100)
        story.look(at, engine_waits(), in_all_reduce(), in_lock())
    assert story.last == ("suspect", "rank_absent", [("Worker_TP1", "lock")])


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


def hang_that_is_given_up() -> Story:
    """Its engine has left the place where it waited, and takes its processes along, when somebody looks."""
    story = Story().looks(engine_waits(), in_all_reduce(), in_lock())
    story.look(121, engine_idle(), idle_worker(), idle_worker())
    assert story.last == ("ok", None, [])
    return story


def test_a_hang_that_was_given_up_explains_the_end_that_follows() -> None:
    story = hang_that_is_given_up()
    hung = story.memory.hung(125)
    assert hung is not None
    assert hung.summary.startswith("Worker_TP1 waits for a lock")
    story.state = "crashed"
    story.say(ProcessesSampled, 125, gone=[2, 10, 11])
    assert story.last == ("dead", "rank_absent", [("Worker_TP1", "lock")])


def test_a_hang_that_is_over_explains_no_end() -> None:
    assert hang_that_is_given_up().memory.hung(1000) is None
    story = hang_that_is_given_up()
    story.quiet(123, 122)
    assert story.memory.hung(125) is None


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


def test_a_debugger_that_stops_a_process_is_meant_to() -> None:
    story = Story()
    story.rows[-1] = replace(story.rows[-1], state="t")
    story.say(ProcessesSampled, 2, rows=story.rows)
    story.looks(engine_waits(), in_all_reduce(), unread("t"))
    assert [(one.health, one.kind) for one in story.told] == [("suspect", "process_stopped")]


def test_a_setting_that_makes_it_slow_takes_patience() -> None:
    story = Story()
    slow = DebugSetting(setting="CUDA_LAUNCH_BLOCKING=1", origin="typed", cost="slower", patience=3)
    story.say(AttemptStarted, 1, command=["x"], levers=[], log="l", shim_pid=9, debug_settings=[slow])
    story.say(ProcessesSampled, 2, rows=story.rows)
    story.looks(engine_waits(), in_all_reduce(), in_lock())
    assert story.told == []
    for at in (115, 118, 121, 124, 127):
        story.look(at, engine_waits(), in_all_reduce(), in_lock())
    assert [(one.health, one.time - 1100) for one in story.told] == [("suspect", 15.0), ("stalled", 24.0)]


@pytest.mark.parametrize(
    ("woken", "told"),
    [
        ([0, 3, 6, 9, 12, 15, 18, 21], []),
        ([0, 0, 0, 5, 5, 5, 5, 10], ["suspect"]),
        ([7] * 8, ["suspect"]),
    ],
)
def test_a_download_that_moves_wakes_whoever_waits_for_it(woken: list[int], told: list[str]) -> None:
    """As huggingface_hub 1 does with chunks of 10 MB: no file grows while one arrives slowly."""
    story = Story(state="downloading")
    stack = "read (httpcore/_backends/sync.py:128) < get (huggingface_hub/file_download.py:430)"
    for at, count in zip(range(103, 127, 3), woken, strict=True):
        story.quiet(at, 100)
        receiving = thread(stack, name="MainThread", state="S", syscall=POLL, switch_count=count)
        story.look(at, engine_waits(), receiving, receiving)
    assert [one.health for one in story.told] == told


def test_what_has_computed_for_long_has_not_stood_still_as_long() -> None:
    story = Story(state="loading")
    for at in range(103, 223, 6):
        story.quiet(at, 100)
        where = f"convert_{min(at, 203)} (app/weights.py:5)"
        story.look(at, engine_waits(), idle_worker(), busy(f"{where} < load (app/weights.py:9)", min(at, 203)))
    assert [(one.health, one.time) for one in story.told] == [("suspect", 1217.0)]


@pytest.mark.parametrize("calls", ["spin (app/a.py:{line})", "native (app/a.py:5)"])
def test_a_rank_that_computes_alone_in_the_same_place_holds_a_start_up(calls: str) -> None:
    story = Story(state="loading")
    for at in range(103, 172, 3):
        story.quiet(at, 100)
        where = calls.format(line=5 + at % 2)
        story.look(at, engine_waits(), idle_worker(), busy(f"{where} < load (app/weights.py:9)", at))
    assert [(one.health, one.time - 1100) for one in story.told] == [("suspect", 12.0), ("stalled", 60.0)]


def test_ranks_that_all_compute_in_the_same_place_get_on() -> None:
    story = Story(state="loading")
    for at in range(103, 223, 6):
        story.quiet(at, 100)
        story.look(at, engine_waits(), *[busy("convert (app/a.py:5) < load (app/weights.py:9)", at)] * 2)
    assert story.told == []


def busy(stack: str, at: float) -> ThreadStack:
    """All of a core since second 0."""
    return thread(f"{stack} < {LOOP}", name="MainThread", state="R", cpu_ticks=round(at * 100))


ENCODE = "encode (vllm/tokenizers/hf.py:90) < {} < cmd (vllm/entrypoints/cli/serve.py:156)"


def test_a_tokeniser_that_waits_for_a_lock_prepares_nothing() -> None:
    in_lock_of_tokeniser = thread(
        f"acquire (app/pool.py:88) < {ENCODE.format('f (a.py:1)')}", name="MainThread", state="S", syscall=FUTEX
    )
    story = Story().looks(engine_idle(), idle_worker(), idle_worker(), front=in_lock_of_tokeniser)
    assert story.last == ("stalled", "frontend_stuck", [("APIServer", "lock")])


def test_a_long_text_takes_its_time() -> None:
    story = Story()
    story.quiet(103, 100)
    for at in range(103, 130, 3):
        encoding = thread(ENCODE.format("f (a.py:1)"), name="MainThread", state="R", cpu_ticks=at * 100)
        story.look(at, engine_idle(), idle_worker(), idle_worker(), front=encoding)
    assert story.told == []


@pytest.mark.parametrize(("moves", "told"), [(True, []), (False, ["suspect", "stalled"])])
def test_a_step_of_minutes_is_one_while_ranks_go_from_one_collective_to_the_next(moves: bool, told: list[str]) -> None:
    story = Story()
    story.quiet(103, 100)
    for at in range(103, 250, 3):
        forward = f"forward (vllm/model.py:{at if moves else 1}) < {STEP} < {LOOP}"
        meets = thread(f"{ALL_REDUCE} < {forward}", name="MainThread", state="R")
        computes = thread(f"__call__ (torch/_ops.py:1279) < {forward}", name="MainThread", state="R")
        story.look(at, engine_waits(), meets, replace(computes, cpu_ticks=at * 100))
    assert [one.health for one in story.told] == told


@pytest.mark.parametrize(("rests", "told"), [(False, []), (True, ["suspect", "stalled"])])
def test_weights_that_are_put_in_again_take_their_time(rests: bool, told: list[str]) -> None:
    story = Story()
    story.quiet(103, 100)
    for at in range(103, 250, 3):
        ticks = 0 if rests else at * 100
        stack = f"copy (app/copy.py:3) < reload_weights (vllm/v1/worker/gpu_worker.py:90) < {LOOP}"
        story.look(at, engine_waits(), *[thread(stack, name="MainThread", state="R", cpu_ticks=ticks)] * 2)
    assert [one.health for one in story.told] == told


def test_whoever_is_held_up_in_every_look_is_named() -> None:
    story = Story()
    story.quiet(103, 100)
    for at, other in zip((103, 106, 109, 112), (in_lock(), in_all_reduce(), in_lock(), in_all_reduce()), strict=True):
        story.look(at, engine_waits(), other, in_lock())
    assert [(one.health, one.time - 1100) for one in story.told][:2] == [("suspect", 6.0), ("stalled", 9.0)]
    assert {culprit.process for one in story.told for culprit in one.culprits} == {"Worker_TP1"}


def test_a_look_that_cannot_read_the_culprit_takes_nothing_back() -> None:
    story = Story()
    story.quiet(103, 100)
    for at, culprit in zip((103, 106, 109, 112), (in_lock, in_lock, unread, in_lock), strict=True):
        story.look(at, engine_waits(), in_all_reduce(), culprit())
    assert [(one.health, one.time - 1100) for one in story.told] == [("suspect", 6.0), ("stalled", 12.0)]


def test_a_gap_between_looks_is_no_silence() -> None:
    story = Story()
    story.quiet(103, 100)
    for at in (103, 160, 220, 300):
        story.look(at, engine_waits(), in_all_reduce(), in_lock())
    assert story.told == []


STACKS = st.sampled_from([idle_worker, in_all_reduce, in_lock, unread, engine_idle, engine_waits])
START_MOVES = ["log", "bytes", "children", "compilers", "download", "gpu_memory"]
PHASES: list[tuple[State, list[str], float, float]] = [
    ("serving", ["tokens", "compilers"], SUSPECT_S, STALLED_S),
    ("loading", START_MOVES, START_SUSPECT_S, START_STALLED_S),
    ("downloading", START_MOVES, START_SUSPECT_S, START_STALLED_S),
]
STEPS = st.lists(
    st.tuples(st.floats(0.1, 30.0), st.none() | st.integers(0, 5), STACKS, STACKS, STACKS), min_size=3, max_size=40
)


@pytest.mark.parametrize(("state", "moves", "suspect_s", "stalled_s"), PHASES)
@given(STEPS)
def test_nothing_is_said_before_everything_has_stood_still_long_enough(
    state: State,
    moves: list[str],
    suspect_s: float,
    stalled_s: float,
    steps: list[tuple[float, int | None, Stack, Stack, Stack]],
) -> None:
    story, at, moved = Story(state=state), 100.0, {"start": 100.0}
    for pause_s, what, engine, first, second in steps:
        at += pause_s
        if what is not None:
            moved[moves[what % len(moves)]] = at
        story.say(ActivitySampled, at, moved=dict(moved), requests=1.0, connections=1)
        before = len(story.told)
        story.look(at, engine(), first(), second())
        quiet_s = at - max(moved.values())
        for one in story.told[before:]:
            assert quiet_s >= {"ok": 0, "suspect": suspect_s, "stalled": stalled_s}[one.health]


@given(st.lists(st.tuples(st.floats(0.1, 20.0), STACKS, STACKS, STACKS), max_size=30))
def test_the_same_events_give_the_same_verdicts(steps: list[tuple[float, Stack, Stack, Stack]]) -> None:
    def told() -> list[VerdictChanged]:
        story, at = Story(), 103.0
        story.quiet(at, 100)
        for pause_s, engine, first, second in steps:
            at += pause_s
            story.look(at, engine(), first(), second())
        return story.told

    verdicts = told()
    assert verdicts == told()
    assert all(one.time - 1100 >= STALLED_S for one in verdicts if one.health == "stalled")
