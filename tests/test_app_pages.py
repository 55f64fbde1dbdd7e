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
    until,
)
from vllm_probes.commands import CaptureStacks
from vllm_probes.events import StacksCaptured
from vllm_probes.rows import StackFile
from vllm_tui.screens.main import MainScreen


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
        await pilot.press("s")
        await shows(app, pilot, "Waiting for the stacks")
        assert source.sent == [CaptureStacks()]
        stacks = [
            StackFile(pid=4013, process="EngineCore", file="good.json"),
            StackFile(pid=4031, process="Worker_TP0", file="bad.json"),
            StackFile(pid=4032, process="Worker_TP1", file="gone.json"),
            StackFile(pid=4033, process="Worker_TP2", error="ptrace_scope = 1 [/foo]"),
        ]
        source.play(StacksCaptured(**script.stamp(60), reason="asked", folder=".", stacks=stacks))
        await shows(
            app, pilot, "4 processes", "get_response", "vllm/executor.py:440", "active, holds the GIL", "+ 1 thread"
        )
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
        await shows(app, pilot, "capture the Python stacks", "not now: This view is read-only")
        await pilot.press("G")
        await shows(app, pilot, "this page")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, MainScreen))


async def test_the_palette_knows_every_action(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert {"Stacks", "Eager", "Theme", "Quit"} <= titles
        await pilot.press("ctrl+p", *"details")
        await shows(app, pilot, "debug settings with their cost")
        await pilot.press("enter", "enter")
        await shows(app, pilot, "Debug settings in force")
