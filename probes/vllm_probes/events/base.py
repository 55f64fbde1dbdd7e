"""The envelope of every event, and the words that several of them use."""

from typing import Literal, TypedDict

import msgspec

SCHEMA = 1

State = Literal[
    "starting",
    "running",
    "downloading",
    "loading",
    "compiling",
    "warming_up",
    "idle",
    "serving",
    "sleeping",
    "stopping",
    "exited",
    "crashed",
]
ENDED_STATES: frozenset[State] = frozenset(("exited", "crashed"))
SERVER_STATES: frozenset[State] = frozenset(("idle", "serving", "sleeping"))

Health = Literal["ok", "unhealthy", "refused", "timeout", "unreachable"]


class Stamp(TypedDict):
    """The fields that every line has; `mono` is CLOCK_MONOTONIC and the only one that intervals may use."""

    time: float
    mono: float
    node: str
    attempt: int


def stamp_of(event: "Event") -> Stamp:
    """For what is concluded from an event: it bears the same stamp, so that a recording judged again gives the same."""
    return Stamp(time=event.time, mono=event.mono, node=event.node, attempt=event.attempt)


def _snake_case(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=_snake_case):
    """The envelope of every line. `attempt` is 0 before the first launch, then counts launches from 1."""

    time: float
    """Unix seconds."""
    mono: float
    """CLOCK_MONOTONIC seconds of `node`."""
    node: str
    """Host name."""
    attempt: int


class Observation(Event, frozen=True, kw_only=True):
    """Something a sensor saw or the keeper did. Only these feed judges."""


class Conclusion(Event, frozen=True, kw_only=True):
    """Something a judge made of observations. Can be thrown away and recomputed."""
