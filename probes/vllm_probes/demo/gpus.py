"""The driver of the demo's eight simulated GPUs: `python -m vllm_probes.demo.gpus PORT`.

Speaks the lines of the program that asks the real driver. What a GPU does comes from the demo's ranks; the watts and
degrees are made up to fit: a kernel that only spins keeps a GPU busy and draws little.
"""

import sys
import time
from pathlib import Path

from vllm_probes.demo.devices import Device, devices_file, open_devices
from vllm_probes.rows import GpuCard, GpuProcess, GpuRow
from vllm_probes.sensors.gpu_lines import Looked, Opened, encode

COUNT = 8
INTERVAL_S = 1.0
TOTAL_BYTES = 80 << 30
DRIVER_BYTES = 560 << 20
IDLE_W, SPIN_W, FULL_W = 82.0, 118.0, 540.0
IDLE_C, FULL_C = 34.0, 71.0
WARMING = 0.15
"""Share of the way to its final temperature that a GPU goes in a second."""


class SimulatedGpu:
    """One GPU between two looks."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._busy_ns = 0
        self._temperature_c = IDLE_C

    def card(self) -> GpuCard:
        return GpuCard(
            index=self._index,
            uuid=f"GPU-00000000-0000-0000-0000-{self._index:012d}",
            name="NVIDIA H100 80GB HBM3",
            total_bytes=TOTAL_BYTES,
            power_limit_w=700.0,
        )

    def look(self, device: Device | None) -> GpuRow:
        """What the driver would say; a device whose process is gone has its memory back."""
        is_used = device is not None and device.pid and Path(f"/proc/{device.pid}").exists()
        if device is None or not is_used:
            return self._row(0.0, spins=False)
        busy_ns, self._busy_ns = self._busy_ns, device.busy_ns()
        busy = min(1.0, max(0.0, (self._busy_ns - busy_ns) / (INTERVAL_S * 1e9)))
        process = GpuProcess(pid=device.pid, used_bytes=device.used_bytes)
        return self._row(busy, spins=device.spins, processes=[process] if device.used_bytes else [])

    def _row(self, busy: float, *, spins: bool, processes: list[GpuProcess] | None = None) -> GpuRow:
        power_w = IDLE_W + busy * ((SPIN_W if spins else FULL_W) - IDLE_W)
        final_c = IDLE_C + (FULL_C - IDLE_C) * (power_w - IDLE_W) / (FULL_W - IDLE_W)
        self._temperature_c += WARMING * (final_c - self._temperature_c)
        return GpuRow(
            index=self._index,
            used_bytes=DRIVER_BYTES + sum(process.used_bytes or 0 for process in processes or ()),
            busy_percent=round(100 * busy),
            memory_busy_percent=0.0 if spins else round(45 * busy),
            power_w=round(power_w, 1),
            temperature_c=round(self._temperature_c),
            sm_clock_mhz=1980.0 if busy else 345.0,
            processes=processes or [],
        )


def main() -> None:
    """Tell until nobody listens."""
    path = devices_file(int(sys.argv[1]))
    gpus = [SimulatedGpu(index) for index in range(COUNT)]
    say = sys.stdout.buffer
    say.write(encode(Opened(driver="simulated", cuda="12.8")))
    cards = [gpu.card() for gpu in gpus]
    while True:
        devices = open_devices(path)
        rows = [gpu.look(devices[index] if index < len(devices) else None) for index, gpu in enumerate(gpus)]
        try:
            say.write(encode(Looked(rows=rows, cards=cards)))
            say.flush()
        except BrokenPipeError:
            return
        cards = []
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main()
