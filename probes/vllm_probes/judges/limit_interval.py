"""The time between two looks at a server that works, and the arithmetic of what happened in it.

"Measured" is vLLM 0.32 on the CPU, two ranks on two cores.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from vllm_probes.rates import total
from vllm_probes.rows import DebugSetting, EngineSample, GpuRow, ProcessRow, Role

LOADED_IN_FLIGHT = 0.5
"""Less than this many requests at a time, on average, is no load. Measured: one short request a second is 0.1."""

GPU_ROWS = 3
"""So many rows must tell the same of a GPU: each is of one second, and of a GPU that flickers few are told."""

Key = tuple[Literal["cpu", "swap", "memory_pressure"], int]
"""What was held, and whose: a pid, 0 for the host."""


class Limit(NamedTuple):
    """What limits; `culprit` tells two findings of one name apart. Evidence: signal and value."""

    name: str
    summary: str
    evidence: tuple[tuple[str, str], ...]
    culprit: str = ""


class Interval(msgspec.Struct, frozen=True):
    """The time between two looks at a server that was active in both."""

    seconds: float
    before: Sequence[EngineSample]
    after: Sequence[EngineSample]
    means: Mapping[Key, float]
    """Over the time: CPU in percent of one core, swap in bytes a second, pressure in percent."""
    peaks: Mapping[Key, float]
    """The highest of what was told in that time."""
    processes: Mapping[int, ProcessRow]
    gpu_ranks: Mapping[int, ProcessRow]
    """The worker, or the engine without workers, on each GPU of the run by NVML index."""
    gpu_rows: Mapping[int, Sequence[GpuRow]]
    """What was told of each GPU since the load began, the latest GPU_ROWS at most."""
    settings: Sequence[DebugSetting] = ()
    compiled: str | None = None
    """What vLLM last said about a compilation while it served, if that was lately."""

    def increase(self, field: str) -> float | None:
        """Of a counter, over the engines that both looks know; None where it is unknown or fell."""
        pairs = [(getattr(old, field), getattr(new, field)) for old, new in self.engines()]
        steps = [new - old for old, new in pairs if old is not None and new is not None and new >= old]
        return sum(steps) if steps else None

    def engines(self) -> Iterator[tuple[EngineSample, EngineSample]]:
        """Each engine in both looks."""
        old = {engine.engine: engine for engine in self.before}
        return ((old[engine.engine], engine) for engine in self.after if engine.engine in old)

    @property
    def before_first_token(self) -> float | None:
        """How many requests waited for their first token at a time, wherever they were (Little's law). Measured: 178
        of 200 before and 23 behind it; 31.2 of 32 in a front end that tokenises."""
        spent_s = self.increase("ttft_sum_s")
        return None if spent_s is None else spent_s / self.seconds

    @property
    def decoding(self) -> float | None:
        """How many requests were between two tokens at a time."""
        spent_s = self.increase("tpot_sum_s")
        return None if spent_s is None else spent_s / self.seconds

    @property
    def in_engine(self) -> float | None:
        """How many ran or waited, the mean of both looks."""
        looks = self._looks()
        return sum(looks) / 2 if len(looks) == 2 else None

    @property
    def in_flight(self) -> float | None:
        """How many requests the server had at a time."""
        return plus(self.before_first_token, self.decoding)

    @property
    def is_loaded(self) -> bool:
        """It had requests most of the time, and they moved."""
        moved = [self.increase(field) for field in ("generation_tokens", "prompt_tokens", "iterations")]
        has_stood_still = moved.count(None) < len(moved) and not any(moved)
        looks = self._looks()
        in_both = min(looks) if len(looks) == 2 else 0.0
        return max(self.in_flight or 0.0, in_both) >= LOADED_IN_FLIGHT and not has_stood_still

    def _looks(self) -> list[float]:
        """How many ran or waited in each look that tells."""
        looks = [plus(total(look, "running"), total(look, "waiting")) for look in (self.before, self.after)]
        return [look for look in looks if look is not None]

    def of_role(self, *roles: Role) -> list[ProcessRow]:
        return [row for row in self.processes.values() if row.role in roles]

    def cpu(self, row: ProcessRow) -> float | None:
        return self.means.get(("cpu", row.pid))

    def gpu_range(self, index: int, field: Literal["busy_percent", "power_w"]) -> tuple[float, float] | None:
        """Least and most of it; None while too little is known."""
        values = [value for row in self.gpu_rows.get(index, ()) if (value := getattr(row, field)) is not None]
        return (min(values), max(values)) if len(values) >= GPU_ROWS else None


def plus(one: float | None, other: float | None) -> float | None:
    """The sum of what is known."""
    return other if one is None else one if other is None else one + other
