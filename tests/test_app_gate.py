"""A relaunch that waits, as the app shows it, and its keys."""

from pathlib import Path

import pytest

from tests.ui_source import SIZES, Script, ScriptedSource, answer, crashed, running, shows, until
from vllm_probes.commands import EndHolders, StartNow, Stop
from vllm_probes.events import GateChanged
from vllm_probes.rows import Hold

STRANGER = Hold(kind="port", what="port 8000", pid=4242, process="python", user="alice", hint="sudo kill 4242 ends it")
OURS = Hold(kind="gpu_memory", what="GPU 3: 61.2G more in use than before the run", pid=77, process="w", session="day")
UNSEEN = Hold(kind="port", what="port 8000")


def waiting(folder: Path, *holds: Hold, script: Script | None = None) -> ScriptedSource:
    script = script or Script()
    source = crashed(script, folder)
    source.play(GateChanged(**script.stamp(20), holds=list(holds)))
    return source


@pytest.mark.parametrize("size", SIZES)
async def test_what_holds_a_start_up_is_named(tmp_path: Path, size: tuple[int, int]) -> None:
    async with running(waiting(tmp_path, STRANGER, OURS), tmp_path, size=size, now=33) as (app, pilot):
        await shows(app, pilot, "waits to start again for 20 s", "port 8000: python (4242, alice)", "sudo kill 4242")
        await shows(app, pilot, "GPU 3: 61.2G more in use", "session day")


async def test_it_can_be_started_all_the_same(tmp_path: Path) -> None:
    source = waiting(tmp_path, STRANGER)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "waits to start again")
        await pilot.press("R")
        await shows(app, pilot, "Start although not everything is free?", "Enter start now")
        await answer(pilot, "enter")
        await until(pilot, lambda: source.sent == [StartNow()])


async def test_what_our_own_session_holds_can_be_ended(tmp_path: Path) -> None:
    source = waiting(tmp_path, OURS)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "waits to start again")
        await pilot.press("R")
        await shows(app, pilot, "k end what day runs there")
        await answer(pilot, "k")
        await until(pilot, lambda: source.sent == [EndHolders()])


async def test_it_can_be_called_off_and_other_starts_say_why_not(tmp_path: Path) -> None:
    source = waiting(tmp_path, UNSEEN)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "who holds it cannot be seen from here")
        await pilot.press("e")
        await shows(app, pilot, "It waits to be started again")
        await pilot.press("x")
        await until(pilot, lambda: source.sent == [Stop()])


async def test_a_question_closes_when_the_way_is_free(tmp_path: Path) -> None:
    script = Script()
    source = waiting(tmp_path, STRANGER, script=script)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "waits to start again")
        await pilot.press("R")
        await shows(app, pilot, "Start although not everything is free?")
        source.play(GateChanged(**script.stamp(21)))
        await shows(app, pilot, "The situation has changed: attempt 1 has ended.")


async def test_who_leaves_is_asked_about_the_start(tmp_path: Path) -> None:
    source = waiting(tmp_path, STRANGER)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "waits to start again")
        await pilot.press("q")
        await shows(app, pilot, "vLLM waits to be started again", "let it wait and start")
        await answer(pilot, "l")
        await until(pilot, lambda: app.return_value is not None)
        assert app.return_value is not None
        assert app.return_value.leaving == "left_running"
