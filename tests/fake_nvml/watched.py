"""A GPU sensor under test."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from tests.conftest import WaitFor
from vllm_probes.rows import GpuRow
from vllm_probes.sensors.gpu import GpuSample, GpuSensor, GpuXid


def quick(reopen_after: int = 1_000_000, forget_every: int = 1_000_000) -> list[str]:
    """The program that asks the driver, with ticks that a test can wait for."""
    settings = f"nvml.TICK_S = 0.05; nvml.REOPEN_AFTER = {reopen_after}; nvml.FORGET_EVERY = {forget_every}"
    return [sys.executable, "-c", f"from vllm_probes.sensors import nvml; {settings}; nvml.main()"]


class Watched:
    """A sensor that is looked at as a keeper does, by a clock that can be put forward."""

    def __init__(self, command: Sequence[str], wait_for: WaitFor) -> None:
        self._wait_for = wait_for
        self._others = {child.pid for child in psutil.Process().children()}
        self.sensor = GpuSensor(command)
        self.sensor.start()
        self.latest = GpuSample(status="silent")
        self.xids: list[GpuXid] = []
        self.ahead_s = 0.0
        self.pids: list[int] = []
        """Of every program that was seen."""

    def look(self) -> GpuSample:
        for news in self.sensor.sample(time.monotonic() + self.ahead_s):
            if isinstance(news, GpuXid):
                self.xids.append(news)
            else:
                self.latest = news
        self.pids += [pid for pid in self.programs() if pid not in self.pids]
        return self.latest

    def until(self, is_right: Callable[[GpuSample], Any], step_s: float = 0.0) -> GpuSample:
        """Look until a sample is right; `step_s`: put the clock forward by so much at each look."""

        def right() -> bool:
            self.ahead_s += step_s
            return bool(is_right(self.look()))

        self._wait_for(right, 30, "no sample is right")
        return self.latest

    def rows(self, is_right: Callable[[list[GpuRow]], Any]) -> list[GpuRow]:
        return self.until(lambda sample: sample.status == "ok" and is_right(sample.rows)).rows

    def programs(self) -> list[int]:
        """Those that have not ended."""
        children = [child for child in psutil.Process().children() if child.pid not in self._others]
        return [child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE]
