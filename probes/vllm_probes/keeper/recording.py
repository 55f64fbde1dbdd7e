"""`events.jsonl`: how it is written, and how it is read back."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from vllm_probes.events import Event, decode, encode
from vllm_probes.keeper.folder import RESERVED_BYTES
from vllm_probes.sensors import disk

WAITING_LINES = 10_000


class Recorder:
    """Appends events to the recording, each line flushed at once.

    A full disk is remembered in `error`, never raised: vLLM runs on, and so do we. Room is taken ahead, and what does
    not fit even there waits.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._path = path
        self._waiting: deque[bytes] = deque()
        self._reserved_bytes = 0
        if not _ends_with_newline(self._descriptor):
            self._waiting.append(b"\n")
        self.error: OSError | None = None
        """Why the last line could not be written; None again as soon as one could."""

    def write(self, event: Event) -> None:
        """Append one line, behind those that wait."""
        if len(self._waiting) < WAITING_LINES:
            self._waiting.append(encode(event))
        self.retry()

    def retry(self) -> None:
        """Write what waits, as far as there is room."""
        try:
            while self._waiting:
                line = self._waiting[0]
                written = os.write(self._descriptor, line)
                if written < len(line):
                    self._waiting[0] = line[written:]
                else:
                    self._waiting.popleft()
            self.error = None
            self._reserve()
        except OSError as error:
            self.error = error

    def _reserve(self) -> None:
        size_bytes = os.fstat(self._descriptor).st_size
        if size_bytes + RESERVED_BYTES // 2 > self._reserved_bytes:
            self._reserved_bytes = size_bytes + RESERVED_BYTES
            disk.reserve(self._path, RESERVED_BYTES)

    def close(self) -> None:
        """Give back the room that was not needed."""
        os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size)
        os.close(self._descriptor)


def _ends_with_newline(descriptor: int) -> bool:
    """False after a crash in the middle of a line: the next line must not be glued to the torn one."""
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"


def read_events(path: Path) -> Iterator[Event | None]:
    """The events of a recording in order; None for each line that this version cannot read."""
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield decode(line)
