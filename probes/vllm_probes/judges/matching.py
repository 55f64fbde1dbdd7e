"""Lines of a log in, what rules know of them out."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from vllm_probes.judges.records import LATE_LINES, Record, RecordAssembler, Statement
from vllm_probes.judges.rules import Context, Known, Rule, RuleSet
from vllm_probes.log.line import TRACEBACK
from vllm_probes.log.marks import alarming_positions, positions_of

_WRITTEN_BY_LEVEL = ("vllm", "json", "uvicorn", "logging")
_HARMLESS_LEVELS = ("debug", "info", "warning")
_OF_REQUESTS = re.compile(r"serving\w*\.py$")
"""Where vLLM answers requests (entrypoints/openai/serving_chat.py, chat_completion/serving.py in 0.32)."""
_OF_TRACEBACKS = (b"Error", b"Exception", b'", line ')
"""What a traceback without its first line has."""


def telling_lines(rules: RuleSet, raws: Sequence[bytes]) -> set[int]:
    """Which of these lines, from 0, may say something; nearly all others are never taken apart."""
    data = b"\n" + b"\n".join(raws)
    positions = [*alarming_positions(data), *positions_of(data, [*rules.telling(data), *_OF_TRACEBACKS])]
    if not positions:
        return set()
    starts = list(accumulate((len(raw) + 1 for raw in raws), initial=1))
    return {bisect_right(starts, position) - 1 for position in positions}


class Match(NamedTuple):
    """A line that a rule knows; or, with `rule` None, the exception or first words of a record that none knows."""

    record: Record
    statement: Statement
    rule: Rule | None
    fields: dict[str, str]
    number: int
    """Of the line that tells it: of a message over several lines the one that the rule knows."""
    line: str


class RecordStream:
    """Lines in, matches out: every statement that a rule knows, and every exception or record that none does."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules
        self._assembler = RecordAssembler()
        self._seen: set[str] = set()
        self._version: str | None = None
        self._covers: dict[str | None, int] = {}
        """By process the line of words that cover its next traceback."""

    def awaits(self, number: int) -> bool:
        """Line `number` matters whatever it says: a traceback is open."""
        return self._assembler.awaits(number)

    def feed(self, number: int, text: str) -> list[Match]:
        """Take one cleaned line."""
        return self._judge(self._assembler.feed(number, text))

    def settle(self) -> list[Match]:
        """What is complete but for a line that may never come; open tracebacks wait."""
        return self._judge(self._assembler.settle())

    def flush(self) -> list[Match]:
        """Everything that is left."""
        return self._judge(self._assembler.flush())

    def _judge(self, records: list[Record]) -> list[Match]:
        return [match for record in records for match in self._matches(record)]

    def _matches(self, record: Record) -> Iterator[Match]:
        matches = list(self._known_in(record))
        if self._is_covered(record):
            yield from (match for match in matches if match.rule and match.rule.role == "consequence")
            return
        yield from _without_repeats(matches)
        if _is_of_a_request(record):
            return
        told = [match.statement for match in matches]
        unknown = _unknown_in(record, matches)
        if unknown and unknown not in told and (record.exception or not told) and not any(map(_is_harmless, matches)):
            yield Match(record, unknown, None, {}, unknown.number, unknown.line)

    def _known_in(self, record: Record) -> Iterator[Match]:
        """What stands under harmless words is harmless."""
        for statement in record.statements:
            if match := self._known(record, statement):
                yield match
                if _is_harmless(match):
                    return

    def _is_covered(self, record: Record) -> bool:
        """It is the traceback to the words of another record, or of one request: only what tells of a death counts."""
        if record.is_traceback and _is_of_a_request(record):
            return True
        if not record.is_traceback or record.head.level:
            return False
        return record.line_number - self._covers.pop(record.head.process, -LATE_LINES) < LATE_LINES

    def _known(self, record: Record, statement: Statement) -> Match | None:
        context = Context(record.frames if statement.is_exception else "", self._seen, self._version)
        found = self._rules.match(statement.text, context)
        if found is None and "\n" in statement.text:  # a message that was broken on its way
            found = self._rules.match(statement.text.replace("\n", " "), context)
        if found and found.rule.wraps:
            found = self._wrapped(statement.text, found.end, context) or found
        if found is None or _is_only_talk(found.rule, record):
            return None
        self._seen.add(found.rule.id)
        if found.rule.covers and not record.is_traceback:
            self._covers[record.head.process] = statement.number
        self._version = found.fields.get("version", self._version)
        return Match(record, statement, found.rule, found.fields, *statement.at(found.offset))

    def _wrapped(self, text: str, begin: int, context: Context) -> Known | None:
        """What is known of a message behind words that only pass it on."""
        inner = self._rules.match(text[begin:], context)
        return inner.moved(begin) if inner and inner.rule.role in ("cause", "symptom") else None


def _is_of_a_request(record: Record) -> bool:
    return _OF_REQUESTS.match(record.head.file or "") is not None


def _is_harmless(match: Match) -> bool:
    return match.rule is not None and match.rule.role == "noise" and not match.statement.is_exception


def _without_repeats(matches: Sequence[Match]) -> Iterable[Match]:
    """Of chained exceptions with one class the last that says something new: it is the one that got out."""
    kept: dict[object, Match] = {}
    chain = [match for match in matches if match.statement.is_exception]
    for match in matches:
        if _is_bare_symptom(match) and any(_is_known_better(one) for one in chain if one.number > match.number):
            continue
        kind = _kind(match)
        if kind not in kept or _says_more(match.statement, kept[kind].statement):
            kept[kind] = match
    return sorted(kept.values(), key=lambda match: match.number)


def _is_bare_symptom(match: Match) -> bool:
    """The name of an exception and nothing else, from a place that tells no cause."""
    rule, statement = match.rule, match.statement
    return statement.is_exception and rule is not None and rule.role == "symptom" and ":" not in statement.text


def _is_known_better(match: Match) -> bool:
    return match.rule is not None and match.rule.role in ("cause", "symptom") and ":" in match.statement.text


def _kind(match: Match) -> object:
    rule, statement = match.rule, match.statement
    return (rule.class_, rule.role) if rule and statement.is_exception else statement.text


def _says_more(one: Statement, before: Statement) -> bool:
    """It is more than the name of an exception with the words of the one before."""
    said = one.text.partition(": ")[2]
    return bool(said) and said not in before.text


def _unknown_in(record: Record, matches: Sequence[Match]) -> Statement | None:
    """What to tell of a record where no rule knows it: the exception that got out, but rather the one before it than
    one that is known to follow from others; else its first words."""
    if record.exception is None:
        return next(filter(_says_something, record.statements), None)
    consequences = [match.statement for match in matches if match.rule and match.rule.role == "consequence"]
    raised = [statement for statement in record.statements if statement.is_exception]
    return next((one for one in reversed(raised) if one not in consequences), record.exception)


def _says_something(statement: Statement) -> bool:
    return bool(statement.text.strip()) and not statement.text.endswith(TRACEBACK)


def _is_only_talk(rule: Rule, record: Record) -> bool:
    """A record that its writer calls harmless does not tell of an error, whatever words are in it."""
    harmless = record.head.shape in _WRITTEN_BY_LEVEL and record.level in _HARMLESS_LEVELS
    is_failure = rule.severity in ("error", "fatal") and not rule.at_any_level
    return harmless and not record.is_traceback and is_failure
