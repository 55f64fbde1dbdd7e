"""What can be said of a finding beside its own words: its rule, and a query for the issue tracker."""

import re
import textwrap
from collections.abc import Mapping
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
    return _rules().get(finding.rule or "")


@cache
def _rules() -> "Mapping[str, Rule]":
    """Read when they are first needed, which takes about 0.1 s."""
    from vllm_probes.keeper.rulebook import load_rulebook

    return load_rulebook()[0].by_id


def search_line(finding: Finding) -> str:
    """A query for the issue tracker: the message without what is of this run alone."""
    words = _OWN_WORDS.sub(" ", parse_line(finding.line).message).split()
    return textwrap.shorten(f"repo:vllm-project/vllm {' '.join(words)}", SEARCHED_CHARACTERS, placeholder="")
