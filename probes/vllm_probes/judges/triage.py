"""Which log records explain an end: the first cause over all processes, then what followed from it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from vllm_probes.events import LogRecorded
from vllm_probes.judges.rules import Rule
from vllm_probes.rows import Finding

MAX_RECORDS = 40
"""The first alarms of an attempt decide; a flood that follows adds nothing."""
MAX_FINDINGS = 5


def find_causes(rules: Mapping[str, Rule], records: Sequence[LogRecorded], log: str) -> list[Finding]:
    """At most five findings, causes before consequences, each group in the order of the log.

    `records` are those of level error or worse and tracebacks; `log` names the file they come from.
    """
    findings = {
        (finding.line_number, finding.rule): finding
        for record in records
        if (finding := _finding(rules.get(record.rule or ""), record, log)).role != "noise"
    }
    order = sorted(findings.values(), key=lambda finding: (finding.role == "consequence", finding.line_number))
    return order[:MAX_FINDINGS]


def _finding(rule: Rule | None, record: LogRecorded, log: str) -> Finding:
    known = rule if rule and rule.role in ("cause", "consequence", "noise") else None
    return Finding(
        rule=known.id if known else None,
        class_=known.class_ if known else "other",
        role=_role(known),
        severity=known.severity if known else "error",
        file=log,
        line_number=record.exception_line_number or record.line_number,
        line=record.line or record.message,
        why=known.why if known else "The first error in the log.",
        fix=known.fix if known else "Read the lines around it.",
    )


def _role(rule: Rule | None) -> Literal["cause", "consequence", "noise"]:
    """A record that no rule knows may well be the cause."""
    return rule.role if rule and rule.role != "phase" else "cause"
