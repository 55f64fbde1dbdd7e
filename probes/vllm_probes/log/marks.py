"""Which lines of a log are errors, warnings, or the answers to our own requests: found while it is indexed.

Works on whole chunks with `bytes.find` and looks only at lines that contain a telling word: a million ordinary lines
a second on one slow core.
"""

import re
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator

from vllm_probes.log.heads import HEADER, HEADER_LEVELS, LONGEST_RECORD_LINES, LOOK_AT_BYTES
from vllm_probes.log.line import TRACEBACK, clean, parse_line
from vllm_probes.rows import ALARMING_LEVELS, Level

_WORDS = (b"ERROR", b"CRITICAL", b"FATAL", b"WARN", b"Traceback (most recent")
_OWN_WORDS = (b"GET /health", b"GET /metrics")
_CANDIDATES = 4096
_TORCH = re.compile(rb"\n(?:\[rank\d+\]:)?\[?[EWFC]\d{0,4} ")
_ACCESS = re.compile(rb'INFO(?:\x1b\[[\d;]*m)*: .*?([\w.:\[\]]+:\d+) - "(?:\x1b\[[\d;]*m)*GET /(?:health|metrics)[ /?]')


class LogMarks:
    """Line indices (from 0) of alarms, the number of warnings, and lines that may answer our own requests."""

    def __init__(self) -> None:
        self.alarms = array("Q")
        self.error_count = 0
        self.warning_count = 0
        self._open_traceback = 0  # lines seen since a bare "Traceback", 0 when none is open
        self._traceback_begins, self._traceback_ends = array("Q"), array("Q")
        self._record: tuple[int, bytes] | None = None

    def scan(self, data: bytes, first_line: int) -> Iterator[tuple[int, bytes]]:
        """Mark whole lines; yield (line, `ip:port`) of answers to GET /health and /metrics.

        Args:
            data: finished lines only, the last newline included.
            first_line: index of the first of them.
        """
        data = b"\n" + data  # every line now begins after a newline
        if self._open_traceback:
            self._find_exception(data, 1, first_line)
        line, start, end = first_line - 1, 0, 0
        for position in sorted([*alarming_positions(data), *positions_of(data, _OWN_WORDS)]):
            if position < end:
                continue
            begin = data.rfind(b"\n", 0, position) + 1
            line += data.count(b"\n", start, begin)
            start, end = begin, data.find(b"\n", position)
            raw = data[start : min(end, start + LOOK_AT_BYTES)]
            if access := _ACCESS.search(raw):
                yield line, access[1]
            elif self._mark(line, raw, data[end - 1 : end] == b"\r"):
                self._open_traceback = 1
                self._find_exception(data, end + 1, line + 1)

    def forget(self, first_line: int, last_line: int) -> None:
        """The lines were cut out of the file."""
        del self.alarms[bisect_left(self.alarms, first_line) : bisect_left(self.alarms, last_line + 1)]

    def is_grave(self, line: int) -> bool:
        """It is an alarm, or within a bare traceback."""
        at = bisect_right(self._traceback_begins, line) - 1
        return self.alarm_number(line) is not None or (at >= 0 and line <= self._traceback_ends[at])

    def alarm_number(self, line: int) -> int | None:
        """Which of the alarms, from 1, the line is."""
        at = bisect_left(self.alarms, line)
        return at + 1 if at < len(self.alarms) and self.alarms[at] == line else None

    def _mark(self, line: int, raw: bytes, continues: bool) -> bool:
        """Count the line; True for a bare `Traceback`, whose alarm is the exception's line."""
        if (header := HEADER.match(raw)) is None:
            parsed = parse_line(clean(raw))
            self._count(line, parsed.level)
            return parsed.level is None and parsed.message == TRACEBACK
        if self._record != (line - 1, header.group()):
            self._count(line, HEADER_LEVELS[header["level"]])
        # NewLineFormatter ends every line of a record but the last with \r\n (logging_utils/formatter.py, 0.32).
        self._record = (line, header.group()) if continues else None
        return False

    def _count(self, line: int, level: Level | None) -> None:
        if level in ALARMING_LEVELS:
            insort(self.alarms, line)
            self.error_count += 1
        elif level == "warning":
            self.warning_count += 1

    def _find_exception(self, data: bytes, position: int, line: int) -> None:
        """Mark the first unindented line after a bare `Traceback`: the exception's. Other records may lie between."""
        while 0 < self._open_traceback < LONGEST_RECORD_LINES:
            end = data.find(b"\n", position)
            if end < 0:
                return
            parsed = parse_line(clean(data[position : min(end, position + LOOK_AT_BYTES)]))
            if parsed.shape in ("plain", "prefixed") and parsed.message[:1].strip() and parsed.message != TRACEBACK:
                self._count(line, "error")
                self._traceback_begins.append(line - self._open_traceback)
                self._traceback_ends.append(line)
                break
            self._open_traceback += 1
            position, line = end + 1, line + 1
        self._open_traceback = 0


class OwnAccess:
    """Lines that answer our own requests: not rows. Whose they are may become known after they were indexed."""

    def __init__(self, clients: set[bytes]) -> None:
        self.lines = array("Q")
        self.late = array("Q")
        """Those that could be seen before they were hidden, in the order of hiding."""
        self._clients = clients
        self._candidates: deque[tuple[int, bytes]] = deque(maxlen=_CANDIDATES)

    def take(self, line: int, client: bytes) -> None:
        """A line, later than all before, that answers `client`."""
        if client in self._clients:
            self.lines.append(line)
        else:
            self._candidates.append((line, client))

    def hide(self, clients: Iterable[str]) -> None:
        self._clients.update(client.encode() for client in clients)
        waiting = list(self._candidates)
        self._candidates.clear()
        for line, client in waiting:
            if client in self._clients:
                insort(self.lines, line)
                self.late.append(line)
            else:
                self._candidates.append((line, client))

    def forget(self, first_line: int, last_line: int) -> None:
        """The lines were cut out of the file."""
        self.lines = array("Q", (line for line in self.lines if not first_line <= line <= last_line))
        kept = [candidate for candidate in self._candidates if not first_line <= candidate[0] <= last_line]
        self._candidates = deque(kept, maxlen=_CANDIDATES)

    def has(self, line: int) -> bool:
        return self.before(line) != self.before(line + 1)

    def before(self, line: int) -> int:
        """How many are before `line`."""
        return bisect_left(self.lines, line)

    def other(self, position: int) -> int:
        """The line that is number `position`, from 0, among those that are not ours."""
        return position + bisect_right(range(len(self.lines)), position, key=lambda at: self.lines[at] - at)


def alarming_positions(data: bytes) -> Iterator[int]:
    """Where a line may be a warning or worse; `data` begins with a newline."""
    for found in _TORCH.finditer(data):
        yield found.start() + 1
    yield from positions_of(data, _WORDS)


def positions_of(data: bytes, words: Iterable[bytes]) -> Iterator[int]:
    for word in words:
        position = data.find(word)
        while position >= 0:
            yield position
            position = data.find(word, position + len(word))
