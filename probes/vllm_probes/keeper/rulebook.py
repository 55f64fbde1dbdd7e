"""The rules that a log is read by: those of the program, and the user's own."""

from pathlib import Path

import platformdirs

from vllm_probes.judges.rules import RuleSet, load_rules, read_rules


def user_rules_folder() -> Path:
    """`$XDG_CONFIG_HOME/vllm-tui/rules`, `~/.config` by default; it need not be there."""
    return platformdirs.user_config_path("vllm-tui") / "rules"


def load_rulebook() -> tuple[RuleSet, list[str]]:
    """All rules, the user's own first; and what is wrong with those of them that are left out."""
    own, faults = read_rules(user_rules_folder())
    return load_rules(*own), faults
