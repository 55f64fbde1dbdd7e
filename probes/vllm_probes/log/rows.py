"""Rows of an indexed log: windows, search and steps from error to error, over all lines or over a filtered part."""

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import replace

from vllm_probes.log.folds import Folds
from vllm_probes.log.heads import Head, Records
from vllm_probes.log.line import LEVEL_RANKS, parse_line
from vllm_probes.rows import Level

if TYPE_CHECKING:
    from vllm_probes.log.index import LogIndex


LEFT_OUT_LINES = 1000
"""A record that is longer is no text to be read at once."""


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line as it is shown."""

    number: int
    """Counts newlines of the file from 1."""
    text: str
    """Clean: nothing in it controls a terminal."""
    level: Level | None = None
    cut: bool = False
    """The line is longer than what was read of it; `LogIndex.read_whole` has more."""
    times: int = 1
    """How often its message stands there in a row, where the view shows it once."""
    hidden_count: int = 0
    """Lines of its record that the view leaves out behind it."""


class Found(NamedTuple):
    """What one call of `find` came to: a row; or where to go on; or neither, when all was searched."""

    row: int | None
    resume: int | None


class Block(NamedTuple):
    """Some consecutive lines, as bytes without their newlines."""

    number: int
    first_line: int
    next_line: int
    """First line of the block after it: beyond the last of `raws` only across a hole."""
    raws: list[bytes]
    cut: bool
    """The last of them is not whole."""


class LogRows(ABC):
    """Rows from 0 to `line_count`, in the order of the file."""

    index: "LogIndex"

    @property
    @abstractmethod
    def line_count(self) -> int: ...

    @abstractmethod
    def line_of(self, row: int) -> int:
        """The line, from 0, that `row` shows."""

    @abstractmethod
    def row_from(self, line: int) -> int:
        """The first row that shows `line` or a later one; `line_count` when there is none."""

    def read(self, first: int, count: int) -> list[LogLine]:
        """The rows from `first`, fewer than `count` at the end; the cost does not depend on the size of the file."""
        shown: list[LogLine] = []
        block = None
        for row in range(max(first, 0), min(first + count, self.line_count)):
            line = self.line_of(row)
            number = self.index.block_of(line)
            if block is None or block.number != number:
                block = self.index.block(number)
            shown.append(self.index.log_line(block, line))
        return shown

    def find(self, needle: str, start: int, *, backwards: bool = False, budget_bytes: int = 2 << 20) -> Found:
        """Look for `needle` from row `start` on, that row included, whatever the case of its letters.

        Reads at most about `budget_bytes`, so that a screen never waits: call again with `resume` until it is None. Of
        lines beyond `log.index.LINE_LIMIT_BYTES` the beginning is searched.
        """
        if not needle or not 0 <= start < self.line_count:
            return Found(None, None)
        line, needle = self.line_of(start), needle.lower()
        number, step = self.index.block_of(line), -1 if backwards else 1
        while 0 <= number < self.index.block_count and budget_bytes > 0:
            data = self.index.block_bytes(number)
            budget_bytes -= len(data)
            if _may_hold(data, needle) and (row := self._find_in_block(number, needle, line, backwards)) is not None:
                return Found(row, None)
            number += step
        return Found(None, self._first_row(number, backwards))

    def next_alarm(self, row: int, *, backwards: bool = False) -> int | None:
        """The next row after (or before) `row` with an error: a record of level error or above, or an exception's line.

        From -1 it is the first, from `line_count` backwards the last.
        """
        row += -1 if backwards else 1
        while 0 <= row < self.line_count:
            line = self.index.next_alarm_line(self.line_of(row), backwards)
            if line is None:
                return None
            row = self.row_from(line)
            if row < self.line_count and self.line_of(row) == line:
                return row
            row -= backwards
        return None

    def _find_in_block(self, number: int, needle: str, limit: int, backwards: bool) -> int | None:
        block = self.index.block(number)
        lines = range(block.first_line, block.first_line + len(block.raws))
        for line in reversed(lines) if backwards else lines:
            if (line > limit) if backwards else (line < limit):
                continue
            row = self.row_from(line)
            shown = row < self.line_count and self.line_of(row) == line
            if shown and needle in self.index.log_line(block, line).text.lower():
                return row
        return None

    def _first_row(self, number: int, backwards: bool) -> int | None:
        """Where a search goes on that has block `number` before it."""
        if not 0 <= number < self.index.block_count:
            return None
        if backwards:
            row = self.row_from(self.index.block_start(number + 1)) - 1
        else:
            row = self.row_from(self.index.block_start(number))
        return row if 0 <= row < self.line_count else None


def _writer(line: LogLine) -> tuple[object, ...]:
    """Lines of one record have the same."""
    parsed = parse_line(line.text)
    return parsed.process, parsed.pid, parsed.rank


def _may_hold(data: bytes, needle: str) -> bool:
    """False only when no line of the block can hold the needle: escape codes and tabs may stand within the text."""
    return not needle.isascii() or b"\x1b" in data or b"\t" in data or needle.encode() in data.lower()


class FilteredRows(LogRows):
    """Rows of the records of at least a level, or of one process, or folded. `refresh` makes it follow the index.

    Lines without a head of their own (a traceback's, output of a library) belong to the record that they go on with. A
    record whose level nobody told counts as information.
    """

    def __init__(self, index: "LogIndex", level: Level | None, pid: int | None, *, is_folded: bool) -> None:
        self.index = index
        self._least = LEVEL_RANKS[level] if level else 0
        self._pid = pid
        self._is_folded = is_folded
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._generation = self.index.generation
        self._lines = array("Q")
        self._next_line = 0
        self._records = Records()
        self._folds = Folds() if self._is_folded else None
        self._late_seen = len(self.index.own.late)
        self._hole = self.index.hole_lines
        self._tail_line: int | None = None

    def refresh(self, budget_bytes: int = 1 << 20) -> bool:
        """Judge lines that the index has gained, within a budget; True when more are waiting."""
        if self._generation != self.index.generation:
            self._begin_anew()
        self._drop_hidden()
        while (finished := self.index.finished_lines) > self._next_line and budget_bytes > 0:
            block = self.index.block(self.index.block_of(self._next_line))
            budget_bytes -= sum(map(len, block.raws))
            end = min(finished, block.first_line + len(block.raws))
            for line in range(self._next_line, end):
                raw = block.raws[line - block.first_line]
                if self._passes(self._records.take(raw)) and not self.index.own.has(line):
                    self._add(line, raw)
            self._next_line = max(end, block.next_line if end < finished else end)
        self._judge_tail()
        return self.pending_lines > 0

    def _add(self, line: int, raw: bytes) -> None:
        is_shown, left_out = self._folds.take(line, raw, self._records.number) if self._folds else (True, None)
        if is_shown:
            self._lines.append(line)
        if left_out is not None:
            self._remove(left_out)

    def read(self, first: int, count: int) -> list[LogLine]:
        lines = super().read(first, count)
        return [self._annotated(line) for line in lines] if self._folds else lines

    def _annotated(self, line: LogLine) -> LogLine:
        assert self._folds
        times, hidden = self._folds.times.get(line.number - 1, 1), self._folds.hidden.get(line.number - 1, 0)
        return replace(line, times=times, hidden_count=hidden) if times > 1 or hidden else line

    def left_out(self, line: LogLine) -> list[LogLine]:
        """What a folded view leaves out behind a line, and the end of the record; at most LEFT_OUT_LINES."""
        if not line.hidden_count:
            return []
        found: list[LogLine] = []
        writer = _writer(line)
        for one in self._lines_from(line.number):
            if _writer(one) == writer:
                found.append(one)
                if self._row_of(one.number - 1) is not None or len(found) == LEFT_OUT_LINES:
                    break
        return found

    def _lines_from(self, line: int) -> Iterator[LogLine]:
        """Every judged line from `line` (from 0) on, shown or not."""
        while line < self._next_line:
            block = self.index.block(self.index.block_of(line))
            end = min(self._next_line, block.first_line + len(block.raws))
            yield from (self.index.log_line(block, one) for one in range(line, end))
            line = max(block.next_line, line + 1)

    def _row_of(self, line: int) -> int | None:
        """None: the line is not shown."""
        row = bisect_left(self._lines, line)
        return row if row < len(self._lines) and self._lines[row] == line else None

    @property
    def pending_lines(self) -> int:
        """Lines that are indexed and not judged yet."""
        return self.index.finished_lines - self._next_line

    @property
    def line_count(self) -> int:
        return len(self._lines) + (self._tail_line is not None)

    def line_of(self, row: int) -> int:
        if row == len(self._lines) and self._tail_line is not None:
            return self._tail_line
        return self._lines[row]

    def row_from(self, line: int) -> int:
        row = bisect_left(self._lines, line)
        beyond = row == len(self._lines) and (self._tail_line is None or line > self._tail_line)
        return self.line_count if beyond else row

    def _passes(self, head: Head) -> bool:
        return LEVEL_RANKS[head.level or "info"] >= self._least and self._pid in (None, head.pid)

    def _judge_tail(self) -> None:
        """The last line may have no end yet: it is judged, but not remembered."""
        last = self.index.total_lines - 1
        self._tail_line = None
        if self.pending_lines or last < self.index.finished_lines:
            return
        block = self.index.block(self.index.block_of(last))
        if block.raws and self._passes(self._records.peek(block.raws[-1])):
            self._tail_line = last

    def _drop_hidden(self) -> None:
        late = self.index.own.late
        for line in late[self._late_seen :]:
            self._remove(line)
        self._late_seen = len(late)
        if self._hole != self.index.hole_lines and self.index.hole_lines:
            self._hole = first, last = self.index.hole_lines
            del self._lines[bisect_right(self._lines, first) : bisect_right(self._lines, last)]
            self._next_line = last + 1 if first < self._next_line <= last else self._next_line

    def _remove(self, line: int) -> None:
        if (row := self._row_of(line)) is not None:
            self._lines.pop(row)
