"""One line of a log: made fit for a screen, and taken apart into process, level, place and message.

The stream of a vLLM run mixes many writers: vLLM's own records (`logger.py` and `logging_utils/formatter.py` of 0.32,
and every older form back to 0.4), uvicorn, tqdm, torch (C++ and Python), NCCL, Ray, a JSON formatter, and whatever a
container runtime or journald put in front of a line. Nothing here touches a file or a clock.
"""

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from vllm_probes.rows import Level

Shape = Literal[
    "vllm",
    "json",
    "uvicorn",
    "access",
    "logging",
    "tqdm",
    "torch",
    "nccl",
    "sanitizer",
    "coredump",
    "prefixed",
    "plain",
]

TRACEBACK = "Traceback (most recent call last):"
LEVEL_RANKS: dict[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_LEVELS: dict[str, Level] = {
    "TRACE": "debug",
    "DEBUG": "debug",
    "INFO": "info",
    "WARN": "warning",
    "WARNING": "warning",
    "ERROR": "error",
    "CRITICAL": "critical",
    "FATAL": "critical",
    "I": "info",
    "W": "warning",
    "E": "error",
    "F": "critical",
    "C": "critical",
}

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()*+][0-9A-Za-z]|[0-9=>@-Z\\^_])")
_TAB_WIDTH = 8
_PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}
_UNSHOWABLE = (*range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = _PICTURES | dict.fromkeys(_UNSHOWABLE, 0xFFFD)


def clean(raw: bytes) -> str:
    """The line as a terminal would leave it: no escape codes, the text after the last inner carriage return.

    Invalid UTF-8 becomes U+FFFD, tabs spaces, other control characters their pictures (U+2400 and up), and characters
    that turn the direction of writing U+FFFD.
    """
    text = raw.decode("utf-8", "replace")
    if text.isprintable():
        return text
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    text = text.rstrip("\r\n").rpartition("\r")[2]
    return text.expandtabs(_TAB_WIDTH).translate(_VISIBLE)


class ParsedLine(msgspec.Struct, frozen=True, kw_only=True):
    """A cleaned line taken apart. `message` is what is left without every prefix; None means: the line does not say."""

    shape: Shape
    message: str
    process: str | None = None
    """Innermost log name: `APIServer`, `EngineCore_DP0`, `Worker_TP1`, `VllmWorker-0`."""
    pid: int | None = None
    rank: int | None = None
    level: Level | None = None
    stamp: str | None = None
    """Time as printed, in whatever form that writer uses."""
    file: str | None = None
    """Source file as printed: base name, or a shortened path at level DEBUG."""
    line: int | None = None

    @property
    def head(self) -> tuple[object, ...]:
        """The same for all lines of one multi-line vLLM record (`NewLineFormatter` repeats the prefix)."""
        return (self.pid, self.process, self.level, self.stamp, self.file, self.line)


_SYSLOG = r"(?:(?:[A-Z]{3,4} )?[\w.-]+ (?:kernel|[\w./@-]+\[\d+\]): )?"
# What others put in front of a line: a quotation, `grep -n`, the terminal's echo of Ctrl+C, `srun -l`, mpirun and
# torchrun, compose, `kubectl logs --prefix`, stern; clocks of container runtimes, of journalctl (its forms short, iso,
# precise, full, monotonic) and of the kernel; a colour code that lost its escape character on the way.
COLLECTOR = re.compile(
    r"(?:\s*>\s|\d+:(?=[A-Z]|\d{4}-)|\^[CZ\\]| {0,2}\d{1,5}: |\[\d+,\d+\]<std(?:out|err)>: ?|\[default\d+\]: ?"
    r"|\[?[\w.@-]+\]?\s+\|\s|\[pod/[\w./-]+\] "
    r"|[a-z0-9][a-z0-9.-]{0,62}-[a-z0-9]+ [a-z0-9-]{1,63} (?=\(\w+ pid=|\[rank\d|Traceback \(|[A-Z]+ \d\d-\d\d |INFO: )"
    r"|(?:[A-Z][a-z]{2} )?\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.,]*(?:Z|[+-]\d\d:?\d\d)?\]?\s"
    rf"{_SYSLOG}(?:\|\s)?(?:std(?:out|err) [FP] )?"
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)? \S+ [^\s:]+: "
    rf"|\[ {{0,6}}\d+\.\d{{6}}\] {_SYSLOG}|\[\d[\d;]*m)"
)
_PREFIX = re.compile(
    r"\s*(?:\((?P<process>[A-Za-z][^()=]*?)(?: rank=(?P<rank>\d+))? pid=(?P<pid>\w+)(?:, ip=[^()]+)?\)(?:\[[\d;]*m)? ?"
    r"|\[rank(?P<torch_rank>\d+)\]: ?)"
)
_VLLM = re.compile(
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL|FATAL) "
    r"(?:\.\.\. (?!\[)|(?P<stamp>\d\d-\d\d \S+|\.\.\.) "
    r"(?:\[(?P<file>[^\]\s]+):(?P<line>\d+)\]|(?P<old_file>[\w./-]+):(?P<old_line>\d+)\])"
    r"|\[(?P<bare_file>[\w./-]+\.py):(?P<bare_line>\d+)\]) ?"
)
_HEADER_REACH = 400
"""How far into a line a vLLM header may begin: VLLM_LOGGING_PREFIX can put any text in front of it."""
_ACCESS = re.compile(r'\S* - "[A-Z]+ \S+ HTTP/[\d.]+" \d{3}')
_RANK_PARTS = re.compile(r"_(DP|PP|PCP|TP|DCP|EP)(\d+)")

_SHAPES: list[tuple[Shape, re.Pattern[str]]] = [
    ("uvicorn", re.compile(r"(?P<level>TRACE|DEBUG|INFO|WARNING|ERROR|CRITICAL):\s+(?P<message>.*)", re.S)),
    ("logging", re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL):(?P<file>[\w.]+):(?P<message>.*)", re.S)),
    (
        "torch",
        re.compile(
            r"\[(?P<level>[IWEFC])(?:\d{3,4})? ?(?P<stamp>\d\d:[\d:.]+)? ?"
            r"(?P<file>[\w.+-]+):(?P<line>\d+)\] (?P<message>.*)",
            re.S,
        ),
    ),
    (
        "torch",
        re.compile(
            r"(?P<level>[IWEFC])\d{4} (?P<stamp>[\d:.]+) +(?P<pid>\d+) (?P<file>\S+?):(?P<line>\d+)\] (?P<message>.*)",
            re.S,
        ),
    ),
    (
        "nccl",
        re.compile(
            r"(?:\[(?P<stamp>[\d: .-]+)\] )?[\w.-]+:(?P<pid>\d+):\d+ \[-?\d+\] "
            r"(?:(?P<file>\S+):(?P<line>\d+) )?(?P<message>NCCL (?P<level>[A-Z]+) .*)",
            re.S,
        ),
    ),
    ("tqdm", re.compile(r"(?P<message>.{0,200}?\s\d{1,3}%(?:\|| Completed \|).*\[[\d:]+<.*)", re.S)),
    ("tqdm", re.compile(r"(?P<message>.{0,200}?: \d[\d.]*[kMGT]?(?:it|B)? \[\d[\d:]*, .*\])", re.S)),
    ("coredump", re.compile(r"\[(?P<stamp>\d\d:\d\d:\d\d\.\d+)\] (?P<message>coredump: .*)", re.S)),
    ("sanitizer", re.compile(r"={9} ?(?P<message>.*)", re.S)),
]


def parse_line(text: str) -> ParsedLine:
    """Take a cleaned line apart.

    The message of a vLLM record, a JSON record, and a line of torch, NCCL, uvicorn or logging's own format is without
    its prefix; of any other line it is the line without process prefixes and collector stamps.
    """
    rest = _without_collector(text)
    if header := _VLLM.search(rest, 0, _HEADER_REACH):
        return _vllm_line(rest, header)
    origin, rest = _take_prefixes(rest)
    if rest.startswith("{") and '"levelname"' in rest and (record := _json_line(rest)):
        return record
    for shape, pattern in _SHAPES:
        if found := pattern.match(rest):
            return _shaped_line(shape, found, origin)
    process, pid, rank = origin
    prefixed = process is not None or rank is not None
    return ParsedLine(shape="prefixed" if prefixed else "plain", message=rest, process=process, pid=pid, rank=rank)


def rank_of(process: str) -> int | None:
    """The global rank that a log name or process title tells, or None.

    `VllmWorker-3` carries the executor's rank. Of `Worker[_DPd][_PPp][_TPt][_EPe]` (multiproc_executor.py of 0.32:
    each part only where its size is above one) the only part is the rank; next to others the EP number is, since an
    expert group spans all DP and TP ranks of a pipeline stage. With pipeline and other parts the sizes would be needed.
    """
    if process.startswith("VllmWorker-"):
        number = process.removeprefix("VllmWorker-")
        return int(number) if number.isdecimal() else None
    if not process.startswith("Worker_"):
        return None
    parts = {name: int(number) for name, number in _RANK_PARTS.findall(process)}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return parts.get("EP") if "PP" not in parts else None


def _without_collector(text: str) -> str:
    while (stamp := COLLECTOR.match(text)) and stamp.end():
        text = text[stamp.end() :]
    return text


_Origin = tuple[str | None, int | None, int | None]


def _take_prefixes(text: str) -> tuple[_Origin, str]:
    prefixes = []
    while prefix := _PREFIX.match(text):
        prefixes.append(prefix)
        text = text[prefix.end() :]
    return _origin(prefixes), text


def _origin(prefixes: Iterable[re.Match[str]]) -> _Origin:
    """Process, pid and rank. Prefixes nest under fork: the innermost process wrote the line."""
    process: str | None = None
    pid: int | None = None
    rank: int | None = None
    for prefix in prefixes:
        if prefix["torch_rank"]:
            rank = int(prefix["torch_rank"])
            continue
        process, pid = prefix["process"], int(prefix["pid"]) if prefix["pid"].isdecimal() else None
        rank = int(prefix["rank"]) if prefix["rank"] else rank_of(process)
    return process, pid, rank


def _vllm_line(text: str, header: re.Match[str]) -> ParsedLine:
    process, pid, rank = _origin(_PREFIX.finditer(text, 0, header.start()))
    line = header["line"] or header["old_line"] or header["bare_line"]
    return ParsedLine(
        shape="vllm",
        message=text[header.end() :],
        process=process,
        pid=pid,
        rank=rank,
        level=_LEVELS[header["level"]],
        stamp=header["stamp"],
        file=header["file"] or header["old_file"] or header["bare_file"],
        line=int(line) if line else None,
    )


def _shaped_line(shape: Shape, found: re.Match[str], origin: _Origin) -> ParsedLine:
    process, pid, rank = origin
    parts = found.groupdict()
    if shape == "uvicorn" and _ACCESS.match(parts["message"]):
        shape = "access"
    own_pid, line = parts.get("pid"), parts.get("line")
    return ParsedLine(
        shape=shape,
        message=parts["message"],
        process=process,
        pid=int(own_pid) if own_pid else pid,
        rank=rank,
        level=_LEVELS.get(parts.get("level") or ""),
        stamp=parts.get("stamp"),
        file=parts.get("file"),
        line=int(line) if line else None,
    )


class _JsonRecord(msgspec.Struct):
    """The keys of vLLM's JSON formatter (`logging_utils/formatter.py` of 0.32, pythonjsonlogger)."""

    levelname: str
    message: str = ""
    asctime: str | None = None
    processName: str | None = None  # noqa: N815 - the formatter's key
    process: int | None = None
    exc_info: str | None = None


_JSON_DECODER = msgspec.json.Decoder(_JsonRecord)


def _json_line(text: str) -> ParsedLine | None:
    try:
        record = _JSON_DECODER.decode(text)
    except msgspec.DecodeError:
        return None
    return ParsedLine(
        shape="json",
        message="\n".join(filter(None, (record.message, record.exc_info))),
        process=record.processName,
        pid=record.process,
        rank=rank_of(record.processName or ""),
        level=_LEVELS.get(record.levelname),
        stamp=record.asctime,
    )
