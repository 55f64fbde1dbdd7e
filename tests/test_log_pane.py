"""What the log says of itself: its title, why it is empty, what a filter hides, and what Esc takes back."""

from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.ui_source import Script, ScriptedSource, answer, row, running, screen_text, shows, started, until
from vllm_tui.app import VllmTui
from vllm_tui.screens.dialog import Question
from vllm_tui.widgets.log_view import LogView

CORE, API = "EngineCore pid=4013", "APIServer pid=4001"


def line(number: int, level: str = "INFO", process: str = CORE, message: str = "step") -> str:
    return f"({process}) {level} 11-21 08:53:43 [core.py:77] {message} {number:04}"


def write(folder: Path, lines: list[str], attempt: int = 1) -> None:
    with (folder / f"attempt-{attempt}.log").open("a") as file:
        file.writelines(f"{text}\n" for text in lines)


def title(app: VllmTui) -> str:
    return next(text for text in screen_text(app).splitlines() if "── Log" in text)


async def titled(app: VllmTui, pilot: Pilot[None], text: str) -> None:
    await until(pilot, lambda: text in title(app))


@pytest.fixture
def source(tmp_path: Path) -> ScriptedSource:
    source, script = ScriptedSource(), Script()
    source.play(script.restored(tmp_path))
    source.play(script.attempt_started(), script.state("serving"))
    return source


# --- empty ----------------------------------------------------------------------------------------------------------


async def test_an_empty_log_says_so_until_something_comes(source: ScriptedSource, tmp_path: Path) -> None:
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "No output yet.", "0 lines · following")
        await pilot.press("up", "g", "pageup")
        write(tmp_path, [line(1)])
        await shows(app, pilot, "step 0001", "1 line · following")
        assert "No output yet." not in screen_text(app)


async def test_a_command_that_wrote_nothing(source: ScriptedSource, tmp_path: Path) -> None:
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "No output yet.")
        source.play(Script().state("exited", 3), Script().command_ended(3), Script().tree_ended(3))
        await shows(app, pilot, "It wrote nothing.")


async def test_a_filter_that_nothing_passes_says_so_and_keeps_the_place(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(n) for n in range(315)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "step 0314")
        await pilot.press("g", "down", "down", "f", "f")
        await shows(app, pilot, "No line passes: errors only. Esc shows all 315 lines.")
        assert "0 of 315 lines · errors only · line 3 is hidden" in title(app)
        await pilot.press("up", "down", "pageup")
        write(tmp_path, [line(n) for n in range(315, 317)])
        await shows(app, pilot, "Esc shows all 317 lines.")
        await pilot.press("escape")
        await shows(app, pilot, "317 lines · line 3 ·", "step 0002", "step 0009")


async def test_an_empty_filtered_log_that_follows_goes_on_following(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(1)])
    async with running(source, tmp_path) as (app, pilot):
        await pilot.press("f", "f")
        await shows(app, pilot, "No line passes: errors only. Esc shows all 1 line.", "errors only · following")
        write(tmp_path, [line(2, "ERROR")])
        await shows(app, pilot, "1 of 2 lines", "step 0002", "following")


# --- search ---------------------------------------------------------------------------------------------------------


async def test_what_only_the_filter_hides_is_not_said_to_be_missing(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(1, "ERROR"), line(2, message="needle"), line(3)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "3 lines")
        await pilot.press("f", "f")
        await shows(app, pilot, "1 of 3 lines")
        await pilot.press("slash", *"needle", "enter")
        await shows(app, pilot, "“needle” is not among the lines shown", "(errors only)")
        await pilot.press("escape", "n")
        await shows(app, pilot, "3 lines · 1 error · line 2 ")


async def test_escape_takes_back_the_search_and_then_the_filters(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(n, "WARNING", message="needle") for n in range(3)] + [line(9)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "4 lines")
        await pilot.press("f", "F", "slash", *"needle", "enter")
        await shows(app, pilot, "3 of 4 lines · 3 warnings · warnings and errors · EngineCore")
        view = app.query_one(LogView)
        await until(pilot, lambda: view.highlighted)
        await pilot.press("escape")
        assert not view.highlighted
        assert "3 of 4 lines" in title(app)
        await pilot.press("escape")
        await titled(app, pilot, "Log · 4 lines")
        await pilot.press("escape")
        assert "Log · 4 lines" in title(app)


# --- one process ----------------------------------------------------------------------------------------------------


async def test_the_process_filter_goes_round_who_writes_into_the_log(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(1, process="Worker pid=9"), line(2, process=API), line(3, process="Worker_TP0 pid=9")])
    sleeping = [row(100 + n, "sleep") for n in range(5)]
    source.play(Script().processes(*sleeping, row(4001, "APIServer", role="api_server")))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "3 lines", "APIServer")
        for expected in (
            "2 of 3 lines · Worker_TP0",
            "1 of 3 lines · APIServer",
            "3 lines",
            "2 of 3 lines · Worker_TP0",
        ):
            await pilot.press("F")
            await titled(app, pilot, f"Log · {expected} · ")


async def test_a_log_whose_lines_name_nobody(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, ["plain"])
    source.play(Script().processes(row(100, "sleep")))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "1 line", "sleep")
        await pilot.press("F")
        await shows(app, pilot, "No line of this log names its process.", "Log · 1 line · following")


# --- errors ---------------------------------------------------------------------------------------------------------


async def test_the_title_tells_which_error_it_is(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(n, "ERROR" if n in (3, 5) else "INFO") for n in range(9)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "9 lines · 2 errors · following")
        for expected in ("error 1 of 2 · line 4", "error 2 of 2 · line 6"):
            await pilot.press("right_square_bracket")
            await titled(app, pilot, f"9 lines · {expected}")
        await pilot.press("down")
        await titled(app, pilot, "9 lines · 2 errors · line 7")
        await pilot.press("f", "f", "left_square_bracket")
        await titled(app, pilot, "2 of 9 lines · error 1 of 2 · errors only · line 4")


async def test_errors_of_others_are_hidden_and_not_missing(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(1), line(2, "ERROR", API)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "2 lines")
        await pilot.press("F", "right_square_bracket")
        await shows(app, pilot, "No error is among the lines shown")


# --- what was seen --------------------------------------------------------------------------------------------------


async def away_from_the_end(app: VllmTui, pilot: Pilot[None], folder: Path) -> None:
    """500 lines were there when following ended, 1,000 are there now; the last says `needle`."""
    write(folder, [line(n) for n in range(500)])
    await shows(app, pilot, "step 0499")
    await pilot.press("up")
    write(folder, [line(n, message="needle" if n == 999 else "step") for n in range(500, 1000)])
    await shows(app, pilot, "line 499 · +500 lines, G follows")


async def test_lines_that_were_in_the_window_are_not_new(source: ScriptedSource, tmp_path: Path) -> None:
    async with running(source, tmp_path) as (app, pilot):
        await away_from_the_end(app, pilot, tmp_path)
        await pilot.press("pagedown")
        await until(pilot, lambda: "+500" not in title(app))
        assert "lines, G follows" in title(app)
        await pilot.press("slash", *"needle", "enter")
        await titled(app, pilot, "line 1,000")
        assert "G follows" not in title(app)
        await pilot.press("g")
        await titled(app, pilot, "line 1 ")
        assert "G follows" not in title(app)


async def test_a_filter_does_not_make_lines_new(source: ScriptedSource, tmp_path: Path) -> None:
    async with running(source, tmp_path) as (app, pilot):
        await away_from_the_end(app, pilot, tmp_path)
        await pilot.press("f", "f")
        await shows(app, pilot, "No line passes")
        await pilot.press("escape")
        await titled(app, pilot, "Log · 1,000 lines · line 499")
        assert 400 < app.query_one(LogView).unseen_count <= 500


async def test_lines_that_come_into_a_window_with_room_are_not_new(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(1), line(2)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "2 lines")
        await pilot.press("up")
        write(tmp_path, [line(3)])
        await shows(app, pilot, "step 0003", "3 lines · line 1")
        assert "G follows" not in title(app)


# --- below a question -----------------------------------------------------------------------------------------------


async def test_the_log_goes_on_below_a_question(tmp_path: Path) -> None:
    source = started(Script(), tmp_path)
    source.play(Script().state("serving"))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "startup complete")
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, Question))
        focused = app.focused
        for first in (0, 100):
            write(tmp_path, [line(n) for n in range(first, first + 100)])
            await until(pilot, lambda: app.main_screen.log_pane.view.cursor > first)  # noqa: B023 - awaited at once
        assert app.focused is focused
        assert isinstance(app.screen, Question)
        await answer(pilot, "escape")
        await shows(app, pilot, "201 lines · following", "step 0199")


# --- folding --------------------------------------------------------------------------------------------------------


async def test_repeated_lines_are_folded_and_shown_again(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(1), line(2), line(2), line(2, process=API), line(3, "ERROR")])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "5 lines")
        await pilot.press("z")
        await shows(app, pilot, "3 of 5 lines", "folded", "step 0002", "×3")
        await pilot.press("g", "down", "z")
        await titled(app, pilot, "line 2")
        assert "×3" not in screen_text(app)
        await pilot.press("z", "f", "f")
        await shows(app, pilot, "1 of 5 lines", "errors only · folded")
        await pilot.press("escape")
        await titled(app, pilot, "5 lines · 1 error")


async def test_a_folded_record_is_read_and_copied_whole(source: ScriptedSource, tmp_path: Path) -> None:
    frames = [f'  File "/a.py", line {number}, in f' for number in range(1, 9)]
    write(tmp_path, [f"({CORE}) {text}" for text in ["Traceback (most recent call last):", *frames, "OSError: no"]])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "OSError: no")
        await pilot.press("z", "g", "down", "down")
        await shows(app, pilot, "line 2, in f", "+6 lines")
        await pilot.press("enter")
        await shows(app, pilot, "Line 3 +7", "Tab scrolls, y copies", "line 5, in f")
        await pilot.press("y")
        await shows(app, pilot, "Line 3 and 7 lines behind it are copied.")
        assert app.clipboard.splitlines() == [f"({CORE}) {text}" for text in [*frames[1:], "OSError: no"]]


async def test_grave_lines_have_a_mark_at_their_edge(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(1), line(2, "WARNING"), line(3, "ERROR")])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "step 0003")
        rows = [text for text in screen_text(app).splitlines() if " step 000" in text]
        assert [text.lstrip()[:1] == "▎" for text in rows] == [False, True, True]
