"""A run that somebody else started, on the screen: what changes something is off and says why, and how to take over."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.test_verdict_banner import stalled
from tests.ui_source import SIZES, Script, ScriptedSource, answer, running, serving, shows, until
from vllm_probes.commands import StopWatching
from vllm_tui.screens.dialog import Question


@pytest.fixture
def script() -> Script:
    return Script(command=["vllm", "serve", "a model", "--api-key", "***"])


@pytest.fixture
def source(script: Script, tmp_path: Path) -> ScriptedSource:
    return serving(script, tmp_path, attached_pid=4242)


TAKES_OVER = [("x", "coredump"), ("R", "coredump"), ("0", "coredump"), ("e", "eager"), ("b", "launch-blocking")]


@pytest.mark.parametrize(("key", "lever"), TAKES_OVER)
async def test_keys_that_change_something_say_what_does_it(
    source: ScriptedSource, tmp_path: Path, key: str, lever: str
) -> None:
    async with running(source, tmp_path, size=(200, 50)) as (app, pilot):
        await shows(app, pilot, "SERVING", "attached to 4242")
        await pilot.press(key)
        await shows(app, pilot, "Not started by")
        (said,) = [one.message for one in app._notifications]  # as it is before it is wrapped
        assert "stop it with `kill -INT 4242`" in said
        assert f"`cd /srv && vllm-tui --levers {lever} -- vllm serve 'a model' --api-key '***'` starts it" in said
        assert source.sent == []
        assert not isinstance(app.screen, Question)


@pytest.mark.parametrize("size", SIZES)
async def test_how_to_take_it_over(source: ScriptedSource, tmp_path: Path, size: tuple[int, int]) -> None:
    async with running(source, tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("D")
        await shows(app, pilot, "Not started by this program", "kill -INT 4242")
        await shows(app, pilot, "cd /srv && vllm-tui --levers coredump -- vllm serve", "coredump: A GPU core dump")
        await shows(app, pilot, "*** stands for a secret")


async def test_in_a_hang_the_levers_are_those_that_tell_where(
    script: Script, source: ScriptedSource, tmp_path: Path
) -> None:
    source.play(stalled(script, 58))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "STALLED")
        await pilot.press("x")
        await shows(app, pilot, "Not started by")
        (said,) = [one.message for one in app._notifications]
        assert "vllm-tui --levers eager,launch-blocking -- vllm" in said


async def test_no_lever_that_was_typed_anyway(tmp_path: Path) -> None:
    script = Script(command=["vllm", "serve", "m", "--enforce-eager"])
    source = serving(script, tmp_path, attached_pid=4242)
    source.play(stalled(script, 58))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "STALLED")
        await pilot.press("e")
        await shows(app, pilot, "Not started by")
        (said,) = [one.message for one in app._notifications]
        assert "`cd /srv && vllm-tui -- vllm serve m --enforce-eager`" in said
        await pilot.press("D")
        await shows(app, pilot, "vllm-tui --levers launch-blocking -- vllm serve m --enforce-eager")


async def test_of_another_user(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path, attached_pid=4242, attached_user="alice")
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("D")
        await shows(app, pilot, "alice", "sudo kill -INT 4242")


@pytest.mark.parametrize(("key", "sent"), [("l", []), ("s", [StopWatching()])])
async def test_leaving_never_stops_it(
    source: ScriptedSource, tmp_path: Path, key: str, sent: list[StopWatching]
) -> None:
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("q")
        await shows(app, pilot, "Watch vLLM on?", "runs on in any case")
        await answer(pilot, key)
        await until(pilot, lambda: app.return_value is not None)
    assert source.sent == sent
    assert app.return_value is not None
    assert app.return_value.leaving == "left_running"


async def test_its_end(script: Script, source: ScriptedSource, tmp_path: Path) -> None:
    ended = replace(script.command_ended(60, None), error="It is gone.")
    source.play(ended, script.state("exited", 60, "It is gone."))
    source.play(script.tree_ended(61))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "EXITED", "It is gone.")
        await pilot.press("R")
        await shows(app, pilot, "Not started by", "has ended")
