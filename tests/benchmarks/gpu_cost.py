"""What it costs to watch eight GPUs on a fake driver: `python -m tests.benchmarks.gpu_cost`.

The driver answers at once: what a real one takes itself is not in the figures.
"""

import os
import random
import tempfile
import time
from pathlib import Path

import psutil

from tests.benchmarks.measure import report
from tests.fake_nvml.driver import FakeDriver, build
from vllm_probes.events import GpusSampled
from vllm_probes.gpus import GpuModel
from vllm_probes.sensors.gpu import GpuSample, GpuSensor, difference

GPUS = 8
WARM_UP_S = 10
WINDOW_S = 20
WINDOWS = 5


def busy_world(dice: random.Random) -> list[str]:
    """Eight GPUs at work: every number moves, each has three processes."""
    settings = [f"gpus {GPUS}"]
    for gpu in range(GPUS):
        numbers = {
            "used": (70 << 30) + dice.randrange(1 << 30),
            "busy": dice.randrange(80, 101),
            "memory_busy": dice.randrange(30, 60),
            "milliwatts": dice.randrange(400_000, 700_000),
            "celsius": dice.randrange(55, 75),
            "reasons": dice.choice((0, 4)),
        }
        settings += [f"gpu {gpu} {name} {value}" for name, value in numbers.items()]
        settings += [f"gpu {gpu} process compute {1000 + gpu * 10 + n} {20 << 30}" for n in range(3)]
    return settings


def cpu_s(pid: int) -> float:
    """Of all its threads, finer than the clock ticks of /proc/PID/stat (sched-stats, Linux documentation)."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


class Keeper:
    """The side of the keeper, with the CPU that it used."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self._sensor, self._model = GpuSensor(), GpuModel()
        self._sensor.start()

    def second(self) -> None:
        begin = time.process_time()
        for sample in self._sensor.sample(time.monotonic()):
            if isinstance(sample, GpuSample) and (news := difference(self._model, sample)):
                facts = {name: getattr(news, name) for name in ("status", "driver", "cuda", "cards", "rows")}
                self._model.apply(GpusSampled(time=0, mono=0, node="", attempt=1, **facts))
        self.cpu_s += time.process_time() - begin
        time.sleep(1)

    def close(self) -> None:
        self._sensor.close()


def main() -> None:
    dice = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        driver = FakeDriver(build(Path(folder, "library")), Path(folder))
        driver.write(*busy_world(dice))
        os.environ.update(driver.environment)
        keeper = Keeper()
        for _ in range(WARM_UP_S):
            keeper.second()
        (program,) = psutil.Process().children()
        measure(keeper, program, driver, dice)
        keeper.close()


def measure(keeper: Keeper, program: psutil.Process, driver: FakeDriver, dice: random.Random) -> None:
    program_percent, keeper_percent, pss_mb = [], [], []
    for _ in range(WINDOWS):
        program_s, keeper_s, begin = cpu_s(program.pid), keeper.cpu_s, time.monotonic()
        for _ in range(WINDOW_S):
            driver.write(*busy_world(dice))
            keeper.second()
        elapsed_s = time.monotonic() - begin
        program_percent.append(100 * (cpu_s(program.pid) - program_s) / elapsed_s)
        keeper_percent.append(100 * (keeper.cpu_s - keeper_s) / elapsed_s)
        pss_mb.append(program.memory_full_info().pss / 1e6)
    report(f"CPU of the program that asks, {GPUS} GPUs", program_percent, "%", "goal 1 % of a core")
    report("CPU of the keeper for it", keeper_percent, "%", "no goal")
    report("memory of the program (PSS)", pss_mb, "MB", "no goal")


if __name__ == "__main__":
    main()
