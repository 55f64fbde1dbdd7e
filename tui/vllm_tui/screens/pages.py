"""The pages that are opened by their names."""

from pathlib import Path
from typing import Literal

from vllm_tui.screens.page import Page
from vllm_tui.situation import Situation

PageName = Literal["help", "details", "findings", "rules"]


def page_named(name: PageName, situation: Situation, folder: Path) -> Page:
    """A new page; its module is read when it is first wanted, not when the program starts."""
    match name:
        case "help":
            from vllm_tui.screens.help import HelpPage

            return HelpPage(situation)
        case "details":
            from vllm_tui.screens.details import DetailsPage

            return DetailsPage(situation)
        case "findings":
            from vllm_tui.screens.findings import FindingsPage

            return FindingsPage(situation, folder)
        case "rules":
            from vllm_tui.screens.rules import RulesPage

            return RulesPage(situation)
