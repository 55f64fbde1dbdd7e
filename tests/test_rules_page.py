"""The page of rules: every one can be found and read, also those that no log has needed yet."""

from pathlib import Path

import pytest

from tests.ui_source import SIZES, Script, running, serving, shows, until
from vllm_tui.explained import known_rules, page_of
from vllm_tui.screens.main import MainScreen
from vllm_tui.screens.rules import RulesPage
from vllm_tui.widgets.search_bar import SearchBar


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.mark.parametrize("size", SIZES)
async def test_every_rule_is_on_the_page_and_the_chosen_one_in_full(
    script: Script, tmp_path: Path, size: tuple[int, int]
) -> None:
    async with running(serving(script, tmp_path), tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("K")
        await shows(app, pilot, f"What lines of a log mean · {len(known_rules())} rules", "▌✖ attention-backend  ")
        await pilot.press("n")
        await shows(app, pilot, "▌✖ attention-backend-frames", "fatal cause", "means", "what to do")
        await pilot.press("N", "N")
        await shows(app, pilot, "▌• ", "info noise", "Harmless: it is left out of findings.")
        page = app.screen
        assert isinstance(page, RulesPage)
        text = "\n".join(row.plain for row in page.page_rows(200))
        assert [rule for rule in known_rules() if rule not in text] == []


async def test_a_search_leaves_the_rules_with_all_its_words(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("K", "slash", *"/dev/shm Larger")
        await shows(app, pilot, "rules with “/dev/shm Larger”", "▌✖ worker-bus-error")
        await pilot.press(*" xyzzy")
        await shows(app, pilot, "0 of ", "No rule has that: / and Esc show all.")
        await pilot.press("escape")
        await until(pilot, lambda: not app.screen.query(SearchBar))
        await shows(app, pilot, f"mean · {len(known_rules())} rules")
        await pilot.press("slash", *"not iterable", "enter")
        await shows(app, pilot, "1 of ", "TypeError: 'NoneType' object is not iterable")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, MainScreen))


async def test_the_chosen_rule_is_copied(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("K", "slash", *"worker-killed", "enter", "y")
        await shows(app, pilot, "What worker-killed means is copied.")
        assert "  what to do: `dmesg" in app.clipboard
        await pilot.press("slash", *"-xyzzy", "enter", "n", "y")
        await shows(app, pilot, "No rule has that")
        assert "worker-killed" in app.clipboard


def test_a_rule_says_what_it_means_whatever_kind_it_is() -> None:
    pages = {name: dict(page_of(rule)) for name, rule in known_rules().items()}
    assert [name for name, page in pages.items() if not (page["means"] and page["such as"])] == []
    assert pages["banner"]["means"].startswith("A step of the run: ")
