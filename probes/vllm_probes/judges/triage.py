"""Which lines of a log explain an end: the first cause over all processes, then what followed from it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import msgspec
from msgspec.structs import replace

from vllm_probes.events import LogRecorded
from vllm_probes.judges import ranksets
from vllm_probes.judges.rules import Rule, Severity
from vllm_probes.rows import Finding

MAX_RECORDS = 200
"""The first alarms of an attempt decide; a flood that follows adds nothing."""
MAX_FINDINGS = 8
KILLED_RULES = ("worker-killed", "engine-killed", "worker-died")
SIGNALS = {
    4: "SIGILL: code for another processor",
    6: "SIGABRT: it aborted itself (NCCL's watchdog, an exception in C++, a GPU core dump)",
    7: "SIGBUS: mostly a full /dev/shm",
    9: "SIGKILL: mostly the kernel, for memory (`dmesg | grep -i oom`)",
    11: "SIGSEGV: native code crashed",
    15: "SIGTERM: it was told to end",
}
"""What an exit code below zero stands for (signal(7))."""
UNKNOWN_WHY = "An error that no rule knows."
UNKNOWN_FIX = "Read the lines around it; look for it among vLLM's issues."
NOT_IN_LOG = "The cause is not in this log: look above line 1, where the processes that it names wrote."
NO_CAUSE = "No line of this log says why: look at exit codes, at `dmesg`, and at what those processes wrote last."
ENGINE_DEATHS = ("engine-fatal", "engine-dead", "engine-dead-old", "output-handler")
"""What is written only where an engine that ran has died."""

_MAYBE_SIGNAL_9 = re.compile(r"(?:exit code|'): (?:-9|137|None)\b|\bdied unexpectedly, ")
_EXIT_SIGNAL = re.compile(r"(?<!\w)-(\d+)\b")
_FIELD = re.compile(r"\{(\w+)\}")
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
Tier = Literal["cause", "symptom", "stall", "words", "consequence", "notice"]
_TIERS: tuple[Tier, ...] = get_args(Tier)
_EXPLAINING = _TIERS[: _TIERS.index("consequence")]


class Clue(msgspec.Struct, frozen=True):
    """A line that may explain something. `rule` None: an error that no rule knows, an exception or some words."""

    line_number: int
    line: str
    rule: Rule | None
    fields: Mapping[str, str] = {}
    writer: str | None = None
    """The process that wrote it, by its log name."""
    is_exception: bool = False
    went_on: bool = False
    """The run went on after it."""

    @property
    def tier(self) -> Tier:
        """An exception that no rule knows may well be the cause, or follow from one.

        A log that ends with waiting has no better cause; words that no rule knows may mean anything.
        """
        if self.severity in ("info", "warning"):
            return "notice"
        if self.rule is None:
            return "symptom" if self.is_exception else "words"
        if self.rule.waits:
            return "stall"
        return "cause" if self.rule.role == "cause" else "symptom" if self.rule.role == "symptom" else "consequence"

    @property
    def severity(self) -> Severity:
        if self.went_on and (self.rule is None or self.rule.survivable):
            return "warning"
        return self.rule.severity if self.rule else "error"


def clue_of(rules: Mapping[str, Rule], record: LogRecorded) -> Clue:
    """What the keeper recorded, as a clue."""
    return Clue(
        line_number=record.exception_line_number or record.line_number,
        line=record.line or record.message,
        rule=rules.get(record.rule or ""),
        fields=record.fields,
        writer=record.process,
        is_exception=record.exception_line_number is not None,
    )


def find_causes(
    clues: Iterable[Clue],
    facts: Mapping[str, str],
    log: str,
    *,
    begin_is_missing: bool = False,
    oom_kill_count: int = 0,
) -> list[Finding]:
    """At most eight findings: the root cause, other causes, what followed, then notices, each group as in the log.

    Args:
        clues: in any order; a record is told when it is complete.
        facts: what the run said of itself, by the names of the rules' fields.
        log: names the file.
        begin_is_missing: the log does not begin where the run began.
        oom_kill_count: how many processes the kernel has killed for memory in the run's cgroup meanwhile.
    """
    if oom_kill_count:
        clues = [_killed_for_memory(clue, oom_kill_count) for clue in clues]
    told = [clue for clue in clues if (clue.rule is None or clue.rule.explains) and _is_worth_telling(clue, facts)]
    merged = _merge(sorted(told, key=lambda clue: clue.line_number))
    order = sorted(merged, key=lambda one: (_TIERS.index(one[0].tier), one[0].line_number))
    findings = [_finding(clue, writers, facts, log) for clue, writers in order]
    if findings and _has_killed_the_engine(order[0][0], told):
        findings[0] = _with(findings[0], class_="engine_core_died")
    if findings and order[0][0].tier in _EXPLAINING:
        findings[0] = _with(findings[0], role="cause")
    elif findings and findings[0].role == "consequence":
        findings[0] = _with(findings[0], why=f"{NOT_IN_LOG if begin_is_missing else NO_CAUSE} {findings[0].why}")
    return findings[:MAX_FINDINGS]


def _has_killed_the_engine(first: Clue, told: Iterable[Clue]) -> bool:
    """An error of no class, in a log that tells of the death of an engine that ran."""
    has_no_class = first.tier in _EXPLAINING and (first.rule is None or first.rule.class_ == "other")
    return has_no_class and any(clue.rule is not None and clue.rule.id in ENGINE_DEATHS for clue in told)


def _killed_for_memory(clue: Clue, count: int) -> Clue:
    """A process that signal 9 ended, or one of unknown number, while the kernel killed for memory."""
    if clue.rule is None or clue.rule.id not in KILLED_RULES or not _MAYBE_SIGNAL_9.search(clue.line):
        return clue
    why = f"The kernel killed for memory while this run lasted ({count} of its cgroup), and one of its processes was."
    return replace(clue, rule=msgspec.structs.replace(clue.rule, class_="host_oom_killed", role="cause", why=why))


def _is_worth_telling(clue: Clue, facts: Mapping[str, str]) -> bool:
    rule = clue.rule
    return not (rule and rule.severity == "info" and rule.advice) or advice(rule, {**facts, **clue.fields}) is not None


def _merge(clues: Sequence[Clue]) -> list[tuple[Clue, list[str]]]:
    """What several processes or lines say alike, once, with those who said it."""
    first: dict[object, tuple[Clue, list[str]]] = {}
    for clue in clues:
        known, writers = first.setdefault(_key(clue), (clue, []))
        if clue.writer and clue.writer not in writers:
            writers.append(clue.writer)
        if known.went_on and not clue.went_on:
            first[_key(clue)] = replace(known, went_on=False), writers
    return list(first.values())


def _key(clue: Clue) -> object:
    return clue.rule.id if clue.rule else _NUMBERS.sub("#", clue.line.rpartition("] ")[2])


def _finding(clue: Clue, writers: Sequence[str], facts: Mapping[str, str], log: str) -> Finding:
    rule = clue.rule
    told = advice(rule, {**facts, **clue.fields}) if rule else None
    why = " ".join([rule.why if rule else UNKNOWN_WHY, *_signals(clue.fields)])
    return Finding(
        rule=rule.id if rule else None,
        class_=rule.class_ if rule else "other",
        role="cause" if clue.tier in ("cause", "notice") else "consequence",
        severity=clue.severity,
        file=log,
        line_number=clue.line_number,
        line=clue.line,
        why=f"{why} {ranksets.render(writers)} said so." if len(writers) > 1 else why,
        fix=" ".join(filter(None, (told, rule.fix if rule else UNKNOWN_FIX))),
    )


def _signals(fields: Mapping[str, str]) -> Iterable[str]:
    """The exit codes that a line names, in words."""
    for number in dict.fromkeys(_EXIT_SIGNAL.findall(f"{fields.get('procs')} {fields.get('code')}")):
        if meaning := SIGNALS.get(int(number)):
            yield f"-{number} is {meaning}."


def advice(rule: Rule, fields: Mapping[str, str]) -> str | None:
    """The rule's advice with the numbers of this run; None where it has none or too little is known."""
    known = [one for one in rule.advice if all(name in fields for name in _FIELD.findall(one))]
    return " ".join(_FIELD.sub(lambda found: fields[found[1]], one) for one in known) or None


def _with(finding: Finding, **changes: str) -> Finding:
    return Finding(**{name: getattr(finding, name) for name in Finding.__struct_fields__} | changes)
