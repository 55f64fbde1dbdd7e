"""What can be said of a finding beside its own words: its rule, and a query for the issue tracker; and of a rule."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

from vllm_probes.log.line import parse_line
from vllm_probes.rows import Finding

if TYPE_CHECKING:
    from vllm_probes.judges.rules import Rule

SEARCHED_CHARACTERS = 100
_OWN_WORDS = re.compile(r"/\S+|0x[0-9a-f]+|'[^']*'|[\w-]*\d[\w.,-]*|[\"`()\[\]{}<>]")
"""What of a message is of this run alone: paths, numbers, names."""


def rule_of(finding: Finding) -> "Rule | None":
    """The rule that told it; None for a hang, for what no rule knows, and for a rule that is not there any more."""
    return known_rules().get(finding.rule or "")


@cache
def known_rules() -> "Mapping[str, Rule]":
    """By their ids. Read when they are first needed, which takes about 0.1 s."""
    from vllm_probes.keeper.rulebook import load_rulebook

    return load_rulebook()[0].by_id


def meaning(rule: "Rule") -> str:
    """What a line that it knows tells."""
    if rule.why:
        return rule.why
    return f"A step of the run: {rule.label or rule.phase}." if rule.phase else "Harmless: it is left out of findings."


def page_of(rule: "Rule") -> "Iterator[tuple[str, str]]":
    """(label, text) of everything that there is to say of a rule."""
    yield "means", meaning(rule)
    if rule.fix:
        yield "what to do", rule.fix
    if rule.lever:
        yield "lever", f"{rule.lever} (`vllm-tui run --levers {rule.lever} -- …`)"
    if rule.since or rule.until:
        yield "vLLM", f"{rule.since or 'before'} to {rule.until or 'now'}"
    if rule.docs:
        yield "more", rule.docs
    yield "such as", rule.samples[0].splitlines()[-1]


def search_line(finding: Finding) -> str:
    """A query for the issue tracker: the message without what is of this run alone."""
    words = _OWN_WORDS.sub(" ", parse_line(finding.line).message).split()
    return textwrap.shorten(f"repo:vllm-project/vllm {' '.join(words)}", SEARCHED_CHARACTERS, placeholder="")
