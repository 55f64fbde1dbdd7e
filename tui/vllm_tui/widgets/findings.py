"""Why a run has ended, below the verdict: the first finding with what to do about it, and how many others there are."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from textual.content import Content

from vllm_probes.log.line import parse_line
from vllm_probes.rows import Finding
from vllm_tui import actions
from vllm_tui.explained import rule_of
from vllm_tui.format import plural, printable
from vllm_tui.situation import Situation
from vllm_tui.widgets.log_style import process_style
from vllm_tui.widgets.notices import LOOKS
from vllm_tui.widgets.rows import Panel, hanging, joined, rule

HANG = "hang"
"""The rule of a finding that repeats the verdict on a hang."""
WHY_ROWS = 2
FIX_ROWS = 3
_INDENT = Content("   ")
Kind = Literal["cause", "consequence", "notice"]


class FindingsPanel(Panel):
    """No rows while the run lasts, and none for an end without findings."""

    def rows(self, width: int) -> list[Content]:
        attempt = self._situation.attempt
        findings = attempt.exited.findings if attempt and attempt.exited else []
        return list(panel_rows(findings, self._situation, width)) if findings else []


def panel_rows(findings: Sequence[Finding], situation: Situation, width: int) -> Iterator[Content]:
    """The first finding in a few rows, the others by their number; of a hang only what the verdict does not say."""
    first, others = findings[0], findings[1:]
    yield rule(
        joined([*title(first), Content.styled(f"{actions.BY_ID['findings'].key_label} tells more", "dim")]), width
    )
    if first.rule != HANG:
        yield Content.assemble(_INDENT, said(first)).truncate(width, ellipsis=True)
        yield from at_most(WHY_ROWS, hanging(_INDENT, Content(printable(first.why)), width))
    yield from at_most(FIX_ROWS, hanging(Content.styled("   → ", "bold $text-accent"), _fix(first, situation), width))
    if others:
        yield Content.assemble(_INDENT, (f"+ {counted(others)}", "dim")).truncate(width, ellipsis=True)


def _fix(finding: Finding, situation: Situation) -> Content:
    """What to do, after the key of the lever that does it where that can be pulled now."""
    action, reason = lever_key(finding, situation)
    key = Content("")
    if action and not reason:
        key = Content.assemble((action.key_label, "bold $text-accent"), f" {action.label}: ")
    return key + Content(printable(finding.fix))


def title(finding: Finding) -> list[Content]:
    """`✖ CAUSE`, `port in use`, `line 38`."""
    symbol, style = look(finding)
    where = "" if finding.rule == HANG else f"line {finding.line_number:,}"
    return [
        Content.styled(f"{symbol} {kind(finding).upper()}", f"bold {style}"),
        Content.styled(printable(finding.class_.replace("_", " ")) if finding.rule else "", style),
        Content(where),
    ]


def look(finding: Finding) -> tuple[str, str]:
    """Symbol and style of how grave it is."""
    return grade(finding.severity)


def grade(severity: str) -> tuple[str, str]:
    """Symbol and style of a severity."""
    return LOOKS["error" if severity == "fatal" else severity]


def kind(finding: Finding) -> Kind:
    """What it is to the end; a warning or an information explains none, whatever its rule is about."""
    if finding.severity in ("info", "warning") or finding.role == "noise":
        return "notice"
    return finding.role


def said(finding: Finding) -> Content:
    """Who wrote the line, and the line without what the logger put before it."""
    parsed = parse_line(finding.line)
    process = printable(f"{parsed.process}: ") if parsed.process else ""
    style = process_style(parsed.process or "", parsed.rank)
    return Content.assemble((process, style), (printable(parsed.message.strip()), look(finding)[1]))


def counted(findings: Sequence[Finding]) -> str:
    """`1 other cause · 3 consequences · 2 notices`."""
    counts = Counter(map(kind, findings))
    names: dict[Kind, str] = {"cause": "other cause", "consequence": "consequence", "notice": "notice"}
    return " · ".join(plural(counts[one], name) for one, name in names.items() if counts[one])


def lever_key(finding: Finding, situation: Situation) -> tuple[actions.Action | None, str | None]:
    """The key that applies the fix, if one does, and why not now."""
    known = rule_of(finding)
    lever = known.lever if known else None
    action = actions.of_lever(lever) if lever else None
    if action and lever in situation.levers:
        return action, "It is on already."
    return action, action.reason(situation) if action else None


def at_most(count: int, rows: Sequence[Content]) -> list[Content]:
    """The first rows; the last of them says that there are more."""
    if len(rows) <= count:
        return list(rows)
    return [*rows[: count - 1], Content.assemble(rows[count - 1].truncate(rows[count - 1].cell_length - 2), " …")]
