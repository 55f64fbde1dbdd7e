"""What the keys ask of the keeper, and the ways to leave."""

from pathlib import Path

import pytest

from tests.ui_source import (
    SIZES,
    Script,
    answer,
    app_source,
    crashed,
    running,
    serving,
    shows,
    started,
    until,
)
from vllm_probes.commands import CaptureStacks, Relaunch, Stop
from vllm_tui.screens.main import MainScreen


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.mark.parametrize("size", SIZES)
async def test_a_lever_while_serving_shows_its_diff_first(
    script: Script, tmp_path: Path, size: tuple[int, int]
) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("e")
        await shows(
            app, pilot, "Relaunch with eager?", "+ --enforce-eager", "12 running and 3 waiting requests", "costs"
        )
        await answer(pilot, "escape")
        assert source.sent == []
        await pilot.press("e")
        await answer(pilot, "enter")
        await until(pilot, lambda: source.sent == [Relaunch(levers=["eager"])])


async def test_blocking_offers_eager(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("b")
        await shows(app, pilot, "+ CUDA_LAUNCH_BLOCKING=1", "Enter with eager", "o without")
        await answer(pilot, "enter")
        await until(pilot, lambda: source.sent == [Relaunch(levers=["launch-blocking", "eager"])])
        await pilot.press("b")
        await answer(pilot, "o")
        await until(pilot, lambda: source.sent[1:] == [Relaunch(levers=["launch-blocking"])])


@pytest.mark.parametrize(
    ("key", "command"),
    [
        ("e", Relaunch(levers=["coredump", "eager"])),
        ("c", Relaunch(levers=[])),
        ("R", Relaunch(levers=["coredump"])),
        ("0", Relaunch(clean=True)),
    ],
)
async def test_a_dead_command_is_relaunched_at_once(
    script: Script, tmp_path: Path, key: str, command: Relaunch
) -> None:
    source = started(script, tmp_path, levers=["coredump"])
    source.play(script.state("crashed", 12), script.command_ended(12, 1), script.tree_ended(13))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "CRASHED")
        await pilot.press(key)
        await until(pilot, lambda: source.sent == [command])


async def test_a_lever_that_cannot_work_says_why(tmp_path: Path) -> None:
    script = Script(command=["python", "run.py"])
    source = started(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "python run.py")
        await pilot.press("e")
        await shows(app, pilot, "enforce_eager=True")
        assert source.sent == []


async def test_a_refusal_of_the_keeper_is_shown(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    source.refusal = "Not now [/foo]."
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("s")
        await shows(app, pilot, "Not now [/foo].")


async def test_stop_asks_and_a_second_stop_offers_to_kill(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("x")
        await answer(pilot, "enter")
        await until(pilot, lambda: source.sent == [Stop()])
        source.play(script.stop_requested(50), script.state("stopping", 50))
        await shows(app, pilot, "STOPPING")
        await pilot.press("x")
        await answer(pilot, "enter")
        await until(pilot, lambda: source.sent[1:] == [Stop(kill=True)])


async def test_readonly_greys_what_changes_something(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path, readonly=True)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING", "read-only")
        await pilot.press("x", "e", "R", "0", "s")
        await shows(app, pilot, "This view is read-only")
        assert isinstance(app.screen, MainScreen)
        assert source.sent == []


async def test_a_click_on_a_key_presses_it(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.click("#key-bar", offset=(2, 0))
        await shows(app, pilot, "Waiting for the stacks")
        assert app_source(app).sent == [CaptureStacks()]


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
async def test_quit_asks_while_it_runs(script: Script, tmp_path: Path, key: str) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press(key)
        await answer(pilot, "escape")
        await pilot.press(key)
        await answer(pilot, "s")
        await until(pilot, lambda: source.sent == [Stop()])
        source.play(script.state("exited", 70), script.command_ended(70), script.tree_ended(70))
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is not None
    assert app.return_value.leaving == "stopped"


@pytest.mark.parametrize("keys", [("d",), ("q", "l")])
async def test_it_can_be_left_running(script: Script, tmp_path: Path, keys: tuple[str, ...]) -> None:
    async with running(serving(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press(*keys)
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is not None
    assert app.return_value.leaving == "left_running"
    assert app_source(app).sent == []


async def test_quit_after_the_end_asks_nothing(script: Script, tmp_path: Path) -> None:
    async with running(crashed(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "CRASHED", "q leaves")
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is not None
    assert (app.return_value.leaving, app.return_value.model.state) == ("ended", "crashed")


async def test_a_lost_keeper_is_said_and_found_again(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        source.lose()
        await shows(app, pilot, "KEEPER LOST", "vLLM itself runs on")
        await pilot.press("x")
        await shows(app, pilot, "nobody takes commands")
        source.back.set()
        source.play(script.restored(tmp_path), script.attempt_started(), script.state("idle"))
        await shows(app, pilot, "○ IDLE")


async def test_leaving_without_a_keeper(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        source.lose()
        await shows(app, pilot, "KEEPER LOST")
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is not None
    assert app.return_value.leaving == "keeper_lost"
