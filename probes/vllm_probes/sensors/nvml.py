"""Asks the GPU driver, in a process of its own: `python -m vllm_probes.sensors.nvml`.

A call of the driver may never return, and then not even SIGKILL may end its caller: so nobody else makes one. This
program prints the lines of `gpu_lines`, and ends when nobody reads them any more.
"""

import ctypes
import math
import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pynvml
from msgspec.structs import replace

from vllm_probes.rows import GpuCard, GpuProcess, GpuRow
from vllm_probes.sensors.gpu_lines import Ended, Faulted, GpuLine, Looked, Opened, encode
from vllm_probes.sensors.nvml_calls import (
    CARD,
    CUDA_VERSION,
    DRIVER_VERSION,
    FAST,
    PROCESS_LISTS,
    SLOW,
    Target,
    merge,
)

TICK_S = 1.0
SLOW_EVERY = 5
"""Ticks between two looks at what changes seldom, and at a GPU that does not answer."""
FORGET_EVERY = 300
"""Ticks until what a GPU does not support is asked again: to cut it into instances changes that."""
REOPEN_AFTER = 60
"""Ticks with a GPU that does not answer, after which the driver is opened anew, as what was reset needs it; twice as
many each time."""
XIDS_PER_TICK = 50
"""A fault can be reported over and over: the rest waits for the next tick."""

NO_LIBRARY = "There is no NVIDIA driver library (libnvidia-ml.so.1) here."
NO_GPU = "There is no NVIDIA GPU here."
HIDDEN_GPU = "The host has an NVIDIA GPU: a container sees it with `--gpus all` and NVIDIA's container toolkit."
CANNOT = {
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "The NVIDIA driver was updated while the old one is still loaded. "
    "Reboot the host, or unload and load its kernel modules; restart a container that is older than the update.",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "The NVIDIA driver is not loaded. "
    "Load it with `modprobe nvidia` as root; where that fails, `dmesg` says why.",
    pynvml.NVML_ERROR_NO_PERMISSION: "This user may not use the NVIDIA driver. "
    "`ls -l /dev/nvidia*` shows who may; a container has to be given these devices.",
    pynvml.NVML_ERROR_UNKNOWN: "The NVIDIA driver failed with an unknown error. "
    "A container that has lost its GPU devices looks like that: restart it. Else `dmesg` may tell more.",
}


class Gpu:
    """One GPU. While it does not answer, a new handle is asked for at every slow tick."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.handle: Any = None
        """None: it does not answer."""
        self.card: GpuCard | None = None
        self._target = Target()
        self._slow: dict[str, Any] = {}
        self._error: str | None = None

    def look(self, tick: int) -> GpuRow:
        """How it is now; `tick` counts from 0."""
        if self.handle is None and tick % SLOW_EVERY:
            return GpuRow(index=self.index, error=self._error)
        try:
            return self._row(tick)
        except pynvml.NVMLError as error:
            self.handle, self._error = None, str(error)
            return GpuRow(index=self.index, error=self._error)

    def _row(self, tick: int) -> GpuRow:
        if self.handle is None:
            self.handle = pynvml.nvmlDeviceGetHandleByIndex(self.index)
            self._target = Target(self.handle)
        if tick % FORGET_EVERY == 0:
            self._target.forget()
        self._target.trouble = None
        fast = self._target.ask_all(FAST)
        if not fast and self._target.trouble is not None:
            raise self._target.trouble
        if tick % SLOW_EVERY == 0:
            self._slow = self._target.ask_all(SLOW) | {"processes": self._processes()}
            self.card = replace(self.card or GpuCard(index=self.index), **self._target.ask_all(CARD))
        return GpuRow(index=self.index, **fast, **self._slow)

    def _processes(self) -> list[GpuProcess] | None:
        answers = [answer for question in PROCESS_LISTS if (answer := self._target.ask(question)) is not None]
        return merge(process for answer in answers for process in answer) if answers else None


class XidWatch:
    """Sleeps, and wakes up for an Xid. One lost GPU makes every wait fail at once: then it only sleeps."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._indices = {_address(gpu.handle): gpu.index for gpu in gpus}
        self._set: Any = None
        with suppress(pynvml.NVMLError):
            self._set = pynvml.nvmlEventSetCreate()
            for gpu in gpus:
                with suppress(pynvml.NVMLError):  # not every GPU can
                    pynvml.nvmlDeviceRegisterEvents(gpu.handle, pynvml.nvmlEventTypeXidCriticalError, self._set)

    def covers(self, gpus: Sequence[Gpu]) -> bool:
        """Whether it waits for these GPUs."""
        return {_address(gpu.handle) for gpu in gpus} == set(self._indices)

    def wait(self, timeout_s: float) -> Faulted | None:
        """The next Xid; None when the time is over."""
        if self._set is not None:
            try:
                event = pynvml.nvmlEventSetWait(self._set, math.ceil(timeout_s * 1000))
                return Faulted(index=self._index(event.device), xid=event.eventData)
            except pynvml.NVMLError as error:
                if error.value == pynvml.NVML_ERROR_TIMEOUT:
                    return None
                self.close()
        time.sleep(timeout_s)
        return None

    def close(self) -> None:
        """Give the event set back: from now on it only sleeps, and covers nothing."""
        if self._set is not None:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._set)
        self._set, self._indices = None, {}

    def _index(self, handle: Any) -> int:
        known = self._indices.get(_address(handle))  # a GPU that has just been lost does not tell its index
        return int(pynvml.nvmlDeviceGetIndex(handle)) if known is None else known


class Driver:
    """The driver from its opening on."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            pynvml.NVMLError: it cannot be used.
        """
        pynvml.nvmlInit()
        self.opened = _versions(Target())
        self._gpus = [Gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
        if not self._gpus:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        self._cards: dict[int, GpuCard] = {}
        self._xids = XidWatch(())
        self._tick = 0
        self.lost_ticks = 0
        """For how many ticks some GPU has not answered."""

    def look(self) -> Looked:
        """Every GPU now; every SLOW_EVERYth time thoroughly."""
        rows = [gpu.look(self._tick) for gpu in self._gpus]
        if self._tick % SLOW_EVERY == 0:
            self._watch_those_that_answer()
        self.lost_ticks = self.lost_ticks + 1 if any(row.error for row in rows) else 0
        self._tick += 1
        return Looked(rows=rows, cards=self._changed_cards())

    def wait(self, timeout_s: float) -> Faulted | None:
        """As long, or until an Xid comes."""
        return self._xids.wait(timeout_s)

    def close(self) -> None:
        self._xids.close()
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _watch_those_that_answer(self) -> None:
        answering = [gpu for gpu in self._gpus if gpu.handle is not None]
        if not self._xids.covers(answering):
            self._xids.close()
            self._xids = XidWatch(answering)

    def _changed_cards(self) -> list[GpuCard]:
        cards = [gpu.card for gpu in self._gpus if gpu.card is not None]
        changed = [card for card in cards if card != self._cards.get(card.index)]
        self._cards |= {card.index: card for card in changed}
        return changed


def watch() -> None:
    """Say how the GPUs are, every second, until the driver cannot be used.

    Raises:
        BrokenPipeError: nobody listens any more.
    """
    patience = REOPEN_AFTER
    while True:
        try:
            driver = Driver()
        except pynvml.NVMLError as error:
            _say(explain(error, has_gpu=host_has_gpu()))
            return
        _say(driver.opened)
        due = time.monotonic()
        while driver.lost_ticks < patience:
            _say(driver.look())
            due = next_tick(due, time.monotonic())
            _say_xids(driver, due)
        driver.close()
        patience *= 2


def next_tick(due: float, now: float) -> float:
    """A second after the last tick was due, so that it does not drift; never at once, whatever that one took."""
    return due + TICK_S if due + TICK_S > now else now + TICK_S


def _say_xids(driver: Driver, until: float) -> None:
    """Wait, and say each Xid once: a fault is often reported many times."""
    said: set[Faulted] = set()
    for _ in range(XIDS_PER_TICK):
        if (left_s := until - time.monotonic()) <= 0:
            return
        if (fault := driver.wait(left_s)) and fault not in said:
            said.add(fault)
            _say(fault)
    time.sleep(max(0.0, until - time.monotonic()))


def explain(error: pynvml.NVMLError, *, has_gpu: bool) -> Ended:
    """Why the driver cannot be used; `has_gpu`: the host has one, whether we may use it or not."""
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return Ended(status="absent", reason=f"{NO_LIBRARY} {HIDDEN_GPU}" if has_gpu else NO_LIBRARY)
    if error.value == pynvml.NVML_ERROR_NOT_FOUND:
        return Ended(status="absent", reason=NO_GPU)
    if error.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED and not has_gpu:
        return Ended(status="absent", reason=NO_GPU)
    unknown = f"The NVIDIA driver cannot be used: {error}. See what `nvidia-smi` and `dmesg` say."
    return Ended(status="failed", reason=CANNOT.get(error.value, unknown))


def host_has_gpu(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether a display controller (PCI class 03) of NVIDIA's is in this host, with a driver or without."""
    with suppress(OSError):  # a device can vanish at any time
        return any(
            vendor.read_text().strip() == "0x10de" and vendor.with_name("class").read_text().startswith("0x03")
            for vendor in devices.glob("*/vendor")
        )
    return False


def _versions(driver: Target) -> Opened:
    cuda = driver.ask(CUDA_VERSION)
    return Opened(driver=driver.ask(DRIVER_VERSION), cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _say(line: GpuLine) -> None:
    sys.stdout.buffer.write(encode(line))
    sys.stdout.buffer.flush()


def _end_with_reader() -> None:
    """End when nobody reads standard output any more, also while the driver does not answer."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    poll.poll()
    os._exit(0)


def main() -> None:
    threading.Thread(target=_end_with_reader, daemon=True).start()
    try:
        watch()
    except BrokenPipeError:
        os._exit(0)  # without another try to write what is left


if __name__ == "__main__":
    main()
