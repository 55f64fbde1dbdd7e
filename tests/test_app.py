"""The app driven by keys, with a scripted source: what stands on the screen, and what is sent to the keeper."""

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.ui_source import Script, ScriptedSource, row, running, screen_text, shows, until
from vllm_probes.commands import CaptureStacks, Relaunch, Stop
from vllm_probes.events import (
    Change,
    DebugSetting,
    DiskSampled,
    Exited,
    Finding,
    LeverChecked,
    ProcessRef,
    StackFile,
    StacksCaptured,
    TreeEnded,
    TroubleNoted,
)
from vllm_tui.app import VllmTui
from vllm_tui.screens.dialog import Question
from vllm_tui.screens.main import MainScreen

SIZES = [(80, 24), (120, 36), (200, 50)]


@pytest.fixture
def script() -> Script:
    return Script()


def started(script: Script, folder: Path, *, readonly: bool = False, **launch: Any) -> ScriptedSource:
    """A source whose first attempt has begun."""
    source = ScriptedSource(readonly=readonly)
    (folder / "attempt-1.log").write_text("INFO:     Application startup complete.\n")
    source.play(script.restored(folder))
    source.play(script.attempt_started(**launch))
    return source


def serving(script: Script, folder: Path, **more: Any) -> ScriptedSource:
    source = started(script, folder, **more)
    source.play(script.state("serving", 41), script.tree(at=41), *[script.endpoint(41 + i, i * 412) for i in range(9)])
    return source


def crashed(script: Script, folder: Path, *leftovers: ProcessRef) -> ScriptedSource:
    source = started(script, folder)
    source.play(script.state("crashed", 12), script.command_ended(12, None, 9, leftovers))
    if not leftovers:
        source.play(script.tree_ended(13))
    return source


async def answer(pilot: Pilot[Any], key: str) -> None:
    """Wait for a question and answer it."""
    await until(pilot, lambda: isinstance(pilot.app.screen, Question))
    await pilot.press(key)
    await until(pilot, lambda: not isinstance(pilot.app.screen, Question))


# --- what stands on the screen --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_a_serving_run_at_every_size(script: Script, tmp_path: Path, size: tuple[int, int]) -> None:
    async with running(serving(script, tmp_path), tmp_path, size=size) as (app, pilot):
        await shows(
            app, pilot, "● SERVING", "vllm serve Llama-3.1-70B", "attempt 1", "up 0:01:00", "12 running, 3 waiting"
        )
        await shows(
            app, pilot, "412 tok/s", "KV", "71 %", "TTFT", "210 ms", "TPOT", "23 ms", "following", "q quit", "? help"
        )
        if size[0] == 80:
            await shows(app, pilot, "APIServer 3 %  EngineCore 99 %  8 workers 97-99 %")
            await pilot.press("v")
        await shows(app, pilot, "Worker_TP7", "http://127.0.0.1:8000", "prefix hits", "38 %", "+ 1 other")
        await pilot.press("v")
        await until(pilot, lambda: "Worker_TP7" not in screen_text(app))
        await shows(app, pilot, "8 workers", "following")


@pytest.mark.parametrize("size", SIZES)
async def test_a_start_shows_phase_progress_and_time(script: Script, tmp_path: Path, size: tuple[int, int]) -> None:
    source = started(script, tmp_path)
    source.play(script.state("loading", 20), script.phase("Loading weights", 20), script.progress(5, 8, 25, eta="0:12"))
    async with running(source, tmp_path, size=size, now=31) as (app, pilot):
        await shows(app, pilot, "◌ LOADING", "Loading weights", "62%", "5 of 8", "0:12 left", "for 11 s", "up 0:00:31")
        assert "Engine" not in screen_text(app)


async def test_a_crash_with_leftovers_says_what_runs_and_what_ends_it(script: Script, tmp_path: Path) -> None:
    left = [ProcessRef(pid=4013, process="EngineCore"), ProcessRef(pid=4031, process="Worker_TP0")]
    async with running(crashed(script, tmp_path, *left), tmp_path) as (app, pilot):
        await shows(
            app, pilot, "✖ CRASHED", "APIServer was killed (SIGKILL); 2 of its processes still run", "EngineCore (4013)"
        )
        await pilot.press("x")
        await until(pilot, lambda: app_source(app).sent == [Stop()])


async def test_a_crash_shows_its_cause(script: Script, tmp_path: Path) -> None:
    source = crashed(script, tmp_path)
    finding = Finding(
        rule="port", class_="port", role="cause", severity="fatal", file="attempt-1.log", line_number=97,
        line="OSError: [Errno 98] Address already in use", why="The port is taken.", fix="Choose another --port.",
    )  # fmt: skip
    source.play(Exited(**script.stamp(13), code=None, signal=9, findings=[finding]))
    async with running(source, tmp_path) as (app, pilot):
        await shows(
            app, pilot, "was killed (SIGKILL) after 12 s", "Line 97: OSError: [Errno 98]", "Choose another --port."
        )
        await shows(app, pilot, "ran 0:00:12")


async def test_levers_and_settings_are_marked_and_explained(script: Script, tmp_path: Path) -> None:
    settings = [
        DebugSetting(setting="--enforce-eager", origin="lever", cost="decodes slower"),
        DebugSetting(setting="NCCL_DEBUG=INFO", origin="inherited", cost="more log"),
    ]
    changes = [Change(name="--enforce-eager", after="")]
    source = serving(script, tmp_path, levers=["eager", "coredump"], changes=changes, debug_settings=settings)
    source.play(LeverChecked(**script.stamp(50), lever="eager", arrived=True, where="log line 21"))
    source.play(LeverChecked(**script.stamp(50), lever="coredump", arrived=False, where="environment of EngineCore"))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "eager ✓", "coredump ✗ not in vLLM", "1 debug setting", "coredump did not reach vLLM")
        await pilot.press("D")
        await shows(app, pilot, "NCCL_DEBUG=INFO: more log", "+ --enforce-eager", "unset NCCL_DEBUG", "log line 21")
        await pilot.press("u")
        assert app.clipboard == "unset NCCL_DEBUG"
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, MainScreen))


async def test_warnings_of_disk_troubles_and_survivors(script: Script, tmp_path: Path) -> None:
    source = crashed(script, tmp_path, ProcessRef(pid=7, process="Worker_TP3", state="D"))
    survivors = [ProcessRef(pid=7, process="Worker_TP3", state="D")]
    source.play(
        DiskSampled(**script.stamp(14), free_bytes=300 << 20, log_bytes=5, full_in_s=600),
        TroubleNoted(**script.stamp(14), what="py-spy [/foo]", hint="install it"),
        TreeEnded(**script.stamp(15), survivors=survivors),
    )
    async with running(source, tmp_path) as (app, pilot):
        await shows(
            app, pilot, "full in 10:00", "py-spy [/foo]: install it", "Not even SIGKILL ended Worker_TP3 (7, D)"
        )


async def test_an_unknown_program_shows_its_processes(script: Script, tmp_path: Path) -> None:
    source = started(Script(command=["python", "train[/foo].py"]), tmp_path)
    source.play(
        script.state("running"),
        script.processes(row(1, "train[/foo].py", cpu_percent=250), row(2, "helper", state="D")),
    )
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "● RUNNING", "train[/foo].py", "250", "helper", "waits I/O")


async def test_foreign_processes_are_marked(script: Script, tmp_path: Path) -> None:
    source = started(script, tmp_path)
    source.play(script.processes(row(1, "EngineCore", role="engine_core", foreign=True)))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "EngineCore *", "* not started by us")


# --- commands -------------------------------------------------------------------------------------------------------


def app_source(app: VllmTui) -> ScriptedSource:
    source = app.source
    assert isinstance(source, ScriptedSource)
    return source


@pytest.mark.parametrize("size", SIZES)
async def test_a_lever_while_serving_shows_its_diff_first(
    script: Script, tmp_path: Path, size: tuple[int, int]
) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("e")
        await shows(app, pilot, "Relaunch with eager?", "+ --enforce-eager", "12 running", "costs", "caution")
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


# --- stacks, help, palette ------------------------------------------------------------------------------------------

DUMP = b"""[{"pid": 4013, "thread_id": 2, "thread_name": "Thread-1 [/foo]", "os_thread_id": 9, "active": false,
 "owns_gil": false, "frames": [{"name": "wait", "filename": "/usr/lib/python3.11/threading.py",
 "short_filename": "threading.py", "line": 327, "locals": null, "module": null}]},
{"thread_id": 1, "thread_name": "MainThread", "os_thread_id": 8, "active": true, "owns_gil": true, "frames":
[{"name": "get_response", "filename": "/opt/site-packages/vllm/executor.py", "short_filename": "vllm/executor.py", "line": 440}]}]"""


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


# --- leaving --------------------------------------------------------------------------------------------------------


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


# --- robustness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (10, 4), (20, 100)])
async def test_tiny_terminals(script: Script, tmp_path: Path, size: tuple[int, int]) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path, size=size) as (app, pilot):
        await until(pilot, lambda: app.situation.model.state == "serving")
        await pilot.press(
            "v",
            "up",
            "enter",
            "question_mark",
            "escape",
            "D",
            "escape",
            "e",
            "escape",
            "s",
            "escape",
            "slash",
            "escape",
        )
        source.play(script.state("crashed", 50), script.command_ended(50, 1, None, [ProcessRef(pid=1, process="x")]))
        await until(pilot, lambda: app.situation.model.state == "crashed")
        await pilot.pause(0.4)


async def test_resizing_while_it_runs(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "Worker_TP7")
        for size in [(40, 10), (200, 50), (1, 1), (80, 24), (120, 36)]:
            await pilot.resize_terminal(*size)
        await shows(app, pilot, "● SERVING", "Worker_TP7", "following")


async def test_a_burst_of_events_is_taken_in_at_once(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        for first in range(0, 5000, 10):
            source.play(*[script.endpoint(60 + first + i, (first + i) * 412) for i in range(10)])
        source.play(script.state("idle", 6000))
        await pilot.press("question_mark")
        await shows(app, pilot, "○ IDLE", "Keys")


async def test_markup_in_names_and_arguments_is_text(tmp_path: Path) -> None:
    script = Script(command=["vllm", "serve", "[/foo][bold]m", "--name", "[@click=app.quit]x"])
    source = started(script, tmp_path, debug_settings=[DebugSetting(setting="A=[/b]", origin="typed", cost="[/c]")])
    source.play(script.processes(row(1, "[/foo]", role="engine_core"), row(2, "W[bold]", role="worker", rank=0)))
    source.play(script.state("loading", reason="[/r]"), script.phase("[/phase]"))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "foo][bold]m --name [@click=app.quit]x", "[/foo]", "W[bold]", "[/phase]")
        await pilot.press("D")
        await shows(app, pilot, "A=[/b]: [/c]", "[/foo][bold]m")
        await pilot.press("escape", "e")
        await shows(app, pilot, "Relaunch with eager?")
