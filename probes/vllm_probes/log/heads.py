"""Whose record every line of a log belongs to.

A line with a head begins a record or, repeated prefix, goes on with it. A line without one goes on with a record of its
own process, or with the latest one where it has no prefix at all, as long as it looks like that.
"""

import re
from typing import NamedTuple

from vllm_probes.log.line import TRACEBACK, clean, parse_line
from vllm_probes.rows import Level

PLAIN_LINES = 10
"""How many unindented lines may follow a head. The text of a CUDA error in torch has five before its frames; what goes
on for longer is the output of somebody else."""
LONGEST_RECORD_LINES = 2000
LOOK_AT_BYTES = 1024
COLOUR = rb"(?:\x1b\[[\d;]*m)*"
HEADER = re.compile(
    rb"(?:%(c)s\((?P<process>[A-Za-z][^()=\n]*?)(?: rank=\d+)? pid=(?P<pid>\d+)\)%(c)s )*"
    rb"%(c)s(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)%(c)s %(c)s\d\d-\d\d \d\d:\d\d:\d\d%(c)s "
    rb"%(c)s\[?[^\]\s]+\]%(c)s" % {b"c": COLOUR}
)
HEADER_LEVELS: dict[bytes, Level] = {
    b"DEBUG": "debug",
    b"INFO": "info",
    b"WARNING": "warning",
    b"ERROR": "error",
    b"CRITICAL": "critical",
}
_WARNING = re.compile(r"\S+\.py:\d+: \w*Warning: ")  # warnings.formatwarning of Python
_C_FRAME = re.compile(r"frame #\d+: ")  # c10/util/Backtrace.cpp

_Origin = tuple[str | None, int | None, int | None]
_BARE: _Origin = (None, None, None)


class Head(NamedTuple):
    """Whose record it is, and of what level. None: the log does not say."""

    level: Level | None
    process: str | None
    pid: int | None


class _Record(NamedTuple):
    """A record that may go on. Only lines of the same `origin` (process, pid, rank) take it up after others."""

    head: Head
    origin: _Origin | None = None
    in_traceback: bool = False
    plain_left: int = PLAIN_LINES
    lines_left: int = LONGEST_RECORD_LINES
    number: int = 0
    header: bytes = b""
    """Where each line repeats it and the next one will, too."""

    def with_line(self, message: str) -> "_Record | None":
        """The record with one more line; None where it has ended. Of a traceback the exception's line is the last."""
        indented = not message[:1].strip()
        plain = not (indented or self.in_traceback or _C_FRAME.match(message))
        if not self.lines_left or self.plain_left < plain:
            return None
        return self._replace(
            in_traceback=self.in_traceback and indented,
            plain_left=self.plain_left - plain,
            lines_left=self.lines_left - 1,
        )


class Records:
    """Tells of every line whose record it belongs to; lines are taken in their order."""

    def __init__(self) -> None:
        self._latest = _Record(Head(None, None, None))
        self._by_origin: dict[_Origin, _Record] = {}
        self._begun_count = 0

    @property
    def number(self) -> int:
        """Of the record that the line belongs to that was taken last; they count from 1."""
        return self._latest.number

    def take(self, raw: bytes) -> Head:
        """The head of the record of the next line."""
        record = self._record_of(raw)
        if not record.number:
            self._begun_count += 1
            record = record._replace(number=self._begun_count)
        self._latest = record
        if record.origin is not None:
            self._by_origin[record.origin] = record
        return record.head

    def peek(self, raw: bytes) -> Head:
        """The same for a line that has no end yet: it is not remembered."""
        return self._record_of(raw).head

    def _record_of(self, raw: bytes) -> _Record:
        if header := HEADER.match(raw):
            return self._headed(raw, header)
        line = parse_line(clean(raw[:LOOK_AT_BYTES]))
        origin: _Origin = (line.process, line.pid, None if line.process else line.rank)
        head = Head(line.level, line.process, line.pid)
        if line.level or line.shape == "tqdm":
            return _Record(head, origin if line.process and line.level else None)
        if _WARNING.match(line.message):
            return _Record(head, origin)
        if line.message == TRACEBACK:
            return _Record(head._replace(level="error"), origin, in_traceback=True)
        before = self._by_origin.get(origin)
        if origin == _BARE and not (before and before.in_traceback):
            before = self._latest
        return (before and before.with_line(line.message)) or _Record(head, origin)

    def _headed(self, raw: bytes, header: re.Match[bytes]) -> _Record:
        """NewLineFormatter ends every line of a record but the last with \\r\\n (logging_utils/formatter.py, 0.32)."""
        name, pid, level = header.group("process", "pid", "level")
        head = Head(HEADER_LEVELS[level], name.decode("utf-8", "replace") if name else None, int(pid) if pid else None)
        origin: _Origin | None = (head.process, head.pid, None) if name else None
        before = self._by_origin.get(origin, self._latest) if origin else self._latest
        number = before.number if before.header == header.group() else 0
        if raw.endswith(b"\r"):
            return _Record(head, origin, number=number, header=header.group())
        return _Record(head, origin, number=number, lines_left=0 if number else LONGEST_RECORD_LINES)
