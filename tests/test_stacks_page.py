"""The page of stacks: merged, process by process, older and newer, copied and saved."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.hang_stacks import LOCKS, REDUCES, captured, doing, stacks, verdict
from tests.ui_source import SIZES, Script, ScriptedSource, crashed, running, screen_text, serving, shows, until
from vllm_probes.commands import CaptureStacks
from vllm_probes.rows import StackFile


@pytest.fixture
def script() -> Script:
    return Script()


def hanging(script: Script, folder: Path) -> ScriptedSource:
    """A run that has been looked at twice and has a verdict."""
    source = serving(script, folder)
    source.play(captured(script, 55), captured(script, 58), verdict(script, 58))
    return source


def row_of(text: str, start: str) -> str:
    """The row of the screen that begins so."""
    return next(row for row in text.splitlines() if row.strip().startswith(start))


@pytest.mark.parametrize("size", SIZES)
async def test_stacks_are_merged_by_what_the_ranks_do(script: Script, tmp_path: Path, size: tuple[int, int]) -> None:
    source = hanging(script, tmp_path)
    async with running(source, tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "STALLED")
        await pilot.press("s")
        await shows(app, pilot, "9 processes", "because nothing moved", "2 of 2")
        text = screen_text(app)
        assert "waits for a lock" in row_of(text, "✖ TP3")
        assert "frozen · odd one out" in row_of(text, "✖ TP3")
        assert "all_reduce" in row_of(text, "TP0-2,4-7")
        assert row_of(text, "TP0-2,4-7  →").split() == ["TP0-2,4-7", "→", "TP3", "all_reduce"]
        if size == (80, 24):
            await pilot.press("G")
            await until(pilot, lambda: "└─ _condense" in screen_text(app))
            text = screen_text(app)
        assert "TP0-7" in row_of(text, "⋯ worker_busy_loop")
        assert "TP0-2,4-7  not TP3" in row_of(text, "├⋯ forward")
        assert "✖ TP3  not TP0-2,4-7" in row_of(text, "└─ _condense")
        assert "spawn_main" not in text
        assert "_call_impl" not in text


async def test_a_capture_from_before_the_hang_is_not_marked_by_its_verdict(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    source.play(captured(script, 45, *stacks(odd=99)), captured(script, 58), verdict(script, 58))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "STALLED")
        await pilot.press("s")
        await shows(app, pilot, "✖ TP3", "function moves")
        await pilot.press("left_square_bracket")
        await shows(app, pilot, "1 of 2", "TP0-7")
        assert "✖" not in screen_text(app)
        source.play(captured(script, 61))
        await shows(app, pilot, "1 of 3")
        await pilot.press("right_square_bracket", "right_square_bracket")
        await shows(app, pilot, "3 of 3", "✖ TP3")
        source.play(captured(script, 64))
        await shows(app, pilot, "4 of 4")


async def test_without_a_verdict_the_odd_one_is_marked(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    source.play(captured(script, 55))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("s")
        await shows(app, pilot, "◆ TP3", "odd one out")
        source.play(doing(script, 55, since=42))
        await shows(app, pilot, "waits for a lock      13 s")
        source.play(verdict(script, 55))
        await shows(app, pilot, "✖ TP3")


async def test_keys_change_what_is_shown(script: Script, tmp_path: Path) -> None:
    source = hanging(script, tmp_path)
    other = LOCKS.replace("_model_runner.py:40", "_model_runner.py:41")
    source.play(captured(script, 61, *stacks(odd_stack=other)))
    async with running(source, tmp_path, size=(200, 50)) as (app, pilot):
        await shows(app, pilot, "STALLED")
        await pilot.press("s")
        await shows(app, pilot, "line moves", "3 of 3")
        await pilot.press("f")
        await shows(app, pilot, "spawn_main", "_call_impl", "f fold")
        assert "folded" not in screen_text(app)
        await pilot.press("f", "t")
        await shows(app, pilot, "Workers, WorkerAsyncOutputCopy  TP0-7")
        await pilot.press("t", "v")
        await shows(app, pilot, "Worker_TP7  pid 4038")
        await pilot.press("v", "l")
        await shows(app, pilot, "l functions", "TP0-2,4-7  not TP3")


async def test_ranks_at_other_lines_part_only_by_line(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    source.play(captured(script, 55, *stacks(odd_stack=REDUCES.replace(":724", ":999"))))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("s")
        await shows(app, pilot, "parallel_state.py  ")
        assert "not TP3" not in screen_text(app)
        await pilot.press("l")
        await shows(app, pilot, "parallel_state.py:724", "parallel_state.py:999", "not TP3")


async def test_processes_without_stacks_are_rows(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    broken = [
        StackFile(pid=4031, process="Worker_TP0", error="Worker_TP0 may not be read: run [/foo] as root."),
        StackFile(pid=4032, process="Worker_TP1", error="Worker_TP1 is gone."),
        StackFile(pid=4033, process="nginx\x1b[2J", error="is no Python"),
    ]
    source.play(captured(script, 55, *broken))
    async with running(source, tmp_path, size=(80, 24)) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("s")
        await shows(app, pilot, "✖ Worker_TP0  Worker_TP0 may not be read: run [/foo] as root.")
        await shows(app, pilot, "✖ Worker_TP1  Worker_TP1 is gone.", "✖ nginx·[2J  is no Python")


async def test_what_is_shown_is_copied_and_everything_saved(script: Script, tmp_path: Path) -> None:
    source = hanging(script, tmp_path)
    async with running(source, tmp_path, size=(80, 24)) as (app, pilot):
        await shows(app, pilot, "STALLED")
        await pilot.press("s")
        await shows(app, pilot, "✖ TP3")
        await pilot.press("y")
        assert "vllm/v1/worker/gpu_model_runner.py:40" in app.clipboard
        assert "spawn_main" not in app.clipboard
        await pilot.press("w")
        await shows(app, pilot, "Saved as")
        saved = (tmp_path / "stacks.txt").read_text()
        assert "spawn_main" in saved
        assert "Worker_TP7  pid 4038" in saved


async def test_what_cannot_be_saved_is_told(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    source.play(replace(captured(script, 55), folder="not/there"))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("s")
        await shows(app, pilot, "Stacks")
        await pilot.press("w")
        await shows(app, pilot, "Cannot write")


async def test_the_palette_has_the_keys_of_the_page_only_there(script: Script, tmp_path: Path) -> None:
    async with running(hanging(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "STALLED")
        assert "Stacks: save" not in {command.title for command in app.get_system_commands(app.screen)}
        await pilot.press("s")
        await shows(app, pilot, "✖ TP3")
        assert "Stacks: save" in {command.title for command in app.get_system_commands(app.screen)}
        await app.action_perform("stacks-save")
        assert (tmp_path / "stacks.txt").exists()


# --- process by process, from the files -------------------------------------------------------------------------------


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
        await shows(app, pilot, "ptrace_scope = 1 [/foo]", "v looks for its file")
        await pilot.press("v")
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


async def test_earlier_stacks_can_be_read_when_nothing_runs(script: Script, tmp_path: Path) -> None:
    (tmp_path / "good.json").write_bytes(DUMP)
    source = crashed(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "CRASHED")
        await pilot.press("s")
        await shows(app, pilot, "Nothing runs any more.")
        source.play(script.stacks_captured(10, StackFile(pid=4013, process="EngineCore", file="good.json")))
        await pilot.press("s", "v")
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
        await pilot.press("s", "v", "n")
        await until(pilot, lambda: screen_text(app).splitlines()[2].startswith(" Worker_TP0"))
        await pilot.press("n", "n")
        await until(pilot, lambda: screen_text(app).splitlines()[2].startswith(" Worker_TP2"))
        await pilot.press("N")
        await until(pilot, lambda: screen_text(app).splitlines()[2].startswith(" Worker_TP1"))
