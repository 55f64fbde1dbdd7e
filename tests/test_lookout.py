"""When the keeper looks at stacks: its clock and what it knows are made, its rules are real."""

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from vllm_probes.events import ActivitySampled
from vllm_probes.judges.activity import Activity
from vllm_probes.keeper import lookout
from vllm_probes.keeper.lookout import Lookout


class Clock:
    """In the place of the stream: a server with work whose tokens stand still since second 0."""

    def __init__(self, *, attached: bool = False) -> None:
        self.now = 0.0
        self.suspects, self.is_stalled = False, False
        moved, requests = ({"start": 0.0}, 0.0) if attached else ({"tokens": 0.0}, 1.0)
        self.activity = Activity(moved=moved, requests=requests, is_attached=attached)
        self.model = SimpleNamespace(state="serving", attempt=SimpleNamespace(own_clients=(), probe=None))
        self.told: list[ActivitySampled] = []

    def stamp(self) -> Any:
        return {"time": self.now, "mono": self.now, "node": "n", "attempt": 1}

    def publish(self, event: ActivitySampled) -> None:
        self.told.append(event)


def looks(clock: Clock, until: int, **more: bool) -> Iterator[int]:
    """The seconds at which it was time for stacks."""
    out = Lookout(clock)  # type: ignore[arg-type]
    for now in range(1, until):
        clock.now = now
        if out.look(None, **more):
            yield now


def test_a_server_with_work_that_stands_still_is_looked_at_less_and_less() -> None:
    assert list(looks(Clock(), 200)) == [3, 6, 11, 16, 21, 26, 31, 36, 41, 46, 51, 56, 61, 71, 91, 121, 151, 181]


def test_one_look_that_misleads_costs_little() -> None:
    clock = Clock()
    gone_at = 12
    found = []
    for now in looks(clock, 40):
        found.append(now)
        clock.suspects = now != gone_at
    assert found == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39]


def test_while_stacks_are_taken_the_next_have_to_wait() -> None:
    clock = Clock()
    out = Lookout(clock)  # type: ignore[arg-type]
    found = []
    for now in range(1, 20):
        clock.now = now
        clock.suspects = True
        if out.look(None, is_looking=7 <= now <= 12):
            found.append(now)
    assert found == [3, 6, 13, 16, 19]


def test_a_hang_that_is_known_is_looked_at_rarely() -> None:
    clock = Clock()
    clock.is_stalled = True
    found = list(looks(clock, 3000))
    assert max(after - before for before, after in pairwise(found)) == lookout.KNOWN_PAUSE_S


def test_whoever_is_attached_to_is_looked_at_at_once_and_then_left_alone() -> None:
    clock = Clock(attached=True)
    assert list(looks(clock, 60)) == [1, 3, 5, 7, 9, 11]
    assert all(event.found_still for event in clock.told if event.mono < lookout.ARRIVAL_S)
    assert not clock.told[-1].found_still


def test_one_that_may_hang_is_looked_at_every_two_seconds_when_attached_to() -> None:
    clock = Clock(attached=True)
    clock.suspects = True
    assert list(looks(clock, 13))[:6] == [1, 3, 5, 7, 9, 11]


def test_tokens_that_move_end_the_arrival() -> None:
    clock = Clock(attached=True)
    out = Lookout(clock)  # type: ignore[arg-type]
    clock.now = 0.5
    assert out.look(None)
    clock.activity = Activity(moved={"start": 0.0, "tokens": 1.0}, requests=1.0)
    clock.now = 1.5
    assert not out.look(None)
    assert clock.told[-1].moved["tokens"] == 1.0
