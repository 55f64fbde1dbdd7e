"""Events as JSON lines, and the two that are sent but never recorded."""

import json
from functools import reduce
from operator import or_
from typing import Any, cast

import msgspec

from vllm_probes.events import conclusions, observations  # noqa: F401 - their classes are found by their bases
from vllm_probes.events.base import Conclusion, Event, Observation


class ModelRestored(Event, frozen=True, kw_only=True):
    """What a view gets first: the whole model (`vllm_probes.model.SessionModel`) as plain data."""

    model: dict[str, Any]


class CommandAnswered(Event, frozen=True, kw_only=True):
    """The keeper's answer to one command of this view."""

    id: int
    ok: bool
    message: str = ""


_ENCODER = msgspec.json.Encoder()
_EVENTS: list[Any] = [*Observation.__subclasses__(), *Conclusion.__subclasses__(), ModelRestored, CommandAnswered]
_DECODER = msgspec.json.Decoder(reduce(or_, _EVENTS))
DAMAGED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(event: Event) -> bytes:
    """The event as one JSON line, newline included. Bytes of names and paths that are no UTF-8 become `?`."""
    try:
        return _ENCODER.encode(event) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(event), ensure_ascii=False).encode(errors="replace") + b"\n"


def decode(line: bytes) -> Event | None:
    """The event of one JSON line; None for a line that this version does not know or that is damaged.

    Unknown fields are skipped. The caller counts the Nones.
    """
    try:
        return cast(Event, _DECODER.decode(line))
    except DAMAGED:  # an unknown `event` is a DecodeError
        return None
