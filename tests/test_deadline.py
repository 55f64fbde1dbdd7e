"""When vLLM itself gives up: from a verdict, the processes and the environment that was read."""

from typing import Any

import pytest

from vllm_probes.events import (
    AttemptStarted,
    CommandEnded,
    DeadlineChanged,
    Event,
    ProcessesSampled,
    Stamp,
    State,
    StopRequested,
    TimeoutsRead,
    VerdictChanged,
)
from vllm_probes.judges.deadline import ENGINE_READY, EXECUTE_MODEL, Memory, step
from vllm_probes.rows import Culprit, ProcessRow

EPOCH = 5000.0
"""Unix seconds at CLOCK_MONOTONIC 0."""
NAMES: dict[int, tuple[str, Any, int]] = {
    1: ("APIServer", "api_server", 0),
    2: ("EngineCore", "engine_core", 1),
    3: ("Worker_TP0", "worker", 2),
    4: ("Worker_TP1", "worker", 2),
    5: ("APIServer_0", "api_server", 1),
    6: ("APIServer_1", "api_server", 1),
    7: ("DPSupervisor", "api_server", 0),
    8: ("APIServer", "api_server", 7),
}


class Story:
    """A run whose processes are seen at second 20."""

    def __init__(self, *pids: int, state: State | None = "serving", seconds: dict[str, float] | None = None) -> None:
        self.memory, self.state, self.told = Memory(), state, list[DeadlineChanged]()
        self.say(AttemptStarted, 0, command=["x"], levers=[], log="l", shim_pid=9)
        rows = [
            ProcessRow(pid=pid, parent_pid=parent, started=EPOCH + 10, process=name, role=role)
            for pid in pids
            for name, role, parent in [NAMES[pid]]
        ]
        self.say(ProcessesSampled, 20, rows=rows)
        self.say(TimeoutsRead, 21, seconds=seconds or {}, where="environment of EngineCore")

    def say(self, kind: type[Event], at: float, **fields: Any) -> None:
        event = kind(**Stamp(time=EPOCH + at, mono=at, node="n", attempt=1), **fields)
        self.memory, conclusions = step(self.memory, event, self.state, [])
        self.told += conclusions  # type: ignore[arg-type]

    def judge(self, at: float, health: Any, *culprits: int, kind: str = "rank_absent", since: float = 100) -> "Story":
        """A verdict is drawn from an observation of this moment."""
        stamp = Stamp(time=EPOCH + at, mono=at, node="n", attempt=1)
        ones = [Culprit(process=NAMES[pid][0], pid=pid, rank=None, doing="lock", frame=None) for pid in culprits]
        verdict = VerdictChanged(
            **stamp, health=health, kind=kind, culprits=ones, since=None if health == "ok" else EPOCH + since
        )
        self.memory, conclusions = step(self.memory, ProcessesSampled(**stamp), self.state, [verdict])
        self.told += conclusions  # type: ignore[arg-type]
        return self

    @property
    def last(self) -> tuple[str | None, float | None]:
        return (self.told[-1].name, self.told[-1].gives_up_mono) if self.told else (None, None)


def test_a_step_that_hangs_ends_five_minutes_after_the_last_progress() -> None:
    story = Story(1, 2, 3, 4).judge(108, "suspect", 4)
    assert story.last == (EXECUTE_MODEL, 400.0)
    assert story.told[-1].what == "the engine ends, as its workers have not answered"
    story.judge(112, "stalled", 4, since=100.001)
    story.judge(115, "stalled", 3, since=99.999)
    assert len(story.told) == 1
    story.judge(120, "ok")
    assert story.last == (None, None)
    assert len(story.told) == 2


def test_what_the_run_was_told_counts() -> None:
    assert Story(1, 2, 3, seconds={EXECUTE_MODEL: 40.0}).judge(108, "stalled", 3).last == (EXECUTE_MODEL, 140.0)


@pytest.mark.parametrize(
    ("pids", "culprits", "kind"),
    [
        ((1, 2), (2,), "gpu_stuck"),  # one GPU: the engine computes itself
        ((1, 2, 3), (2,), "engine_stuck"),
        ((1, 2, 3), (1,), "frontend_stuck"),
        ((1, 2, 3), (2,), "process_stopped"),
        ((1, 2, 3), (1,), "process_stopped"),
        ((1, 2, 3), (), "unknown"),
        ((3, 4), (3,), "rank_absent"),  # torchrun: nobody waits for an answer
    ],
)
def test_no_time_out_runs(pids: tuple[int, ...], culprits: tuple[int, ...], kind: str) -> None:
    assert Story(*pids).judge(108, "stalled", *culprits, kind=kind).told == []


@pytest.mark.parametrize(
    ("culprits", "kind"), [((3,), "process_stopped"), ((), "gpu_stuck"), ((), "lost_message"), ((4,), "worker_stuck")]
)
def test_the_engine_waits_for_an_answer(culprits: tuple[int, ...], kind: str) -> None:
    assert Story(1, 2, 3, 4).judge(108, "stalled", *culprits, kind=kind).last == (EXECUTE_MODEL, 400.0)


def test_before_the_environment_was_read_nothing_is_known() -> None:
    story = Story(1, 2, 3)
    story.memory = Memory(is_open=True, rows=story.memory.rows)
    assert story.judge(108, "stalled", 3).told == []


@pytest.mark.parametrize(
    ("pids", "last"),
    [
        ((1, 5, 6, 2, 3), (ENGINE_READY, 620.0)),
        ((1, 2, 3), (None, None)),  # a single one waits for ever
        ((7, 8), (None, None)),
    ],
)
def test_a_start(pids: tuple[int, ...], last: tuple[str | None, float | None]) -> None:
    story = Story(*pids, state="loading")
    assert story.last == last
    for over in ("idle", "crashed"):
        ended = Story(*pids, state="loading")
        ended.state = over  # type: ignore[assignment]
        ended.say(ProcessesSampled, 30)
        assert ended.last == (None, None)


@pytest.mark.parametrize(
    ("kind", "fields"), [(StopRequested, {"by": "key"}), (CommandEnded, {"code": 1, "signal": None})]
)
def test_an_end_is_the_end_of_it(kind: type[Event], fields: dict[str, Any]) -> None:
    story = Story(1, 2, 3).judge(108, "stalled", 3)
    story.say(kind, 110, **fields)
    assert story.last == (None, None)
    story.say(AttemptStarted, 120, command=["x"], levers=[], log="l", shim_pid=9)
    assert len(story.told) == 2
