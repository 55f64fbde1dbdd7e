"""How much of a model has been downloaded so far."""

import os
import time
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from vllm_probes.judges.model_location import folder_name

ENTRY_LIMIT = 1000
"""Looked at in one folder: a model has some hundred files at most."""


class Downloaded(NamedTuple):
    """What one look found, and when."""

    mono: float
    bytes: int | None


class HubSensor:
    """Looks from a thread of its own, never from two.

    The hub is often on a network file system, and a look at one that is dead never comes back.
    """

    def __init__(self) -> None:
        self._look: _Look | None = None

    def sample(self, hub: Path, model_id: str) -> Downloaded | None:
        """What the look found that the sample before began; None where there was none, or it has not come back."""
        look = self._look
        if look is not None and look.is_alive():
            return None
        self._look = _Look(hub, model_id)
        self._look.start()
        return look.found if look is not None and look.target == (hub, model_id) else None


def incomplete_bytes(hub: Path, model_id: str | None) -> int | None:
    """Bytes in the incomplete files of a model in the hub's cache; None where it has none, or no id.

    A file is `blobs/ETAG.incomplete` up to huggingface_hub 1 and `blobs/ETAG.RANDOM.incomplete` in 2.4, and is renamed
    when it is complete. The first kind stays after an interrupted download, and is continued by the next; the second
    stays only where the download was killed.
    """
    if model_id is None:
        return None
    try:
        with os.scandir(hub / folder_name(model_id) / "blobs") as entries:
            names = [entry.path for entry in islice(entries, ENTRY_LIMIT) if entry.name.endswith(".incomplete")]
    except OSError:
        return None
    sizes = [size for name in names if (size := _written_bytes(name)) is not None]
    return sum(sizes) if sizes else None


def _written_bytes(path: str) -> int | None:
    """Blocks, because hf_transfer, and hf_xet unless it writes in sequence, write a file at many places at once: its
    size is soon that of the whole file. Never more than the size, since XFS gives a growing file blocks ahead of its
    end. The size alone where the file system counts no blocks, as some of FUSE do.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return None  # complete since it was listed
    return min(status.st_size, status.st_blocks * 512) if status.st_blocks else status.st_size


class _Look(Thread):
    def __init__(self, hub: Path, model_id: str) -> None:
        super().__init__(name="hub", daemon=True)
        self.target = (hub, model_id)
        self.found: Downloaded | None = None

    def run(self) -> None:
        found_bytes = incomplete_bytes(*self.target)
        self.found = Downloaded(time.monotonic(), found_bytes)
