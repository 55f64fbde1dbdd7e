"""The tensor-parallel group."""

from vllm_probes.demo.devices import IDLE, SPINS, Device
from vllm_probes.demo.torch.distributed.distributed_c10d import ProcessGroup, all_reduce


class GroupCoordinator:
    """One rank's view of the group."""

    def __init__(self, rank: int, group: ProcessGroup, device: Device) -> None:
        self._rank = rank
        self._group = group
        self._device = device

    def all_reduce(self) -> None:
        """Wait for all ranks, while the GPU spins."""
        self._device.does(SPINS)
        all_reduce(self._group, self._rank)
        self._device.does(IDLE)
