"""Which lines a folded view leaves out: the same message again, whoever says it, and the inside of a long record."""

import re
from collections import OrderedDict

from vllm_probes.log.heads import COLOUR, HEADER

FIRST_LINES = 3
"""A record shows so many of its lines, and its last: of a traceback that is the exception."""
_OPEN_RECORDS = 64
"""Eight ranks that fail together write their tracebacks line by line in turn."""
_PREFIX = re.compile(rb"(?:%(c)s\([A-Za-z][^()=\n]*?(?: rank=\d+)? pid=\w+\)%(c)s ?)+" % {b"c": COLOUR})
_CLIENT = re.compile(rb'(INFO%(c)s:\s+)\S+:\d+( - ")' % {b"c": COLOUR})


class _Record:
    def __init__(self) -> None:
        self.line_count = 0
        self.gap_line = 0
        """The last of its first lines."""
        self.last_line = 0


class Folds:
    """Takes lines in their order and says which of them are shown."""

    def __init__(self) -> None:
        self.times: dict[int, int] = {}
        """How often the message of a line stands there in a row; lines without a repetition are not in it."""
        self.hidden: dict[int, int] = {}
        """How many lines are left out behind a line."""
        self._records: OrderedDict[int, _Record] = OrderedDict()
        self._message = b""
        self._shown_line = 0

    def take(self, line: int, raw: bytes, record_number: int) -> tuple[bool, int | None]:
        """Whether the next line is shown, and the line that is no more: another has become the last of its record."""
        message = message_of(raw)
        if message and message == self._message:
            self.times[self._shown_line] = self.times.get(self._shown_line, 1) + 1
            return False, None
        self._message, self._shown_line = message, line
        return True, self._left_out(line, self._record(record_number))

    def _record(self, number: int) -> _Record:
        if number not in self._records:
            self._records[number] = _Record()
            if len(self._records) > _OPEN_RECORDS:
                self._records.popitem(last=False)
        return self._records[number]

    def _left_out(self, line: int, record: _Record) -> int | None:
        record.line_count += 1
        if record.line_count <= FIRST_LINES:
            record.gap_line = line
            return None
        before, record.last_line = record.last_line, line
        if record.line_count == FIRST_LINES + 1:
            return None
        self.hidden[record.gap_line] = self.hidden.get(record.gap_line, 0) + self.times.pop(before, 1)
        return before


def message_of(raw: bytes) -> bytes:
    """What a line says, without who says it and when: neither the ranks nor the clients of a server matter."""
    if header := HEADER.match(raw):
        return header["level"] + raw[header.end() :]
    return _CLIENT.sub(rb"\1\2", raw[prefix.end() :] if (prefix := _PREFIX.match(raw)) else raw, count=1).strip()
