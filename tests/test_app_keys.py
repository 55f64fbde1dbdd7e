"""What the keys ask of the keeper, and the ways to leave."""

from pathlib import Path

import pytest
from textual.events import Key

from tests.ui_source import (
    SIZES,
    START_MONO,
    Script,
    answer,
    app_source,
    crashed,
    running,
    screen_text,
    serving,
    shows,
    started,
    until,
)
from vllm_probes.commands import CaptureStacks, Relaunch, Stop
from vllm_probes.rows import Change
from vllm_tui.screens.dialog import Question
from vllm_tui.screens.help import HelpPage
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
            app, pilot, "Relaunch with eager?", "+ --enforce-eager", "Requests: 12 running, 3 waiting.", "costs"
        )
        await shows(app, pilot, "It is stopped first.")
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
        await shows(
            app, pilot, "Relaunch with launch-blocking and eager?", "+ CUDA_LAUNCH_BLOCKING=1", "decodes slower"
        )
        await shows(app, pilot, "+ --enforce-eager", "Enter with eager too", "o without eager")
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
        await shows(app, pilot, "No stacks were captured")
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


async def test_keys_after_leaving_do_nothing(script: Script, tmp_path: Path) -> None:
    async with running(crashed(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "CRASHED")
        for key in ("q", "question_mark", "D", "s", "e", "R"):
            app.post_message(Key(key, None))
        await until(pilot, lambda: app.return_value is not None)
    assert app_source(app).sent == []


async def test_a_page_that_opens_while_the_app_ends_survives(script: Script, tmp_path: Path) -> None:
    async with running(crashed(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "CRASHED")
        app.exit()
        app.push_screen(HelpPage(app.situation))
        await pilot.pause()


@pytest.mark.parametrize(
    ("running_count", "waiting_count", "sentence"),
    [(10, 0, "Requests: 10 running."), (0, 2, "Requests: 2 waiting."), (0, 0, "It is serving. No request runs.")],
)
async def test_questions_count_requests(
    script: Script, tmp_path: Path, running_count: float, waiting_count: float, sentence: str
) -> None:
    source = serving(script, tmp_path)
    source.play(script.endpoint(55, 4000, running_count, waiting_count))
    async with running(source, tmp_path) as (app, pilot):
        await until(pilot, lambda: getattr(app.situation.model.endpoint, "mono", None) == START_MONO + 55)
        await pilot.press("x")
        await shows(app, pilot, "Stop vLLM?", sentence)


async def test_questions_about_another_program(tmp_path: Path) -> None:
    script = Script(command=["bash", "-c", "sleep 99"])
    source = started(script, tmp_path, expects_vllm=False)
    source.play(script.state("running"))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "RUNNING")
        await pilot.press("q")
        await shows(app, pilot, "bash still runs", "It is running.")
        assert "request" not in screen_text(app)
        await answer(pilot, "escape")
        await pilot.press("x")
        await shows(app, pilot, "Stop bash?")


async def test_a_question_about_what_is_not_so_any_more_is_closed(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, Question))
        with (tmp_path / "attempt-1.log").open("a") as log:
            log.write("INFO:     behind the question\n")
        await shows(app, pilot, "2 lines", "Relaunch with eager?")
        source.play(script.state("crashed", 70), script.command_ended(70, 1), script.tree_ended(70))
        await shows(app, pilot, "The situation has changed: attempt 1 has ended.")
        assert isinstance(app.screen, MainScreen)
        assert source.sent == []


async def test_refusals_replace_one_another_and_make_room_for_a_question(script: Script, tmp_path: Path) -> None:
    script = Script(command=["python", "run.py"])
    source = started(script, tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "python run.py")
        await pilot.press("e", "e", "e")
        await shows(app, pilot, "enforce_eager=True")
        assert len(app._notifications) == 1
        await pilot.press("x")
        await shows(app, pilot, "Stop ")
        assert not len(app._notifications)


async def test_a_question_shows_its_answers_on_the_smallest_screen(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path, size=(40, 10)) as (app, pilot):
        await shows(app, pilot, "SERVING")
        for key in "ebcR0xq":
            await pilot.press(key)
            await shows(app, pilot, "Esc cancel", "vLLM still runs" if key == "q" else "?")
            await answer(pilot, "escape")


async def test_a_long_question_is_scrolled(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path, size=(40, 10)) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("b")
        await shows(app, pilot, "It is serving", "Esc cancel")
        await pilot.press("down", "down", "down", "down")
        await shows(app, pilot, "CUDA_LAUNCH_BLOCKING=1", "Esc cancel")


async def test_the_folder_of_core_dumps_is_short(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path, size=(80, 24)) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("c")
        await shows(
            app, pilot, "+ CUDA_COREDUMP_FILE=…/coredumps/cuda_coredump", "+ CUDA_COREDUMP_GENERATION_FLAGS=skip"
        )


async def test_after_a_clean_launch_the_shells_variables_are_said_to_come_back(script: Script, tmp_path: Path) -> None:
    clean = [Change(name="NCCL_DEBUG", before="INFO", after=None)]
    async with running(serving(script, tmp_path, changes=clean), tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("R")
        await shows(app, pilot, "Relaunch with the debug variables of the shell?", "+ NCCL_DEBUG=INFO")
        await pilot.press("escape")
        await pilot.press("0")
        await shows(app, pilot, "the same command and environment")
