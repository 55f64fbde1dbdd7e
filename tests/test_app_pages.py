"""The pages over the main screen, and the palette."""

from pathlib import Path

import pytest

from tests.ui_source import (
    SIZES,
    Script,
    crashed,
    running,
    screen_text,
    serving,
    shows,
    started,
    until,
)
from vllm_probes.commands import CaptureStacks
from vllm_probes.rows import StackFile
from vllm_tui.screens.main import MainScreen
from vllm_tui.screens.page import Page


@pytest.fixture
def script() -> Script:
    return Script()


DUMP = b"""[{"pid": 4013, "thread_id": 2, "thread_name": "Thread-1 [/foo]", "os_thread_id": 9, "active": false,
 "owns_gil": false, "frames": [{"name": "wait", "filename": "/usr/lib/python3.11/threading.py",
 "short_filename": "threading.py", "line": 327, "locals": null, "module": null}]},
{"thread_id": 1, "thread_name": "MainThread", "os_thread_id": 8, "active": true, "owns_gil": true, "frames":
[{"name": "get_response", "filename": "/opt/site-packages/vllm/executor.py", "short_filename": "vllm/executor.py",
 "line": 440}]}]"""


@pytest.mark.parametrize("size", SIZES)
async def test_stacks_are_asked_for_and_listed(script: Script, tmp_path: Path, size: tuple[int, int]) -> None:
    source = serving(script, tmp_path)
    (tmp_path / "good.json").write_bytes(DUMP)
    (tmp_path / "bad.json").write_bytes(b"not json")
    async with running(source, tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "SERVING")
        source.answers.clear()
        await pilot.press("s")
        await shows(app, pilot, "Waiting for the stacks", "capturing…")
        assert source.sent == [CaptureStacks()]
        stacks = [
            StackFile(pid=4013, process="EngineCore", file="good.json"),
            StackFile(pid=4031, process="Worker_TP0", file="bad.json"),
            StackFile(pid=4032, process="Worker_TP1", file="gone.json"),
            StackFile(pid=4033, process="Worker_TP2", error="ptrace_scope = 1 [/foo]"),
        ]
        source.play(script.stacks_captured(60, *stacks))
        source.answers.set()
        await shows(
            app,
            pilot,
            "4 processes",
            "by hand",
            "get_response (executor.py:440)",
            "active, holds the GIL",
            "+ 1 thread",
        )
        await until(pilot, lambda: "capturing…" not in screen_text(app))
        await shows(app, pilot, "bad.json is damaged", "cannot read gone.json", "ptrace_scope = 1 [/foo]")
        assert "threading.py" not in screen_text(app)
        await pilot.press("t")
        await shows(app, pilot, "Thread-1 [/foo]", "threading.py:327")
        await pilot.press("y")
        assert "get_response" in app.clipboard


@pytest.mark.parametrize("size", SIZES)
async def test_help_lists_every_key_with_reasons(script: Script, tmp_path: Path, size: tuple[int, int]) -> None:
    async with running(serving(script, tmp_path, readonly=True), tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("question_mark")
        await shows(app, pilot, "capture the Python stacks", "where it is grey: This view is read-only")
        assert screen_text(app).count("This view is read-only") == 1
        await pilot.press("G")
        await shows(app, pilot, "show every key")
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


async def test_earlier_stacks_can_be_read_when_nothing_runs(script: Script, tmp_path: Path) -> None:
    (tmp_path / "good.json").write_bytes(DUMP)
    source = crashed(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "CRASHED")
        await pilot.press("s")
        await shows(app, pilot, "Nothing runs any more.")
        source.play(script.stacks_captured(10, StackFile(pid=4013, process="EngineCore", file="good.json")))
        await pilot.press("s")
        await shows(app, pilot, "1 process", "executor.py:440")
        app.clear_notifications()
        await pilot.press("s")
        await shows(app, pilot, "Nothing runs any more.", "executor.py:440")
        assert source.sent == []
        again = Script(attempt=2)
        source.play(again.attempt_started(20))
        await pilot.press("escape", "s")
        await shows(app, pilot, "attempt 1 · 1 process")


async def test_a_page_of_stacks_goes_from_process_to_process(script: Script, tmp_path: Path) -> None:
    (tmp_path / "good.json").write_bytes(DUMP)
    source = serving(script, tmp_path)
    stacks = [StackFile(pid=rank, process=f"Worker_TP{rank}", file="good.json") for rank in range(40)]
    source.play(script.stacks_captured(10, *stacks))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("s", "n")
        await until(pilot, lambda: screen_text(app).splitlines()[2].startswith(" Worker_TP0"))
        await pilot.press("n", "n")
        await until(pilot, lambda: screen_text(app).splitlines()[2].startswith(" Worker_TP2"))
        await pilot.press("p")
        await until(pilot, lambda: screen_text(app).splitlines()[2].startswith(" Worker_TP1"))


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
