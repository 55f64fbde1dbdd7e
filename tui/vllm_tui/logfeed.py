"""The log of one attempt as the screen shows it: its index, and the filter that lies over it."""

from collections.abc import Mapping
from pathlib import Path

from vllm_probes.log.index import LogIndex
from vllm_probes.log.rows import FilteredRows, LogLine, LogRows
from vllm_probes.log.writers import Writers
from vllm_probes.model import AttemptModel, SessionModel
from vllm_probes.rows import Level

REFRESH_BYTES = 2 << 20
FILTER_BYTES = 1 << 20
WRITERS_BYTES = 16 << 20


class LogFeed:
    """One attempt's log at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index: LogIndex | None = None
        self._filtered: FilteredRows | None = None
        self._writers: Writers | None = None
        self._limit_bytes: int | None = None
        self._own_clients: list[str] = []
        self.attempt = 0
        """The number of the attempt whose log it is; 0 before the first."""
        self.level: Level | None = None
        self.pid: int | None = None
        self.is_folded = False
        """Repeated messages are shown once, long records by their first lines and their last."""
        self.trouble: str | None = None
        """Why the log cannot be read."""

    def open(self, attempt: int, log: str) -> None:
        """Turn to the log of an attempt, whose processes are others; the level of the filter and folding stay."""
        self.close()
        self.attempt, self._limit_bytes, self._own_clients, self._writers = attempt, None, [], None
        self._index = LogIndex(self._folder / log)
        self.filter(self.level, None, is_folded=self.is_folded)

    def filter(self, level: Level | None, pid: int | None, *, is_folded: bool) -> None:
        """Leave only records of at least a level, or of one process; folded or not."""
        self.level, self.pid, self.is_folded = level, pid, is_folded
        wanted = self._index and (level or pid or is_folded)
        self._filtered = self._index.rows(level=level, pid=pid, is_folded=is_folded) if self._index and wanted else None

    def learn(self, model: SessionModel, *, live: bool) -> None:
        """Take from the model what is ours in the log, what was cut out of it, and, in a replay, how far it had got."""
        attempt = next((attempt for attempt in model.attempts if attempt.number == self.attempt), None)
        if self._index is None or attempt is None:
            return
        if attempt.own_clients != self._own_clients:
            self._own_clients = attempt.own_clients
            self._index.hide_clients(self._own_clients)
        if attempt is not model.attempt:
            return
        if model.disk and model.disk.hole_bytes:
            self._index.set_hole(model.disk.hole_start, model.disk.hole_bytes)
        if not live:
            sampled_bytes = model.log.size_bytes if model.log else 0
            known_bytes = self._index.bytes_through(_last_known_line(attempt, model))
            self._limit_bytes = None if attempt.over else max(sampled_bytes, known_bytes)

    def refresh(self) -> bool:
        """Read what was appended, as much as one tick of the screen can bear; True when something has changed."""
        if self._index is None:
            return False
        before = self._extent()
        try:
            self._index.refresh(self._limit_bytes, REFRESH_BYTES)
            if self._filtered:
                self._filtered.refresh(FILTER_BYTES)
            if self._writers:
                self._writers.refresh(FILTER_BYTES)
            self.trouble = None
        except OSError as error:
            self.trouble = f"the log cannot be read: {error.strerror}"
        return before != self._extent()

    def _extent(self) -> tuple[object, ...]:
        index, rows = self._index, self.rows
        return (index.size_bytes, index.generation, rows.line_count, self.trouble) if index and rows else ()

    @property
    def rows(self) -> LogRows | None:
        return self._filtered or self._index

    @property
    def index(self) -> LogIndex | None:
        return self._index

    @property
    def filtering(self) -> bool:
        """Lines that the index has are not judged yet."""
        return self._filtered is not None and self._filtered.pending_lines > 0

    @property
    def names(self) -> Mapping[int, str]:
        """Name of every process that puts it in front of lines, by pid, as far as `find_writers` has looked."""
        return self._writers.names if self._writers else {}

    def find_writers(self) -> bool:
        """Look who writes into the log, from now on with every refresh; True when there is more to look at."""
        if self._index is None:
            return False
        self._writers = self._writers or Writers(self._index)
        return self._writers.refresh(WRITERS_BYTES)

    def whole(self, line: LogLine) -> list[str]:
        """A line with all of its text, and the lines that folding leaves out behind it; one empty line when the log has
        become shorter."""
        left_out = self._filtered.left_out(line) if self._filtered else []
        try:
            first = self._index.read_whole(line.number).text if self._index else ""
        except IndexError:
            return [""]
        return [first, *(one.text for one in left_out)]

    def close(self) -> None:
        if self._index:
            self._index.close()


def _last_known_line(attempt: AttemptModel, model: SessionModel) -> int:
    """The last line of the log, from 1, that the session speaks of: its size is recorded only every few seconds."""
    lines = [attempt.phase.line_number if attempt.phase else 0]
    lines += [max(alarm.line_number, alarm.exception_line_number or 0) for alarm in model.alarms]
    return max(lines)
