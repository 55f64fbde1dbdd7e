"""The pages over the main screen, and the palette."""

from pathlib import Path

import pytest

from tests.ui_source import (
    SIZES,
    Script,
    running,
    screen_text,
    serving,
    shows,
    started,
    until,
)
from vllm_tui.screens.main import MainScreen
from vllm_tui.screens.page import Page


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.mark.parametrize("size", SIZES)
async def test_help_lists_every_key_with_reasons(script: Script, tmp_path: Path, size: tuple[int, int]) -> None:
    async with running(serving(script, tmp_path, readonly=True), tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("question_mark")
        await shows(app, pilot, "capture the Python stacks", "where it is grey: This view is read-only")
        assert screen_text(app).count("This view is read-only") == 1
        await pilot.press("G")
        await shows(app, pilot, "write all findings")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, MainScreen))


async def test_the_palette_knows_every_action(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert {"Stacks", "Relaunch: eager", "Relaunch: clean", "Theme", "Quit"} <= titles
        await pilot.press("ctrl+p", *"details")
        await shows(app, pilot, "debug settings with their cost")
        await pilot.press("enter", "enter")
        await shows(app, pilot, "Debug settings in force")


@pytest.mark.parametrize("key", ["escape", "q", "ctrl+c"])
@pytest.mark.parametrize("page", ["question_mark", "D", "s"])
async def test_pages_are_closed_and_the_app_stays(script: Script, tmp_path: Path, page: str, key: str) -> None:
    async with running(serving(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press(page)
        await until(pilot, lambda: isinstance(app.screen, Page))
        await pilot.press(key)
        await until(pilot, lambda: isinstance(app.screen, MainScreen))
        assert app.return_value is None


async def test_details_offer_what_there_is(tmp_path: Path) -> None:
    script = Script(command=["bash", "-c", "exit 3"])
    async with running(started(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "bash -c 'exit 3'")
        await pilot.press("D")
        await shows(app, pilot, "as typed · STARTING")
        assert "unset" not in screen_text(app)
