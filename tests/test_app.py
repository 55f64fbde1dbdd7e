"""What the app shows: at every size, of every state, and of text that nobody vouches for."""

from pathlib import Path
from typing import Any

import pytest

from tests.ui_source import (
    SIZES,
    Script,
    app_source,
    crashed,
    row,
    running,
    screen_text,
    serving,
    shows,
    started,
    until,
)
from vllm_probes.commands import Stop
from vllm_probes.events import (
    DiskSampled,
    Exited,
    FileAppeared,
    LeverChecked,
    LimitChanged,
    SignalSent,
    TreeEnded,
    TroubleNoted,
)
from vllm_probes.model import SessionModel
from vllm_probes.rows import Change, DebugSetting, Evidence, Finding, ProcessRef
from vllm_tui import closing
from vllm_tui.screens.main import MainScreen
from vllm_tui.widgets.notices import Notices


@pytest.fixture
def script() -> Script:
    return Script()


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
        await shows(app, pilot, "was killed (SIGKILL) after 12 s", "CAUSE · port · line 97", "→ Choose another --port.")
        await shows(app, pilot, "ran 0:00:12")
        rows = screen_text(app).splitlines()
        assert rows[2].strip() == "OSError: [Errno 98] Address already in use"


async def test_a_notice_of_a_second_attempt_is_drawn(script: Script, tmp_path: Path) -> None:
    source = crashed(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "was killed (SIGKILL) after 12 s")
        again = Script(attempt=2)
        source.play(again.attempt_started(20), again.state("loading", 20))
        await until(pilot, lambda: "SIGKILL" not in screen_text(app))
        source.play(again.state("crashed", 25), again.command_ended(25, 3), again.tree_ended(26))
        await shows(app, pilot, "ended with code 3 after 5.0 s")


async def test_a_layout_between_two_moments_leaves_room_for_the_second(script: Script, tmp_path: Path) -> None:
    source = crashed(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "was killed (SIGKILL) after 12 s")
        again = Script(attempt=2)
        panel = app.screen.query_one(Notices)
        app.situation.model.apply(again.attempt_started(20))
        panel.refresh(layout=True)
        await until(pilot, lambda: panel.size.height == 0)
        source.play(again.state("crashed", 25), again.command_ended(25, 3), again.tree_ended(26))
        await shows(app, pilot, "ended with code 3 after 5.0 s")


@pytest.mark.parametrize(
    ("stop", "signals", "row"),
    [
        ({}, [], "asked to stop 3.0 s ago"),
        ({}, ["SIGINT"], "SIGINT sent to 2 processes 2.0 s ago; SIGTERM follows if they stay, x at once"),
        ({"by": "relaunch"}, ["SIGINT", "SIGTERM"], "SIGTERM sent to 2 processes 2.0 s ago; SIGKILL follows"),
        ({}, ["SIGINT", "SIGTERM", "SIGKILL"], "SIGKILL sent to 2 processes 2.0 s ago"),
        ({"kill": True}, [], "SIGKILL was asked for 3.0 s ago"),
    ],
)
async def test_a_stop_says_what_was_sent_and_what_comes_next(
    script: Script, tmp_path: Path, stop: dict[str, Any], signals: list[str], row: str
) -> None:
    source = serving(script, tmp_path)
    source.play(script.stop_requested(57, **stop), script.state("stopping", 57))
    both = [ProcessRef(pid=4013, process="EngineCore"), ProcessRef(pid=4031, process="Worker_TP0")]
    source.play(*(SignalSent(**script.stamp(58), signal=name, processes=both) for name in signals))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "STOPPING", row)


@pytest.mark.parametrize(("full_in_s", "shown"), [(4320.0, True), (31000.0, False)])
async def test_a_disk_is_spoken_of_when_it_is_soon_full(
    script: Script, tmp_path: Path, full_in_s: float, shown: bool
) -> None:
    source = serving(script, tmp_path)
    source.play(DiskSampled(**script.stamp(55), free_bytes=3 << 30, log_bytes=5, full_in_s=full_in_s))
    source.play(script.state("idle", 56))
    async with running(source, tmp_path) as (app, pilot):
        notice = "The disk of this session fills up: full in 1:12:00 at this rate (3.0G free)."
        await shows(app, pilot, "IDLE", *([notice] if shown else []))
        assert (notice in screen_text(app)) is shown


async def test_the_room_of_a_wide_screen_is_used(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path, size=(200, 50)) as (app, pilot):
        await shows(app, pilot, "threads", "written", "last 7.0 s", "F process", "p probe", "Ctrl+P commands")


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
        TroubleNoted(**script.stamp(14), what="py-spy [/foo] is missing.", hint="Install it."),
        TreeEnded(**script.stamp(15), survivors=survivors),
    )
    async with running(source, tmp_path) as (app, pilot):
        await shows(
            app,
            pilot,
            "full in 10:00",
            "py-spy [/foo] is missing. Install it.",
            "Not even SIGKILL ended Worker_TP3 (7, D)",
        )


async def test_an_unknown_program_shows_its_processes(script: Script, tmp_path: Path) -> None:
    source = started(Script(command=["python", "train[/foo].py"]), tmp_path)
    source.play(
        script.state("running"),
        script.processes(row(1, "train[/foo].py", cpu_percent=250), row(2, "helper", state="D")),
    )
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "● RUNNING", "train[/foo].py", "250", "helper", "I/O wait")


async def test_foreign_processes_are_marked(script: Script, tmp_path: Path) -> None:
    source = started(script, tmp_path)
    source.play(script.processes(row(1, "EngineCore", role="engine_core", foreign=True)))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "EngineCore *", "* not started by us")


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
        await shows(app, pilot, "'foo][bold]m' --name '[@click=app.quit]x'", "[/foo]", "W[bold]", "[/phase]")
        await pilot.press("D")
        await shows(app, pilot, "A=[/b]: [/c]", "[/foo][bold]m")
        await pilot.press("escape", "e")
        await shows(app, pilot, "Relaunch with eager?")


@pytest.mark.parametrize(
    ("code", "reason", "line"),
    [
        (3, "exit code 3", "vllm-tui: crashed: exit code 3."),
        (0, "EngineCore went first", "vllm-tui: crashed: EngineCore went first, exit code 1."),
    ],
)
def test_the_closing_line_says_everything_once(script: Script, code: int, reason: str, line: str) -> None:
    model = SessionModel()
    for event in (script.attempt_started(), script.state("crashed", 4, reason), script.command_ended(4, code)):
        model.apply(event)
    assert closing.summary(model, Path("/s")).splitlines()[0] == line


async def test_a_core_dump_that_a_lever_asked_for_is_named(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    source.play(FileAppeared(**script.stamp(60), path="/s/coredumps/cuda_1", kind="coredump", size_bytes=5 << 20))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "A GPU core dump is there: /s/coredumps/cuda_1 (5M).")


async def test_old_news_of_the_server_say_so(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    source.play(script.processes(at=70))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING", " s ago")


async def test_a_view_that_may_do_nothing_is_given_no_hints(script: Script, tmp_path: Path) -> None:
    source = crashed(script, tmp_path)
    source.readonly = True
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "was killed (SIGKILL) after 12 s.")
        assert "R starts it again" not in screen_text(app)


@pytest.mark.parametrize("size", SIZES)
async def test_what_limits_a_run_is_one_line_with_its_evidence(
    script: Script, tmp_path: Path, size: tuple[int, int]
) -> None:
    source = serving(script, tmp_path)
    evidence = [Evidence(signal="CPU of Worker_TP1", value="37 %"), Evidence(signal="CPU of Worker_TP0", value="97 %")]
    told = {"limit": "slow_rank", "summary": "Worker_TP1 is slower than its peers.", "evidence": evidence}
    source.play(LimitChanged(**script.stamp(58), **told))
    async with running(source, tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "limited by slow rank  Worker_TP1 is slower than its peers")
        if size[0] > 80:
            await shows(app, pilot, "CPU of Worker_TP1 37 %, CPU of Worker_TP0 97 %")
        await pilot.press("D")
        await shows(app, pilot, "CPU of Worker_TP0: 97 %")
        await pilot.press("escape")
        source.play(LimitChanged(**script.stamp(59), limit=None))
        await until(pilot, lambda: "limited by" not in screen_text(app))
