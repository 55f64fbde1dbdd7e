"""What is known of the GPUs: one card and one row each, a short history, and who lives where.

Part of the session's model: no I/O, no clock.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from vllm_probes.events import GpuFaulted, GpusSampled
from vllm_probes.rows import GpuCard, GpuProcess, GpuRow, ProcessRow, Role

HISTORY_LENGTH = 240
FAULTS_LENGTH = 50
GPU_ROLES: frozenset[Role] = frozenset(("engine_core", "worker"))


class GpuModel(msgspec.Struct, kw_only=True):
    """Every GPU of the host by its NVML index."""

    status: str | None = None
    """As in `gpus_sampled`; None: not looked at yet."""
    reason: str | None = None
    answered_mono: float | None = None
    """When the driver answered last."""
    driver: str | None = None
    cuda: str | None = None
    cards: dict[int, GpuCard] = {}
    rows: dict[int, GpuRow] = {}
    histories: dict[int, list[tuple[float, float]]] = {}
    """(mono, busy percent), told when it changed: each holds until the next."""
    faults: list[GpuFaulted] = []

    def apply(self, event: GpusSampled) -> None:
        """Take one sample in."""
        self.status, self.reason = event.status, event.reason
        self.answered_mono = event.answered_mono if event.status == "silent" else event.mono
        self.driver, self.cuda = event.driver or self.driver, event.cuda or self.cuda
        for card in event.cards:
            self.cards[card.index] = card
        for row in event.rows:
            self.rows[row.index] = row
            if row.busy_percent is not None:
                history = self.histories.get(row.index, [])
                self.histories[row.index] = [*history, (event.mono, row.busy_percent)][-HISTORY_LENGTH:]

    def fault(self, event: GpuFaulted) -> None:
        """Take an Xid in."""
        self.faults = [*self.faults, event][-FAULTS_LENGTH:]


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A process of this run on one GPU."""

    row: ProcessRow
    used_bytes: int | None = None
    inferred: bool = False
    """From CUDA_VISIBLE_DEVICES and the rank: the driver names pids of another namespace, or none."""


def residents(gpus: GpuModel, processes: Mapping[int, ProcessRow]) -> dict[int, list[Resident]]:
    """The processes of the run on each GPU, by NVML index: as the driver says, else as vLLM hands GPUs out."""
    if _speaks_of_our_pids(gpus, processes):
        return {index: list(_told(row.processes or (), processes)) for index, row in gpus.rows.items()}
    return _inferred(gpus, processes)


def strangers(gpus: GpuModel, processes: Mapping[int, ProcessRow]) -> dict[int, list[GpuProcess]]:
    """The processes on each GPU that are none of this run; nobody where the driver's pids are not ours to compare."""
    if not _speaks_of_our_pids(gpus, processes):
        return {}
    return {
        index: [process for process in row.processes or () if process.pid not in processes and process.process]
        for index, row in gpus.rows.items()
    }


def _speaks_of_our_pids(gpus: GpuModel, processes: Mapping[int, ProcessRow]) -> bool:
    """In a container the driver names pids of the host, or none: then it knows nobody that we know."""
    told = [process for row in gpus.rows.values() for process in row.processes or ()]
    return any(process.pid in processes or process.process for process in told)


def visible_settings(processes: Mapping[int, ProcessRow]) -> list[str]:
    """Every CUDA_VISIBLE_DEVICES that processes of the run were started with; data-parallel engines differ."""
    settings = (row.visible_devices for row in processes.values() if row.role in GPU_ROLES)
    return list(dict.fromkeys(setting for setting in settings if setting is not None))


def visible_to_run(processes: Mapping[int, ProcessRow], cards: Mapping[int, GpuCard]) -> list[int]:
    """The NVML indices of the GPUs that the run may use; all of them as long as nothing says otherwise."""
    settings = visible_settings(processes)
    if not settings:
        return sorted(cards)
    return sorted({index for setting in settings for index in visible_indices(setting, cards)})


def visible_indices(visible_devices: str | None, cards: Mapping[int, GpuCard]) -> list[int]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: NVML indices in CUDA's order; all where it is not set.

    Entries are numbers or beginnings of a uuid (`GPU-…`); the first one that names no GPU ends the list (CUDA
    programming guide, "CUDA environment variables"). Numbers are NVML's only with CUDA_DEVICE_ORDER=PCI_BUS_ID or with
    GPUs that are all alike.
    """
    if visible_devices is None:
        return sorted(cards)
    found: list[int] = []
    for entry in (part.strip() for part in visible_devices.split(",")):
        matches = [index for index, card in sorted(cards.items()) if _names(entry, card)]
        if len(matches) != 1 or matches[0] in found:
            break
        found.append(matches[0])
    return found


def _names(entry: str, card: GpuCard) -> bool:
    if entry.isdecimal():
        return int(entry) == card.index
    return bool(entry) and card.uuid is not None and card.uuid.startswith(entry)


def _told(told: Iterable[GpuProcess], processes: Mapping[int, ProcessRow]) -> Iterable[Resident]:
    for process in told:
        if row := processes.get(process.pid):
            yield Resident(row=row, used_bytes=process.used_bytes)


def _inferred(gpus: GpuModel, processes: Mapping[int, ProcessRow]) -> dict[int, list[Resident]]:
    """Local rank n takes the n-th visible GPU (vLLM 0.32, v1/worker/gpu_worker.py); an engine without workers the
    first."""
    if not any(row.used_bytes for row in gpus.rows.values()):
        return {}
    found: dict[int, list[Resident]] = {}
    for row, position in _positions(list(processes.values())):
        visible = visible_indices(row.visible_devices, gpus.cards)
        if position < len(visible):
            found.setdefault(visible[position], []).append(Resident(row=row, inferred=True))
    return found


def _positions(processes: Sequence[ProcessRow]) -> Iterable[tuple[ProcessRow, int]]:
    workers = [row for row in processes if row.role == "worker" and row.rank is not None]
    engines = [row for row in processes if row.role == "engine_core"]
    parents = {row.parent_pid for row in workers}
    lowest = {parent: min(row.rank or 0 for row in workers if row.parent_pid == parent) for parent in parents}
    yield from ((row, (row.rank or 0) - lowest[row.parent_pid]) for row in workers)
    yield from ((row, 0) for row in engines if row.pid not in parents)
