"""What the demo's ranks make their simulated GPUs do: a file that they map and the simulated driver reads."""

import mmap
import os
import tempfile
import time
from pathlib import Path

IDLE, COMPUTES, SPINS = 0, 1, 2
_PID, _USED, _DOING, _SINCE, _BUSY, _FIELDS = range(6)
"""64-bit words of a device: its process, bytes in use, what it does, since when, and for how long it ever did
something (nanoseconds of CLOCK_MONOTONIC)."""


def devices_file(port: int) -> Path:
    """Of the demo that serves on this port; the folder is made, for this user alone.

    Raises:
        PermissionError: somebody else has put something there.
    """
    folder = Path(tempfile.gettempdir(), f"vllm-tui-demo-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not ours: remove it.")
    return folder / f"{port}.devices"


class Device:
    """One simulated GPU, as its rank sees it, or as the driver does."""

    def __init__(self, words: memoryview, index: int) -> None:
        self._words = words[_FIELDS * index : _FIELDS * (index + 1)]

    def take(self, pid: int) -> None:
        self._words[_PID] = pid

    def allocate(self, used_bytes: int) -> None:
        self._words[_USED] = used_bytes

    def does(self, doing: int) -> None:
        """From now on."""
        self._words[_BUSY] = self.busy_ns()
        self._words[_DOING], self._words[_SINCE] = doing, time.monotonic_ns()

    def busy_ns(self) -> int:
        """For how long it ever did something."""
        running = time.monotonic_ns() - self._words[_SINCE] if self._words[_DOING] != IDLE else 0
        return self._words[_BUSY] + running

    @property
    def pid(self) -> int:
        return self._words[_PID]

    @property
    def used_bytes(self) -> int:
        return self._words[_USED]

    @property
    def spins(self) -> bool:
        return self._words[_DOING] == SPINS


def make_devices(path: Path, count: int) -> list[Device]:
    """New ones, which processes that are forked from now on share."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    os.truncate(path, 8 * _FIELDS * count)
    return open_devices(path)


def open_devices(path: Path) -> list[Device]:
    """Those in the file; none where there is no such file."""
    try:
        with path.open("r+b") as file:
            words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
    except (FileNotFoundError, ValueError):  # not there yet, or still empty
        return []
    return [Device(words, index) for index in range(len(words) // _FIELDS)]
