"""`vllm-tui diagnose`: what logs say went wrong, for people and for programs."""

import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

import msgspec

from vllm_probes.judges.diagnosis import LINE_LIMIT_BYTES, diagnose
from vllm_probes.judges.rules import RuleSet
from vllm_probes.log.line import parse_line
from vllm_probes.rows import Finding
from vllm_tui.explained import page_of, search_line
from vllm_tui.format import printable, wrapped

STANDARD_INPUT = "-"
COLOURS = {"fatal": "red", "error": "red", "warning": "yellow", "info": "cyan"}
LINE_CHARACTERS = 400
_GZIP = b"\x1f\x8b"
_STAMP = re.compile(r"\d\d-\d\d \d\d:\d\d:\d\d")


class DiagnoseError(Exception):
    """A log cannot be read, or there is no such rule; the message is a sentence."""


def findings_of(rules: RuleSet, logs: Sequence[str]) -> list[Finding]:
    """The findings of all logs, root causes first, by time where every one of them has a time.

    Raises:
        DiagnoseError: there is no such file, or it is none that can be read.
    """
    found = [finding for log in logs for finding in _of_one(rules, log)]
    groups: dict[int, list[Finding]] = {0: [], 1: [], 2: []}
    for finding in found:
        groups[2 if finding.severity in ("info", "warning") else finding.role == "consequence"].append(finding)
    stamps = {id(finding): parse_line(finding.line).stamp or "" for finding in groups[0]}
    if all(map(_STAMP.fullmatch, stamps.values())):
        groups[0].sort(key=lambda finding: stamps[id(finding)])
    return [*groups[0], *groups[1], *groups[2]]


def _of_one(rules: RuleSet, log: str) -> list[Finding]:
    try:
        with _opened(log) as file:
            return diagnose(rules, _lines(file), log)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DiagnoseError(
            f"{log} is no whole gzip file ({error}): fetch it again, or unpack what is left."
        ) from error
    except OSError as error:
        raise DiagnoseError(f"{log} cannot be read: {error.strerror or error}.") from error


@contextmanager
def _opened(log: str) -> Iterator[IO[bytes]]:
    with nullcontext(sys.stdin.buffer) if log == STANDARD_INPUT else Path(log).open("rb") as file:
        if cast("BufferedReader", file).peek(2)[:2] != _GZIP:
            yield file
        else:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]  # it has all that lines are read by


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines without newlines; of one that is longer than the limit only its beginning is kept."""
    while piece := file.readline(LINE_LIMIT_BYTES):
        yield piece.removesuffix(b"\n")
        while not piece.endswith(b"\n") and (piece := file.readline(LINE_LIMIT_BYTES)):
            pass


def as_json(findings: Sequence[Finding]) -> str:
    """One object: `findings`. ASCII, so that names which are no UTF-8 do no harm."""
    return json.dumps({"findings": msgspec.to_builtins(findings)})


def as_lines(findings: Sequence[Finding], rules: RuleSet, width: int) -> Iterator[tuple[str, str | None]]:
    """Lines for a terminal with the colour of each."""
    if not findings:
        yield "No failure that can be told from this log.", None
    for number, finding in enumerate(findings):
        rule = rules.by_id.get(finding.rule or "")
        place = f"{finding.file}:{finding.line_number}"
        title = f"{finding.severity.upper()}  {finding.role}  {finding.class_}  {place}"
        yield printable(title + (f"  ({rule.id})" if rule else "")), COLOURS[finding.severity]
        yield f"  {printable(finding.line.strip()[:LINE_CHARACTERS])}", None
        if number and finding.role == "consequence":
            continue
        yield from ((line, None) for line in wrapped(printable(finding.why), width, "  "))
        yield from ((line, None) for line in wrapped(printable(finding.fix), width, "  → "))
        if number == 0 and finding.severity in ("error", "fatal"):
            yield f"  look for it: {search_line(finding)}", None
        yield "", None


def explanation(rules: RuleSet, rule_id: str, width: int) -> list[str]:
    """The page of one rule.

    Raises:
        DiagnoseError: there is no such rule.
    """
    if (rule := rules.by_id.get(rule_id)) is None:
        near = get_close_matches(rule_id, rules.by_id, n=3, cutoff=0.4)
        hint = f"Did you mean {', '.join(near)}?" if near else "The key K in the program lists all of them."
        raise DiagnoseError(f"There is no rule {rule_id!r}. {hint}")
    texts = [f"{rule.id}: {rule.class_}, {rule.role}, {rule.severity}"]
    texts += [f"{label.capitalize() if label.islower() else label}: {text}" for label, text in page_of(rule)]
    return [line for text in texts for line in wrapped(printable(text), width, "")]
