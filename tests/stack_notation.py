"""Stacks as one line of text: `get (queue.py:171) < work (app.py:3)`, from callee to caller."""

import re
from typing import Any

from vllm_probes.rows import Frame, ThreadStack

_CALL = re.compile(r"(\S+) \((.+?)(?::(\d+))?\)")


def frames(text: str) -> list[Frame]:
    """The calls of a stack; none for an empty text."""
    found = [_CALL.fullmatch(call) for call in text.split(" < ")] if text else []
    assert all(found), text
    return [Frame(function=call[1], file=call[2], line=int(call[3] or 0)) for call in found if call]


def thread(text: str = "", **fields: Any) -> ThreadStack:
    """A thread with this stack."""
    return ThreadStack(**{"thread_id": 1, "frames": frames(text), **fields})
