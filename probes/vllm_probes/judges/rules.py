"""Known lines of a log as data: phases of the start-up, failures, harmless noise; and the matcher for all of them.

A rule is a `[[rule]]` of a TOML file in `rules/` or in a folder of the user's own. Its pattern is searched in the
message of a vLLM, JSON, uvicorn or logging record, that is without prefix; in what a library printed (torch, tqdm, …)
without the library's stamp; in other lines as they are, without process prefix (`log.line.parse_line`). A traceback is
matched by what it says, exceptions and words around it, never by its frames.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from vllm_probes.judges.literals import SHORTEST, fixed_texts
from vllm_probes.judges.records import Record, RecordAssembler, Statement

_OWN_FOLDER = Path(__file__).with_name("rules")


class RuleError(ValueError):
    """A rule file is not as it must be; the message names file and key."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One known line."""

    id: str
    match: str
    """A regular expression; its named groups are the fields of a match. Each of its alternatives needs some fixed text
    outside of groups."""
    role: Literal["cause", "consequence", "phase", "noise"]
    class_: str = msgspec.field(name="class", default="benign")
    severity: Literal["info", "warning", "error", "fatal"] = "info"
    phase: str | None = None
    label: str | None = None
    """What the phase is called on a screen."""
    why: str = ""
    fix: str = ""
    samples: list[str]
    not_samples: list[str] = []


class Match(NamedTuple):
    """A line that a rule knows; or, with `rule` None, the exception or first words of a record that none knows."""

    record: Record
    statement: Statement
    rule: Rule | None
    fields: dict[str, str]


class RuleSet:
    """Rules in the order of their files; the first that fits wins."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Take checked rules.

        Raises:
            RuleError: two rules have one id, or a pattern is no regular expression or has no fixed text.
        """
        self.by_id: dict[str, Rule] = {}
        self._entries: list[tuple[list[str], re.Pattern[str], Rule]] = []
        for rule in rules:
            if rule.id in self.by_id:
                raise RuleError(f"Two rules have the id {rule.id!r}: give one of them another.")
            self.by_id[rule.id] = rule
            self._entries.append((*_compile(rule), rule))

    @property
    def literals(self) -> list[str]:
        """Texts of which every line that a rule knows contains one."""
        return list(dict.fromkeys(text for texts, _, _ in self._entries for text in texts))

    def match(self, message: str) -> tuple[Rule, dict[str, str]] | None:
        """The rule that knows `message`, and the named groups that took part; white space around it does not count."""
        message = message.strip()
        for texts, pattern, rule in self._entries:
            if any(text in message for text in texts) and (found := pattern.search(message)):
                return rule, {name: text for name, text in found.groupdict().items() if text is not None}
        return None

    def stream(self) -> "RecordStream":
        """Judge lines one after the other."""
        return RecordStream(self)


class RecordStream:
    """Lines in, matches out: every statement that a rule knows, and every exception or record that none does."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules
        self._assembler = RecordAssembler()

    @property
    def in_traceback(self) -> bool:
        return self._assembler.in_traceback

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
        unknown = record.exception or next((found for found in record.statements if found.text.strip()), None)
        known = False
        for statement in record.statements:
            if found := self._rules.match(statement.text):
                known = known or statement is unknown or not record.exception
                yield Match(record, statement, *found)
        if unknown and not known:
            yield Match(record, unknown, None, {})


def load_rules(*folders: Path) -> RuleSet:
    """The rules that come with the program, then those of further folders.

    Raises:
        RuleError: a file is no TOML, or a rule lacks a key or has one too many.
        OSError: a file cannot be read.
    """
    files = [file for folder in (_OWN_FOLDER, *folders) for file in sorted(folder.glob("*.toml"))]
    return RuleSet(rule for file in files for rule in read_rules(file))


def read_rules(file: Path) -> list[Rule]:
    """The rules of one file; raises as `load_rules` does."""
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RuleError(f"{file}: {error}") from error
    entries = table.pop("rule", [])
    if table or not isinstance(entries, list):
        raise RuleError(f"{file}: only [[rule]] entries may stand here, not {', '.join(table) or '[rule]'}.")
    return [_rule(file, position, entry) for position, entry in enumerate(entries, 1)]


def _rule(file: Path, position: int, entry: dict[str, Any]) -> Rule:
    name = f"{file}: rule {entry.get('id', position)!r}"
    try:
        rule = msgspec.convert(entry, Rule)
        _compile(rule)
    except (msgspec.ValidationError, RuleError) as error:
        raise RuleError(f"{name}: {error}") from error
    if rule.role == "phase" and not (rule.phase and rule.label):
        raise RuleError(f"{name}: a rule of role 'phase' needs `phase` and `label`.")
    if rule.role in ("cause", "consequence") and not (rule.why and rule.fix):
        raise RuleError(f"{name}: a rule of role {rule.role!r} needs `why` and `fix`.")
    if not rule.samples:
        raise RuleError(f"{name}: `samples` is empty: give a line that the rule must know.")
    return rule


def _compile(rule: Rule) -> tuple[list[str], re.Pattern[str]]:
    try:
        pattern = re.compile(rule.match)
    except re.error as error:
        raise RuleError(f"`match` is no regular expression: {error}.") from error
    texts = fixed_texts(rule.match)
    if texts is None:
        raise RuleError(
            f"every alternative of `match` needs at least {SHORTEST} fixed characters in a row outside of groups."
        )
    return texts, pattern
