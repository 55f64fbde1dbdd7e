"""`events.jsonl`: what is written of the stream, and how it is read back.

A day of 1 Hz samples would be hundreds of megabytes, so a sample is written when it says something new: a difference
in kind at once, drifting numbers now and then. What is not written is not judged either; that keeps a recording
without its conclusions equal to one with them.
"""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vllm_probes.events import DiskSampled, EndpointSampled, Event, LogSampled, ProcessesSampled, decode, encode
from vllm_probes.keeper.folder import RESERVED_BYTES
from vllm_probes.rows import ProcessRow
from vllm_probes.sensors import disk

PROCESS_DRIFT_S = 60.0
PROCESS_REST_S = 5.0
RESTS_BELOW_PERCENT = 10.0
"""A process that comes to rest or wakes is news, at most every five seconds; how busy it is drifts."""
ENDPOINT_DRIFT_S = 10.0
LOG_DRIFT_S = 5.0
DISK_DRIFT_S = 60.0
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


class SampleFilter:
    """Lets through what is worth writing; samples come trimmed to the rows that are."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[float, ProcessRow]] = {}
        self._last: dict[type[Event], Event] = {}
        self._own_clients: set[str] = set()

    def accept(self, event: Event) -> Event | None:
        """The event as it is to be written, or None."""
        match event:
            case ProcessesSampled():
                return self._processes(event)
            case EndpointSampled():
                return self._keep_if(event, self._server_is_news(event), ENDPOINT_DRIFT_S)
            case LogSampled():
                return self._keep_if(event, False, LOG_DRIFT_S)
            case DiskSampled():
                return self._keep_if(event, False, DISK_DRIFT_S)
            case _:
                return event

    def reset(self) -> None:
        """A new attempt: everything is news again."""
        self._rows.clear()
        self._last.clear()
        self._own_clients.clear()

    def _keep_if(self, event: Event, different: bool, drift_s: float) -> Event | None:
        before = self._last.get(type(event))
        if before is None or different or event.mono - before.mono >= drift_s:
            self._last[type(event)] = event
            return event
        return None

    def _server_is_news(self, event: EndpointSampled) -> bool:
        new_clients = not self._own_clients.issuperset(event.own_clients)
        self._own_clients.update(event.own_clients)
        before = self._last.get(EndpointSampled)
        return new_clients or not isinstance(before, EndpointSampled) or _server_kind(before) != _server_kind(event)

    def _processes(self, event: ProcessesSampled) -> ProcessesSampled | None:
        rows = [row for row in event.rows if self._row_is_news(event.mono, row)]
        for pid in event.gone:
            self._rows.pop(pid, None)
        for row in rows:
            self._rows[row.pid] = (event.mono, row)
        return msgspec.structs.replace(event, rows=rows) if rows or event.gone else None

    def _row_is_news(self, mono: float, row: ProcessRow) -> bool:
        if row.pid not in self._rows:
            return True
        before_mono, before = self._rows[row.pid]
        age_s = mono - before_mono
        return (
            _kind(row) != _kind(before)
            or (age_s >= PROCESS_REST_S and _rests(row) != _rests(before))
            or age_s >= PROCESS_DRIFT_S
        )


def _kind(row: ProcessRow) -> tuple[object, ...]:
    """What makes a difference at once: running and sleeping alternate all the time and count as the same."""
    return (row.process, row.role, row.rank, "S" if row.state in "RSI" else row.state, row.parent_pid)


def _rests(row: ProcessRow) -> bool:
    return row.cpu_percent < RESTS_BELOW_PERCENT


def _server_kind(sample: EndpointSampled) -> tuple[object, ...]:
    return (sample.url, sample.health, sample.status, sample.active, [engine.awake for engine in sample.engines])
