"""What is asked of the GPU driver, as tables; each call for itself, so that one that fails takes no other along.

Facts about NVML are from its API reference (docs.nvidia.com/deploy/nvml-api), nvml.h and nvidia-ml-py 13.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pynvml

from vllm_probes.rows import GpuProcess

Call = tuple[Any, ...]
"""Name of a function of pynvml, and what it takes after the handle."""
Question = tuple[Call, ...]
"""Calls with one meaning, the newest first: a driver knows some of them."""
Table = tuple[tuple[Question, Callable[[Any], dict[str, Any]]], ...]
"""Questions, each with what makes fields of a row of its answer."""

_UNSUPPORTED = frozenset(
    (
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    )
)
_LOST = frozenset((pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED))

_HW_SLOWDOWN, _HW_SLOWDOWN_REASONS = 0x08, 0x40 | 0x80
_THROTTLE_WORDS = (
    (0x20 | 0x40, "hot"),  # told by software, by hardware
    (0x04, "power cap"),
    (0x80, "power brake"),
    (0x10, "sync boost"),
)
"""Bits of nvmlClocksEventReason… (nvml.h). An idle GPU (0x01), and clocks that somebody has set, are no throttling."""


class Target:
    """What calls go to: a GPU, or without a handle the driver. Remembers what it does not support."""

    def __init__(self, *handle: Any) -> None:
        self._handle = handle
        self._refused: set[Call] = set()
        self.trouble: pynvml.NVMLError | None = None
        """Why the last call that failed did so; what is not supported is no failure."""

    def ask(self, question: Question) -> Any | None:
        """The answer of the first call that is supported; None: there is none now.

        Raises:
            pynvml.NVMLError: the GPU is lost or needs a reset.
        """
        for call in question:
            if call in self._refused:
                continue
            function, *arguments = call
            try:
                return getattr(pynvml, function)(*self._handle, *arguments)
            except UnicodeDecodeError:  # a damaged infoROM gives names that are none
                self._refused.add(call)
            except pynvml.NVMLError as error:
                if error.value in _LOST:
                    raise
                if error.value not in _UNSUPPORTED:
                    self.trouble = error
                    return None
                self._refused.add(call)
        return None

    def ask_all(self, table: Table) -> dict[str, Any]:
        """The fields of a table as far as there are answers. Raises as `ask` does."""
        fields: dict[str, Any] = {}
        for question, read in table:
            if (answer := self.ask(question)) is not None:
                fields |= read(answer)
        return fields

    def forget(self) -> None:
        """Ask again what was not supported."""
        self._refused.clear()


def throttle_words(reasons: int) -> list[str]:
    """Why the clocks are lower than they could be."""
    words = [word for mask, word in _THROTTLE_WORDS if reasons & mask]
    is_unexplained = reasons & _HW_SLOWDOWN and not reasons & _HW_SLOWDOWN_REASONS
    return [*words, "hardware slowdown"] if is_unexplained else words


def merge(processes: Iterable[Any]) -> list[GpuProcess]:
    """One row for each pid: whoever computes and draws, or uses MPS, is in several lists with the same memory."""
    found: dict[int, list[int]] = {}
    for process in processes:
        found.setdefault(process.pid, [])
        if process.usedGpuMemory is not None:
            found[process.pid].append(process.usedGpuMemory)
    return [GpuProcess(pid=pid, used_bytes=max(used, default=None)) for pid, used in sorted(found.items())]


def _question(*calls: str | Call) -> Question:
    pairs = [call if isinstance(call, tuple) else (call,) for call in calls]
    return tuple(call for call in pairs if hasattr(pynvml, call[0]))  # bindings know only some of them, too


_MEMORY = _question(("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2), "nvmlDeviceGetMemoryInfo")
"""The first leaves out what the driver keeps for itself, as nvidia-smi does."""

DRIVER_VERSION = _question("nvmlSystemGetDriverVersion")
CUDA_VERSION = _question("nvmlSystemGetCudaDriverVersion")
FAST: Table = (
    (_MEMORY, lambda memory: {"used_bytes": memory.used}),
    (
        _question("nvmlDeviceGetUtilizationRates"),
        lambda rates: {"busy_percent": rates.gpu, "memory_busy_percent": rates.memory},
    ),
    (_question("nvmlDeviceGetPowerUsage"), lambda milliwatts: {"power_w": milliwatts / 1000}),
    (
        _question(
            ("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU),
            ("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        ),
        lambda degrees: {"temperature_c": degrees},
    ),
    (
        _question("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
        lambda reasons: {"throttle": throttle_words(reasons)},
    ),
)
SLOW: Table = (
    (_question(("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM)), lambda megahertz: {"sm_clock_mhz": megahertz}),
)
CARD: Table = (
    (_question("nvmlDeviceGetUUID"), lambda uuid: {"uuid": uuid}),
    (_question("nvmlDeviceGetName"), lambda name: {"name": name}),
    (_question("nvmlDeviceGetPciInfo"), lambda pci: {"bus_id": pci.busId}),
    (_MEMORY, lambda memory: {"total_bytes": memory.total}),
    (
        _question("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit"),
        lambda milliwatts: {"power_limit_w": milliwatts / 1000},
    ),
    (_question("nvmlDeviceGetMigMode"), lambda modes: {"mig": modes[0] == pynvml.NVML_DEVICE_MIG_ENABLE}),
)
PROCESS_LISTS = tuple(
    _question(f"nvmlDeviceGet{kind}RunningProcesses_v3", f"nvmlDeviceGet{kind}RunningProcesses_v2")
    for kind in ("Compute", "Graphics", "MPSCompute")
)
