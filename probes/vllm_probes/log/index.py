"""Where the lines of a growing log begin, so that any of them is read, found or stepped to at once.

Keeper and app read a log through this index. It reads with `pread` only: a mapping of a file that somebody truncates
ends the reader with SIGBUS. A million lines of 130 bytes cost about 0.3 MB: one checkpoint every 8 KiB.
"""

import contextlib
import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from pathlib import Path

from vllm_probes.log.line import clean, parse_line
from vllm_probes.log.marks import LogMarks, OwnAccess
from vllm_probes.log.rows import Block, FilteredRows, Found, LogLine, LogRows
from vllm_probes.rows import Level

__all__ = ["Block", "FilteredRows", "Found", "LogIndex", "LogLine", "LogRows"]

CHECKPOINT_BYTES = 8 << 10
LINE_LIMIT_BYTES = 64 << 10
WHOLE_LIMIT_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 20
_CARRY_BYTES = 4 << 10
_TAIL_BYTES = 4 << 10


class LogIndex(LogRows):
    """Rows of the log at `path`, which need not exist yet. A row is a line that is shown; a line is what `\\n` ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = self
        self.generation = 0
        """Goes up when the file was truncated or replaced and the index began anew."""
        self._descriptor: int | None = None
        self._clients: set[bytes] = set()
        self._hole_start, self._hole_end = 0, 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.size_bytes = 0
        self._file_bytes = 0
        self._newline_count = 0
        self._tail_start = 0
        self._carry = b""
        self._checkpoint_lines = array("Q", [0])
        self._checkpoint_offsets = array("Q", [0])
        self._marks = LogMarks()
        self.own = OwnAccess(self._clients)
        self.hole_lines: tuple[int, int] | None = None
        """First and last line, from 0, that the hole touches; shown as one row."""

    def close(self) -> None:
        """Give the file back; `refresh` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    # --- following the file ---------------------------------------------------------------------------------------

    def refresh(self, limit_bytes: int | None = None, budget_bytes: int = 16 << 20) -> bool:
        """Index what was appended; True when more is waiting.

        Args:
            limit_bytes: take the file to end there (replay).
            budget_bytes: read no more than this in one call.

        Raises:
            OSError: the file is there and cannot be read.
        """
        if (descriptor := self._open()) is None:
            return False
        size_bytes = os.fstat(descriptor).st_size
        end = size_bytes if limit_bytes is None else min(size_bytes, limit_bytes)
        if end < self.size_bytes:
            self._restart()
        self._file_bytes = end
        while self.size_bytes < end and budget_bytes > 0:
            if self._skip_hole():
                continue
            wanted = min(_CHUNK_BYTES, budget_bytes, end - self.size_bytes, self._before_hole())
            data = self._pread(wanted, self.size_bytes)
            if not data:
                break
            budget_bytes -= len(data)
            self._take(data)
        return self.pending_bytes > 0

    @property
    def pending_bytes(self) -> int:
        """What the file had at the last refresh and is not indexed yet."""
        return self._file_bytes - self.size_bytes

    def bytes_through(self, number: int) -> int:
        """How far the file must be read to have line `number` (from 1); looks at most 1 MiB beyond what is indexed."""
        missing = number - self._newline_count
        ahead = self._pread(_CHUNK_BYTES, self.size_bytes) if missing > 0 else b""
        end = 0
        for _ in range(missing if ahead.count(b"\n") >= missing else 0):
            end = ahead.index(b"\n", end) + 1
        return self.size_bytes + end

    def _restart(self) -> None:
        self._begin_anew()
        self._hole_start = self._hole_end = 0
        self.generation += 1

    def _open(self) -> int | None:
        """The open file; opened again where another one has taken its place."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return self._descriptor  # deleted while open: what is left of it can still be read
        if self._descriptor is not None:
            ours = os.fstat(self._descriptor)
            if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
                return self._descriptor
            self.close()
            self._restart()
        with contextlib.suppress(FileNotFoundError):
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def _pread(self, length: int, offset: int) -> bytes:
        return os.pread(self._descriptor, length, offset) if self._descriptor is not None else b""

    def _before_hole(self) -> int:
        """How much may be read before the hole begins."""
        return self._hole_start - self.size_bytes if self.size_bytes < self._hole_start else _CHUNK_BYTES

    def _skip_hole(self) -> bool:
        """A hole has no newline: it only makes the line around it longer."""
        if not self._hole_start <= self.size_bytes < self._hole_end <= self._file_bytes:
            return False
        self.hole_lines = (self._newline_count, self._newline_count)
        self.size_bytes = self._hole_end
        return True

    def _take(self, data: bytes) -> None:
        base, first_line = self.size_bytes, self._newline_count
        self._add_checkpoints(data)
        self.size_bytes = base + len(data)
        last = data.rfind(b"\n") + 1
        if last:
            self._tail_start = base + last
            finished = self._carry + data[:last]
            self._carry = b""
            for line, client in self._marks.scan(finished, first_line):
                self.own.take(line, client)
        # The beginning of a line tells all that marks need: a line without an end must not grow in memory.
        self._carry = (self._carry + data[last:])[:_CARRY_BYTES]

    def _add_checkpoints(self, data: bytes) -> None:
        base, counted = self.size_bytes, 0
        while True:
            wanted = self._checkpoint_offsets[-1] + CHECKPOINT_BYTES - base
            newline = data.find(b"\n", max(wanted - 1, counted))
            if newline < 0:
                break
            self._newline_count += data.count(b"\n", counted, newline + 1)
            counted = newline + 1
            self._checkpoint_lines.append(self._newline_count)
            self._checkpoint_offsets.append(base + counted)
        self._newline_count += data.count(b"\n", counted)

    def hide_clients(self, clients: Iterable[str]) -> None:
        """Hide the answers to GET /health and /metrics of these `ip:port`, those indexed a short while ago too."""
        self.own.hide(clients)

    # --- the hole that bounds the log -----------------------------------------------------------------------------

    def set_hole(self, start: int, length: int) -> None:
        """Bytes `start` to `start + length` read as NUL from now on: the lines that they touch become one row.

        The hole may grow; a later one takes the place of an earlier one.
        """
        end = start + length
        if (start, end) == (self._hole_start, self._hole_end):
            return
        self._hole_start, self._hole_end = start, end
        if start >= self.size_bytes:
            return
        if end >= self._tail_start:
            self._restart()
            self._hole_start, self._hole_end = start, end
            return
        first = self._line_at(start)
        last = self._drop_checkpoints(first, end)
        self._marks.forget(first, last)
        self.own.forget(first, last)
        self.hole_lines = (first, last)

    def _line_at(self, offset: int) -> int:
        at = bisect_right(self._checkpoint_offsets, offset) - 1
        begin = self._checkpoint_offsets[at]
        return self._checkpoint_lines[at] + self._pread(offset - begin, begin).count(b"\n")

    def _drop_checkpoints(self, first: int, end: int) -> int:
        """Forget what lies in the hole; the last line that it touches, counted back from what follows it."""
        after = bisect_right(self._checkpoint_offsets, end)
        known = after < self.block_count
        behind = self._checkpoint_offsets[after] if known else self._tail_start
        rest = self._pread(behind - end, end)
        last = (self._checkpoint_lines[after] if known else self._newline_count) - rest.count(b"\n")
        begin = end + rest.find(b"\n") + 1
        isolated = known and begin == behind
        drop = slice(bisect_right(self._checkpoint_lines, first), after)
        self._checkpoint_lines[drop] = array("Q", [] if isolated else [last + 1])
        self._checkpoint_offsets[drop] = array("Q", [] if isolated else [begin])
        return last

    # --- rows and lines -------------------------------------------------------------------------------------------

    @property
    def total_lines(self) -> int:
        """Lines of the file, hidden ones too; a last line without `\\n` counts."""
        return self._newline_count + (self.size_bytes > self._tail_start)

    @property
    def finished_lines(self) -> int:
        return self._newline_count

    @property
    def line_count(self) -> int:
        """Rows: lines without our own access lines, a hole as one."""
        first, last = self.hole_lines or (0, 0)
        return self.total_lines - len(self.own.lines) - (last - first)

    @property
    def error_count(self) -> int:
        """Records of level error and above, and bare tracebacks."""
        return self._marks.error_count

    @property
    def warning_count(self) -> int:
        return self._marks.warning_count

    def line_of(self, row: int) -> int:
        first, last = self.hole_lines or (0, 0)
        return self.own.other(row if row <= first - self.own.before(first) else row + last - first)

    def row_from(self, line: int) -> int:
        first, last = self.hole_lines or (0, 0)
        within_hole = last - first if line > last else max(line - first - 1, 0)
        return line - self.own.before(line) - within_hole

    def next_alarm_line(self, line: int, backwards: bool) -> int | None:
        alarms = self._marks.alarms
        at = bisect_right(alarms, line) - 1 if backwards else bisect_left(alarms, line)
        return alarms[at] if 0 <= at < len(alarms) else None

    @property
    def alarm_count(self) -> int:
        """Errors that can be stepped to: those that were cut out of the file are none of them."""
        return len(self._marks.alarms)

    def alarm_number(self, line: int) -> int | None:
        """Which of the alarms, from 1, the line is; None for any other line."""
        return self._marks.alarm_number(line)

    def rows(self, *, level: Level | None = None, pid: int | None = None, is_folded: bool = False) -> FilteredRows:
        """A view of the records of at least `level`, and of one process if `pid` is given."""
        return FilteredRows(self, level, pid, is_folded=is_folded)

    # --- reading --------------------------------------------------------------------------------------------------

    @property
    def block_count(self) -> int:
        """Blocks are what lies between two checkpoints: whole lines, about CHECKPOINT_BYTES."""
        return len(self._checkpoint_lines)

    def block_of(self, line: int) -> int:
        return bisect_right(self._checkpoint_lines, line) - 1

    def block_start(self, number: int) -> int:
        """Index of the first line of the block."""
        return self._checkpoint_lines[number] if number < self.block_count else self.total_lines

    def block_bytes(self, number: int) -> bytes:
        """The bytes of a block; of a last line that is too long only the beginning."""
        start = self._checkpoint_offsets[number]
        return self._pread(min(self._block_end(number) - start, CHECKPOINT_BYTES + LINE_LIMIT_BYTES), start)

    def block(self, number: int) -> Block:
        """The lines of a block. Only its last one can be too long."""
        data, end = self.block_bytes(number), self._block_end(number)
        start = self._checkpoint_offsets[number]
        if start + len(data) == end:
            data = data[: self._last_line_end(number) - start]
        raws = data.split(b"\n") if end > start else []
        cut = False
        if raws and self._last_line_end(number) - start - len(data) + len(raws[-1]) > LINE_LIMIT_BYTES:
            raws[-1], cut = self._shorten(raws[-1], self._last_line_end(number))
        return Block(number, self.block_start(number), self.block_start(number + 1), raws, cut)

    def log_line(self, block: Block, line: int) -> LogLine:
        """Line `line` (from 0) of a block that has it."""
        if self.hole_lines and line == self.hole_lines[0]:
            return LogLine(number=line + 1, text=self._hole_text())
        at = line - block.first_line
        text = clean(block.raws[at]) if at < len(block.raws) else ""
        level = parse_line(text).level or ("error" if self._marks.is_grave(line) else None)
        return LogLine(number=line + 1, text=text, level=level, cut=block.cut and at == len(block.raws) - 1)

    def read_whole(self, number: int) -> LogLine:
        """Line `number` (from 1) with up to WHOLE_LIMIT_BYTES of it.

        Raises:
            IndexError: there is no such line.
        """
        line = number - 1
        if not 0 <= line < self.total_lines:
            raise IndexError(f"The log has {self.total_lines} lines, not {number}.")
        block = self.block(self.block_of(line))
        shown = self.log_line(block, line)
        if not shown.cut:
            return shown
        start = self._checkpoint_offsets[block.number] + sum(len(raw) + 1 for raw in block.raws[:-1])
        length = self._last_line_end(block.number) - start
        text = clean(self._pread(min(length, WHOLE_LIMIT_BYTES), start))
        return LogLine(number=number, text=text, level=shown.level, cut=length > WHOLE_LIMIT_BYTES)

    def _block_end(self, number: int) -> int:
        return self._checkpoint_offsets[number + 1] if number + 1 < self.block_count else self.size_bytes

    def _last_line_end(self, number: int) -> int:
        """Where the last line of a block ends: before its newline, where it has one yet."""
        end = self._block_end(number)
        return end - 1 if end == self._tail_start or number + 1 < self.block_count else end

    def _shorten(self, raw: bytes, end: int) -> tuple[bytes, bool]:
        """The beginning of a long line; of one that a progress bar overwrote again and again, what stands there now."""
        tail = self._pread(_TAIL_BYTES, end - _TAIL_BYTES).rstrip(b"\r")
        if b"\r" in tail:
            return tail.rpartition(b"\r")[2], False
        return raw[:LINE_LIMIT_BYTES], True

    def _hole_text(self) -> str:
        return f"… {self._hole_end - self._hole_start:,} bytes removed here to bound the log …"
