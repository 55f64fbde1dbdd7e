"""The tensor-parallel group: a collective that returns when every rank has arrived."""

import mmap
import time

from vllm_probes.demo.devices import IDLE, SPINS, Device

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.05


def shared_arrivals(world_size: int) -> memoryview:
    """Zeroed memory that forked children share: how often each rank has arrived."""
    return memoryview(mmap.mmap(-1, 8 * world_size)).cast("Q")


class GroupCoordinator:
    """One rank's view of the group."""

    def __init__(self, rank: int, arrivals: memoryview, device: Device) -> None:
        self._rank = rank
        self._arrivals = arrivals
        self._device = device

    def all_reduce(self) -> None:
        """Wait for all ranks. They poll with pauses: on a GPU they would spin, and take a whole core each here."""
        self._device.does(SPINS)
        self._arrivals[self._rank] += 1
        arrived = self._arrivals[self._rank]
        pause_s = _FIRST_PAUSE_S
        while min(self._arrivals) < arrived:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._device.does(IDLE)
