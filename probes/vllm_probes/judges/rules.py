"""Known lines of a log as data: phases of the start-up, failures, harmless noise; and the matcher for all of them.

A rule is a `[[rule]]` of a TOML file in `rules/` or in a folder of the user's own. Its pattern is searched in the
message of a vLLM, JSON, uvicorn or logging record, that is without prefix; in what a library printed (torch, tqdm, …)
without the library's stamp; in other lines as they are, without process prefix (`log.line.parse_line`). A traceback is
matched by what it says, exceptions and words around it; by its frames only where a rule asks for them.
"""

import re
import tomllib
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from vllm_probes.judges.literals import SHORTEST, WORD, alternatives, is_bounded

_OWN_FOLDER = Path(__file__).with_name("rules")
_WORDS = re.compile(WORD)
_FLAGS = re.compile(r"\(\?[aiLmsux-]+[:)]")
_RAW_WORDS = re.compile(WORD.encode())
_ORDINARY = """
APIServer Added CUDA Capturing Channel DEBUG Engine EngineCore Finished GPU INFO Iteration NCCL POST Prefix
Received Running Waiting aborted active cache completed completions core engine generation graphs params
prompt rate request requests seconds throughput tokens usage waiting work
"""
"""Words of what a server prints while it works (vLLM 0.32, loggers.py, logger.py; uvicorn; NCCL)."""

Severity = Literal["info", "warning", "error", "fatal"]


class RuleError(ValueError):
    """A rule file is not as it must be; the message names file and key."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One known line."""

    id: str
    match: str
    """A regular expression; its named groups are the fields of a match, one name may stand in several alternatives.
    Without `frames` each alternative needs some fixed text outside of groups; each repeat needs an upper bound
    (`literals.is_bounded`)."""
    role: Literal["cause", "symptom", "consequence", "phase", "noise"]
    """A symptom is taken for the cause where the log holds no better one."""
    class_: str = msgspec.field(name="class", default="benign")
    severity: Severity = "info"
    frames: str | None = None
    """A regular expression for the frames of the traceback that the line belongs to: `  File "…", line 1, in f` and the
    source under it."""
    after: list[str] = []
    """Only in a log where one of these rules has matched before."""
    since: str | None = None
    """The first vLLM version that it is about, like `0.8`; `until` is the last. Of a log that names no version every
    rule is tried."""
    until: str | None = None
    waits: bool = False
    """It tells of waiting: an error where a log ends with it."""
    survivable: bool = False
    """A run may go on after it: a warning where its process goes on with the start, or the server does its work."""
    at_any_level: bool = False
    """It tells of a failure though its writer says so on the level of information."""
    wraps: bool = False
    """Behind what it matches stands the message of another error, which tells more where a rule knows it."""
    covers: bool = False
    """Words before a traceback that is printed without prefix. What is said of harmless words holds for it, too."""
    phase: str | None = None
    label: str | None = None
    """What the phase is called on a screen."""
    why: str = ""
    fix: str = ""
    advice: list[str] = []
    """Sentences with `{field}`s, of this match or of earlier ones, each told before `fix` where all of its are known. A
    rule of severity `info` with advice is told only then. What a run at hand has besides:
    `gpu_holders`, other processes with memory of the GPUs; `own_addresses` of this host; `meeting_place`, whose address
    it is that the ranks were told."""
    lever: str | None = None
    """Id of the lever that applies the fix."""
    docs: str | None = None
    samples: list[str]
    """What it must know: a line, or several."""
    not_samples: list[str] = []

    @property
    def explains(self) -> bool:
        """It can be a finding."""
        return self.role in ("cause", "symptom", "consequence")


class Context(NamedTuple):
    """What else a rule may ask for."""

    frames: str = ""
    seen: Collection[str] = ()
    """Ids of the rules that have matched before."""
    version: str | None = None


class Known(NamedTuple):
    """A text that a rule knows."""

    rule: Rule
    fields: dict[str, str]
    """The named groups that took part."""
    offset: int
    """Where in the text it begins …"""
    end: int
    """… and ends."""

    def moved(self, by: int) -> "Known":
        """The same in a text that has so many characters more in front."""
        return self._replace(offset=self.offset + by, end=self.end + by)


class _Entry(NamedTuple):
    """One alternative of a rule."""

    rule: Rule
    source: str
    words: frozenset[str]
    text: str


NOTHING_ELSE = Context()


class RuleSet:
    """Rules in the order of their files; the first that fits wins, those that ask for nothing but frames come last.

    But what frames alone call harmless is no cause, whatever its text says.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Take checked rules.

        Raises:
            RuleError: two rules have one id.
        """
        self.by_id: dict[str, Rule] = {}
        self._entries: list[_Entry] = []
        for rule in rules:
            if rule.id in self.by_id:
                raise RuleError(f"Two rules have the id {rule.id!r}: give one of them another.")
            self.by_id[rule.id] = rule
            self._entries += (_Entry(rule, *one) for one in alternatives(rule.match))
        self._by_word: dict[str, list[int]] = {}
        self._by_text: list[tuple[str, int]] = []
        self._by_frames: list[int] = []
        self._sort()
        self._raw_words = frozenset(word.encode() for word in self._by_word)
        self._raw_texts = [text.encode() for text in dict.fromkeys(text for text, _ in self._by_text)]

    def _sort(self) -> None:
        """By the longest word of each that a server does not print all the time."""
        ordinary = frozenset(_ORDINARY.split())
        for number, entry in enumerate(self._entries):
            if entry.words:
                telling = max(sorted(entry.words), key=lambda word: (word not in ordinary, len(word)))
                self._by_word.setdefault(telling, []).append(number)
            elif len(entry.text) >= SHORTEST:
                self._by_text.append((entry.text, number))
            else:
                self._by_frames.append(number)

    def telling(self, data: bytes) -> list[bytes]:
        """Texts of `data` of which every line has one that a rule may know, but for rules that go by frames alone."""
        return [*self._raw_words.intersection(_RAW_WORDS.findall(data)), *self._raw_texts]

    def match(self, text: str, context: Context = NOTHING_ELSE) -> Known | None:
        """What knows `text`; white space around it does not count."""
        message = text.strip()
        found = self._first(self._candidates(message), message, context)
        if context.frames and (found is None or found.rule.role in ("cause", "symptom")):
            by_frames = self._first(self._by_frames, message, context)
            if found is None or (by_frames and by_frames.rule.role == "noise"):
                found = by_frames
        return found and found.moved(text.index(message))

    def _first(self, numbers: Iterable[int], message: str, context: Context) -> Known | None:
        for entry in map(self._entries.__getitem__, numbers):
            if (found := _pattern(entry.source).search(message)) and _fits(entry.rule, context):
                fields = {name: value for name, value in found.groupdict().items() if value is not None}
                return Known(entry.rule, fields, *found.span())
        return None

    def _candidates(self, message: str) -> list[int]:
        words = set(_WORDS.findall(message))
        numbers = [number for word in self._by_word.keys() & words for number in self._by_word[word]]
        numbers += (number for text, number in self._by_text if text in message)
        return sorted(number for number in numbers if self._entries[number].words <= words)


@cache
def _pattern(source: str) -> re.Pattern[str]:
    """Compiled when it is first needed: most rules never are."""
    return re.compile(source)


def _fits(rule: Rule, context: Context) -> bool:
    if rule.frames is not None and not _pattern(rule.frames).search(context.frames):
        return False
    if rule.after and not any(one in context.seen for one in rule.after):
        return False
    return _is_about(rule, context.version)


def _is_about(rule: Rule, version: str | None) -> bool:
    if version is None or not (rule.since or rule.until):
        return True
    number = _number(version)
    until = _number(rule.until) if rule.until else None
    return _number(rule.since or "0") <= number and (until is None or number[: len(until)] <= until)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def load_rules(*more: Rule) -> RuleSet:
    """The rules that come with the program; `more` are looked at before them, and replace those with the same id.

    Raises:
        OSError: a file cannot be read.
    """
    own = msgspec.convert(
        [entry for file in sorted(_OWN_FOLDER.glob("*.toml")) for entry in _entries(file)], list[Rule]
    )
    replaced = {rule.id for rule in more}
    return RuleSet([*more, *(rule for rule in own if rule.id not in replaced)])


def read_rules(folder: Path) -> tuple[list[Rule], list[str]]:
    """The sound rules of a folder that need not be there, and what is wrong with the others, with file and key."""
    rules: dict[str, Rule] = {}
    faults: list[str] = []
    for file in sorted(folder.glob("*.toml")):
        try:
            entries = _entries(file)
        except (RuleError, OSError) as error:
            faults.append(str(error))
            continue
        for position, entry in enumerate(entries, 1):
            try:
                rule = _checked(file, position, entry)
                if rule.id in rules:
                    raise RuleError(f"{file}: rule {rule.id!r}: `id` is taken by an earlier rule.")
                rules[rule.id] = rule
            except RuleError as error:
                faults.append(str(error))
    return list(rules.values()), faults


def _entries(file: Path) -> list[object]:
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RuleError(f"{file}: {error}") from error
    entries = table.pop("rule", [])
    if table or not isinstance(entries, list):
        raise RuleError(f"{file}: only [[rule]] entries may stand here, not {', '.join(table) or '[rule]'}.")
    return entries


def _checked(file: Path, position: int, entry: object) -> Rule:
    name = f"{file}: rule {(isinstance(entry, dict) and entry.get('id')) or position!r}"
    try:
        rule = msgspec.convert(entry, Rule)
        _check(rule)
    except (msgspec.ValidationError, RuleError) as error:
        raise RuleError(f"{name}: {error}") from error
    return rule


def _check(rule: Rule) -> None:
    _check_pattern("match", rule.match)
    if rule.frames is not None:
        _check_pattern("frames", rule.frames)
    elif not all(one.words or len(one.text) >= SHORTEST for one in alternatives(rule.match)):
        raise RuleError(
            f"every alternative of `match` needs at least {SHORTEST} fixed characters in a row outside of groups."
        )
    if rule.role == "phase" and not (rule.phase and rule.label):
        raise RuleError("a rule of role 'phase' needs `phase` and `label`.")
    if rule.explains and not (rule.why and rule.fix):
        raise RuleError(f"a rule of role {rule.role!r} needs `why` and `fix`.")
    if not rule.samples:
        raise RuleError("`samples` is empty: give a line that the rule must know.")


def _check_pattern(key: str, text: str) -> None:
    if _FLAGS.search(text):
        raise RuleError(f"`{key}` sets flags like (?i): write both spellings, [Aa]ddress, instead.")
    if not is_bounded(text):
        raise RuleError(f"`{key}` repeats without end: write {{0,200}} instead of *, {{1,200}} instead of +.")
    try:
        for source in [one.source for one in alternatives(text)] if key == "match" else [text]:
            re.compile(source)
    except re.error as error:
        raise RuleError(f"`{key}` is no regular expression: {error}.") from error
