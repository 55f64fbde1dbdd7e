"""What was said of a hang, against what should have been: one line of the table, and the sum of all."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_CASE = 40


@dataclass(frozen=True)
class Expected:
    """What has to be said. `process` None: of any process."""

    kind: str
    process: str | None
    doing: str

    def is_met(self, verdict: Mapping[str, Any], pid: int | None) -> bool:
        """`pid`: that of the process which met the fault, where that is known."""
        named = verdict["culprits"]
        is_right = all(
            one["doing"] == self.doing and self.process in (None, one["process"]) and pid in (None, one["pid"])
            for one in named
        )
        return bool(named) and verdict["kind"] == self.kind and is_right


@dataclass(frozen=True)
class Outcome:
    """Of one case; seconds from the fault to the first of each health."""

    case: str
    is_right: bool
    told_s: Mapping[str, float]

    @classmethod
    def of(
        cls,
        case: str,
        expected: Expected,
        told: Sequence[Mapping[str, Any]],
        struck: float,
        *,
        is_in_time: bool,
        pid: int | None = None,
    ) -> "Outcome":
        """Of these `verdict_changed`, all of which have to be right; printed."""
        verdicts = [one for one in told if one["health"] != "ok"]
        is_right = bool(verdicts) and all(expected.is_met(one, pid) for one in verdicts) and is_in_time
        words = "  ".join(f"{one['health']} {one['time'] - struck:5.1f} s" for one in verdicts) or "nothing was said"
        last = verdicts[-1] if verdicts else {"kind": "", "culprits": []}
        named = [(one["process"], one["doing"], one["frame"]) for one in last["culprits"]]
        return cls.said(case, f"{words}  {last['kind']} {named}", verdicts, struck, is_right=is_right)

    @classmethod
    def said(
        cls, case: str, words: str, verdicts: Sequence[Mapping[str, Any]], struck: float, *, is_right: bool
    ) -> "Outcome":
        print(f"{case:<{LONGEST_CASE}} {'right' if is_right else 'WRONG'}  {words}", flush=True)
        return cls(case, is_right, {one["health"]: one["time"] - struck for one in reversed(verdicts)})


def summarise(outcomes: Sequence[Outcome]) -> None:
    """How many were right, how soon, and each that was not."""
    print(f"\n{sum(one.is_right for one in outcomes)} of {len(outcomes)} right")
    for health in ("suspect", "stalled"):
        seconds = [one.told_s[health] for one in outcomes if health in one.told_s]
        if seconds:
            longest_s, median_s = max(seconds), statistics.median(seconds)
            print(f"{health}: median {median_s:.1f} s, longest {longest_s:.1f} s, n {len(seconds)}")
    for one in outcomes:
        if not one.is_right:
            print(f"miss: {one.case}")
