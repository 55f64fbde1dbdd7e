"""How a run went on: work that it did, steps of its start, deaths and new beginnings, by line numbers of its log."""

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

from vllm_probes.judges.rules import Rule

NEAR_LINES = 20
"""Requests that were answered so shortly before a death tell nothing: the answer to a stream begins before its tokens
come."""
_DEATHS = ("worker_proc_died", "engine_core_died", "engine_init_failed_opaque")
_BEGINNINGS = ("banner", "args")
_NO_STEPS = ("shutdown", "sleep", "download")
"""Bars of other files go on while one cannot be downloaded."""
_NEVER = 1 << 62


class Survival:
    """Takes what happened, then tells what a run survived."""

    def __init__(self) -> None:
        self._works = array("Q")
        self._deaths: list[int] = []
        self._endings: list[int] = []
        self._beginnings: list[int] = []
        self._steps: defaultdict[str | None, list[int]] = defaultdict(list)

    def work(self, number: int) -> None:
        """Line `number` is written only by a run that does its work."""
        self._works.append(number)

    def follow(self, rule: Rule, number: int, writer: str | None) -> None:
        """Line `number` of a process is known."""
        if rule.severity == "fatal" and rule.class_ in _DEATHS:
            self._deaths.append(number)
        elif rule.phase in _BEGINNINGS:
            self._beginnings.append(number)
        elif rule.phase == "shutdown":
            self._endings.append(number)
        elif is_step(rule):
            self._steps[writer].append(number)

    def close(self) -> None:
        """Everything was taken: records are told when they are complete, not in the order of their lines."""
        for numbers in (self._deaths, self._beginnings, self._endings, *self._steps.values()):
            numbers.sort()
        self._deaths = [number for number in self._deaths if not self.ended_before(number)]

    def ended_before(self, number: int) -> bool:
        """The run was told to end before the line: the death of its processes is none."""
        return _last(self._endings, number) > _last(self._beginnings, number)

    def worked_after(self, number: int) -> bool:
        """The run did its work after the line, and no death came before or right after it."""
        death = _next(self._deaths, number)
        return self._lived(number) and death - number > NEAR_LINES and _next(self._works, number) < death

    def stepped_after(self, number: int, writer: str | None) -> bool:
        """The process that wrote the line went on with its start."""
        end = min(_next(self._deaths, number), _next(self._beginnings, number))
        return self._lived(number) and _next(self._steps.get(writer, ()), number) < end

    def _lived(self, number: int) -> bool:
        return _last(self._deaths, number) <= _last(self._beginnings, number)


def is_step(rule: Rule) -> bool:
    """A process that says so goes on with its start."""
    return rule.phase is not None and rule.phase not in (*_BEGINNINGS, *_NO_STEPS)


def _last(numbers: Sequence[int], number: int) -> int:
    """The last of them up to `number`, 0 where there is none."""
    at = bisect_right(numbers, number)
    return numbers[at - 1] if at else 0


def _next(numbers: Sequence[int], number: int) -> int:
    at = bisect_right(numbers, number)
    return numbers[at] if at < len(numbers) else _NEVER
