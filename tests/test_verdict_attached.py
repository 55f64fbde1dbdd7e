"""What is said of a run that somebody else started: it may hang since long, and nobody may be left who waits for it."""

from typing import Any

from tests.verdict_story import (
    Story,
    engine_idle,
    engine_waits,
    idle_worker,
    in_all_reduce,
    in_lock,
)
from vllm_probes.events import ActivitySampled, AttemptStarted, ProcessesSampled
from vllm_probes.rows import ThreadStack


def attached(**more: Any) -> Story:
    """To a server that listens, at second 100."""
    story = Story()
    started = {"command": ["x"], "levers": [], "log": "l", "shim_pid": None, "attached_pid": 1}
    story.say(AttemptStarted, 100, **started, attached_serving=True)
    story.say(ProcessesSampled, 100, rows=story.rows)
    return story


def arrive(story: Story, *stacks: ThreadStack, **more: Any) -> None:
    """The looks that the keeper takes in the first seconds."""
    for at in (101, 103, 105, 107, 109, 111):
        story.say(ActivitySampled, at, moved={"start": 100}, found_still=True, **more)
        story.look(at, *stacks)


def told(story: Story) -> list[tuple[str, float]]:
    return [(one.health, one.time - 1100) for one in story.told]


def test_a_hang_that_nobody_waits_for_is_told_within_ten_seconds() -> None:
    story = attached()
    arrive(story, engine_waits(), in_all_reduce(), in_lock(), requests=0.0, connections=0)
    assert told(story) == [("suspect", 5.0), ("stalled", 9.0)]
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "lock")])


def test_a_server_that_never_told_its_gauges_is_one() -> None:
    story = attached()
    arrive(story, engine_waits(), in_all_reduce(), in_lock(), unanswered=True)
    assert story.last == ("stalled", "rank_absent", [("Worker_TP1", "lock")])


def test_a_server_at_rest_is_ok() -> None:
    story = attached()
    arrive(story, engine_idle(), idle_worker(), idle_worker(), requests=0.0, connections=0)
    assert told(story) == [("ok", 1.0)]


def test_a_server_at_work_is_ok_as_soon_as_tokens_move() -> None:
    story = attached()
    story.say(ActivitySampled, 101, moved={"start": 100}, found_still=True, requests=1.0)
    story.look(101, engine_waits(), in_all_reduce(), in_lock())
    assert told(story) == []
    story.say(ActivitySampled, 103, moved={"start": 100, "tokens": 102}, requests=1.0)
    assert told(story) == [("ok", 3.0)]


def test_of_what_nobody_may_read_nothing_is_said() -> None:
    story = attached()
    blind = ThreadStack(thread_id=1)
    story.say(ActivitySampled, 101, moved={"start": 100}, found_still=True, requests=0.0, connections=0)
    story.look(101, blind, blind, blind, front=blind)
    story.say(ActivitySampled, 115, moved={"start": 100}, requests=0.0, connections=0)
    assert told(story) == []
