"""Lines of a log put together to records: a message over several lines, a traceback with its exception.

Lines are cleaned (`log.line.clean`) and numbered; nothing here reads a file or a clock.
"""

import re
from typing import Literal

import msgspec

from vllm_probes.log.line import TRACEBACK, ParsedLine, Shape, parse_line
from vllm_probes.rows import Level

__all__ = ["ParsedLine", "Record", "RecordAssembler", "Statement", "parse_line"]

MAX_LINES = 2000
MAX_CHARACTERS = 256 << 10
STALE_LINES = 500
"""A traceback that got nothing for so many lines of others is over."""
LATE_LINES = 8
"""Of a traceback that has its exception the next line comes at once, or within so many lines of others."""
SPAN_LINES = 40
"""How many lines after an exception's first may belong to its message, where no prefix tells."""

_BARE: tuple[Shape, ...] = ("plain", "prefixed")
_CARETS = re.compile(r"\s*[~^]+\s*$")
_CHAIN = re.compile(r"During handling of the above exception, another|The above exception was the direct cause")
# faulthandler writes `line 3 in f`, without the comma: its dumps are no errors.
_FRAME = re.compile(r'\s*File "[^"]+", line \d+, in ')
_RAISING = re.compile(r"\s+raise \w")
"""A line of source with which an excerpt may begin: its words are those of the exception that follows."""
_GROUP = re.compile(r"\s*[+|] ")
"""How a line of an exception group begins."""
_GROUP_BAR = re.compile(r"^\s+\| (?=\S)")
_HUB_GOES_ON = re.compile(
    r"(?:(?:Repository|Revision|Entry) Not Found|Cannot access (?:gated repo|repository)) for url"
)
"""What comes after a blank line in messages of huggingface_hub (hf_raise_for_status in utils/_http.py)."""
_DIGIT = re.compile(r"\d")
_IGNORED = "Exception ignored in"
"""What Python writes before the traceback of an exception that nobody could catch: the run goes on."""
_NEXT_WRITER = re.compile(r"Process \S+:$")
_NAMED = (
    r"(?:\w+\.)*_?[A-Z]\w*"
    r"(?:Error|Exception|Exit|Interrupt|Failed|Failure|Fault|Timeout|Expired|Iteration|Group|Abort(?:ed)?)(?::|$)"
)
_EXCEPTION_ALONE = re.compile(_NAMED)
_EXCEPTION_AFTER_FRAMES = re.compile(rf"{_NAMED}|(?:[A-Za-z_]\w*\.)+\w+(?::|$)|[A-Z]\w*: ")


class Statement(msgspec.Struct, kw_only=True):
    """A line of a record that says something: not a frame of a traceback, not a line of source.

    Of an assertion without words the line of source is the one that says something: `number` and `line` are its.
    """

    number: int
    """Counts newlines from 1."""
    line: str
    """Whole, prefix included."""
    text: str
    """Without prefix; of an exception with the lines that its message goes on over."""
    is_exception: bool = False
    more: list[tuple[int, str]] = []
    """Number and whole line of each further line of `text`."""

    def at(self, offset: int) -> tuple[int, str]:
        """Number and whole line of what stands at `offset` of `text`."""
        return [(self.number, self.line), *self.more][self.text.count("\n", 0, offset)]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What one writer said at once. Exceptions that Python chained are one record."""

    line_number: int
    head: ParsedLine
    """The first line, taken apart."""
    lines: list[str]
    """Every line without its prefix, at most MAX_LINES and MAX_CHARACTERS."""
    statements: list[Statement]
    is_traceback: bool

    @property
    def level(self) -> Level | None:
        """A traceback without a level of its own is an error."""
        return self.head.level or ("error" if self.is_traceback else None)

    @property
    def message(self) -> str:
        return "\n".join(self.lines)

    @property
    def frames(self) -> str:
        """The lines of a traceback, its frames with their source among them."""
        return self.message if self.is_traceback else ""

    @property
    def exception(self) -> Statement | None:
        """The one that got out: the last of a chain. What it followed from stands before it in `statements`."""
        return next((statement for statement in reversed(self.statements) if statement.is_exception), None)


class RecordAssembler:
    """Takes lines, gives records. Only a traceback waits for its next line across the lines of other processes."""

    def __init__(self) -> None:
        self._drafts: dict[object, _Draft] = {}
        self._prefix = ""
        """What stood before the first line of the last traceback, each digit as 0."""
        self._is_proven = False
        """It came again, before a frame."""

    def awaits(self, number: int) -> bool:
        """A traceback is open that line `number` may go on with: it matters whatever it says."""
        return any(draft.awaits(number) for draft in self._drafts.values())

    def feed(self, number: int, text: str) -> list[Record]:
        """Take one cleaned line; give the records that it ends, and its own where nothing can follow."""
        parsed = self._parse(text)
        writer = _writer(parsed)
        ended = self._pop([key for key, draft in self._drafts.items() if key != writer and draft.is_over(number)])
        if before := self._drafts.get(writer):
            if before.takes(parsed):
                before.add(number, text, parsed)
                return ended
            if before.gives_way(number):
                ended += self._pop([writer])
        if parsed.shape in _BARE and not parsed.message.strip():
            return ended
        draft = _Draft(number, text, parsed)
        if not draft.may_grow or writer in self._drafts:
            return [*ended, draft.record()]
        self._drafts[writer] = draft
        return ended

    def settle(self) -> list[Record]:
        """The open records that look complete: of tracebacks those that have their exception and stopped growing."""
        complete = [writer for writer, draft in self._drafts.items() if draft.looks_complete]
        for draft in self._drafts.values():
            draft.grew = False
        return self._pop(complete)

    def flush(self) -> list[Record]:
        """All open records: at the end, or after a quiet time."""
        return self._pop(list(self._drafts))

    def _parse(self, text: str) -> ParsedLine:
        """Without a prefix that nobody knows: what stands before a traceback's first line and its frames."""
        parsed = parse_line(text)
        if parsed.shape != "plain":
            return parsed
        message, length = parsed.message, len(self._prefix)
        if length and _DIGIT.sub("0", message[:length]) == self._prefix:
            self._is_proven = self._is_proven or bool(_FRAME.match(message, length))
            return parse_line(message[length:]) if self._is_proven else parsed
        if message.endswith(TRACEBACK) and not _GROUP.match(message):
            self._prefix, self._is_proven = _DIGIT.sub("0", message.removesuffix(TRACEBACK)), False
        return parsed

    def _pop(self, writers: list[object]) -> list[Record]:
        return [self._drafts.pop(writer).record() for writer in writers]


class _Draft:
    """A record that may still grow."""

    def __init__(self, number: int, text: str, head: ParsedLine) -> None:
        self.is_traceback = False
        self.grew = True
        self._head = head
        self._first = self._last = number
        self._lines: list[str] = []
        self._statements: list[Statement] = []
        self._is_ignored = False
        self._source: tuple[int, str, str] | None = None
        self._room = MAX_CHARACTERS
        self._span = 0
        self._state: Literal["text", "frames", "exception", "gap"] = "text"
        self.add(number, text, head)

    @property
    def may_grow(self) -> bool:
        return self._head.shape == "vllm" or (self._head.shape in _BARE and self.is_traceback)

    @property
    def looks_complete(self) -> bool:
        return not self.is_traceback or (self._state in ("exception", "gap") and not self.grew)

    def record(self) -> Record:
        return Record(
            line_number=self._first,
            head=self._head,
            lines=self._lines,
            statements=self._statements,
            is_traceback=self.is_traceback and not self._is_ignored,
        )

    def takes(self, line: ParsedLine) -> bool:
        """Whether a line of the same writer goes on with this record."""
        if self._head.shape == "vllm":
            return line.head == self._head.head and (self.is_traceback or len(self._lines) < MAX_LINES)
        text = line.message
        if self._state == "frames":
            return not text.strip() or text[0].isspace() or _is_traceback_part(text)
        if _CHAIN.match(text):
            return True
        if self._state == "gap":
            return not text.strip() or bool(_HUB_GOES_ON.match(text))
        if text.endswith(TRACEBACK):
            return text[0].isspace()  # of an exception group
        return self._span < SPAN_LINES and not _NEXT_WRITER.match(text)

    def awaits(self, number: int) -> bool:
        return self.is_traceback and number - self._last <= (STALE_LINES if self._state == "frames" else LATE_LINES)

    def is_over(self, number: int) -> bool:
        """Whether a line of another writer ends it: a traceback only when many of them came."""
        return not self.awaits(number)

    def gives_way(self, number: int) -> bool:
        """Whether a line of its own writer that it does not take ends it: between frames it is noise."""
        return self.is_over(number) or self._state != "frames" or self._head.shape == "vllm"

    def add(self, number: int, text: str, line: ParsedLine) -> None:
        self._last, self.grew = number, True
        for part in line.message.split("\n"):
            if self._room > 0 and len(self._lines) < MAX_LINES:
                self._lines.append(part[: self._room])
                self._room -= len(part)
            self._follow(number, text, _GROUP_BAR.sub("", part))

    def _follow(self, number: int, line: str, text: str) -> None:
        if text.endswith(TRACEBACK) or _FRAME.match(text) or (self._state == "text" and _RAISING.match(text)):
            if text.endswith(TRACEBACK) and text != TRACEBACK:
                self._state_that(number, line, text)
            self.is_traceback, self._state = True, "frames"
        elif text.startswith(_IGNORED):
            self.is_traceback, self._state, self._is_ignored = True, "frames", True
            self._state_that(number, line, text)
        elif _CHAIN.match(text):
            self._state = "frames"
        elif self._state == "frames":
            if _EXCEPTION_AFTER_FRAMES.match(text):
                self._raise(number, line, text)
            elif not _CARETS.match(text):
                self._source = number, line, text.strip()
        elif (self._state == "text" or self._head.shape in _BARE) and _EXCEPTION_ALONE.match(text):
            self._raise(number, line, text)
        elif self._state == "text":
            self._state_that(number, line, text)
        else:
            self._go_on(number, line, text)

    def _raise(self, number: int, line: str, text: str) -> None:
        self.is_traceback, self._state, self._span = True, "exception", 0
        if text == "AssertionError" and self._source and self._source[2].startswith("assert "):
            number, line, text = self._source[0], self._source[1], f"{text}: {self._source[2]}"
        self._state_that(number, line, text, is_exception=True)

    def _state_that(self, number: int, line: str, text: str, is_exception: bool = False) -> None:
        is_exception = is_exception and not self._is_ignored
        if self._room > 0 or is_exception:
            self._statements.append(Statement(number=number, line=line, text=text, is_exception=is_exception))

    def _go_on(self, number: int, line: str, text: str) -> None:
        """A line after an exception's first: part of its message, until a blank line where no prefix tells."""
        self._span += 1
        if not text.strip() and self._head.shape in _BARE:
            self._state = "gap"
            return
        self._state = "exception"
        if self._span <= SPAN_LINES:
            self._statements[-1].text += "\n" + text
            self._statements[-1].more.append((number, line))


def _is_traceback_part(text: str) -> bool:
    return bool(text.endswith(TRACEBACK) or _CHAIN.match(text) or _EXCEPTION_AFTER_FRAMES.match(text))


def _writer(line: ParsedLine) -> object:
    """Lines of one process that can go on with each other."""
    shape = line.shape if line.shape not in _BARE else "bare"
    return shape, line.pid or line.process or line.rank
