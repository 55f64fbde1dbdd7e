"""`vllm-tui doctor`: what will and will not work on this host, for people and for programs."""

import json
from collections.abc import Iterator, Sequence

import msgspec

from vllm_probes.doctor.check import Check, Outcome
from vllm_tui.format import plural, printable, wrapped

LOOKS: dict[Outcome, tuple[str, str]] = {
    "problem": ("✖", "red"),
    "warning": ("▲", "yellow"),
    "unknown": ("?", "magenta"),
    "note": ("•", "cyan"),
    "ok": ("✔", "green"),
}
"""Symbol and colour of each outcome, the worst first; its word stands beside them."""
INDENT = "  "
LONGEST = max(map(len, LOOKS))


def works(checks: Sequence[Check]) -> bool:
    """Whether nothing was found that will not work."""
    return all(check.outcome != "problem" for check in checks)


def as_json(checks: Sequence[Check]) -> str:
    """One object: `checks` and `works`. ASCII, so that names which are no UTF-8 do no harm."""
    return json.dumps({"checks": msgspec.to_builtins(checks), "works": works(checks)})


def as_lines(checks: Sequence[Check], width: int) -> Iterator[tuple[str, str | None]]:
    """Lines for a terminal with the colour of each, the worst first, those that are ok in one line each, then a sum."""
    for outcome, (symbol, colour) in LOOKS.items():
        fitting = [check for check in checks if check.outcome == outcome]
        for check in fitting:
            yield from _one_line(check, width) if outcome == "ok" else _block(check, symbol, colour, width)
    yield "", None
    yield from ((line, None) for line in wrapped(_sum(checks), width, ""))


def _one_line(check: Check, width: int) -> Iterator[tuple[str, str | None]]:
    symbol, colour = LOOKS["ok"]
    line = f"{symbol} {'ok':{LONGEST}}  {check.title}: {printable(check.what)}"
    yield line if len(line) <= width else line[: width - 1] + "…", colour


def _block(check: Check, symbol: str, colour: str, width: int) -> Iterator[tuple[str, str | None]]:
    yield f"{symbol} {check.outcome.upper():{LONGEST}}  {check.title}", colour
    for text in (check.what, check.means):
        yield from ((line, None) for line in wrapped(printable(text), width, INDENT))
    yield from ((line, None) for line in _fix(printable(check.fix), width))
    yield "", None


def _fix(fix: str, width: int) -> list[str]:
    """A sentence is wrapped; a command stays in one piece, to be copied."""
    arrow = INDENT + "→ "
    return wrapped(fix, width, arrow) if "`" in fix else [arrow + fix]


def _sum(checks: Sequence[Check]) -> str:
    counts = ((outcome, sum(check.outcome == outcome for check in checks)) for outcome in LOOKS)
    told = ", ".join(
        f"{count} {outcome}" if outcome in ("ok", "unknown") else plural(count, outcome)
        for outcome, count in counts
        if count
    )
    verdict = "Nothing was found that will not work" if works(checks) else "Something will not work on this host"
    return f"{verdict}: {told}."
