"""The log on the screen: following, moving, searching, filtering, and what untrusted text may do there."""

from pathlib import Path

import pytest

from tests.ui_source import Script, ScriptedSource, row, running, screen_text, shows, until
from vllm_probes.log.rows import LogLine
from vllm_tui.widgets.log_style import process_style, styled_line
from vllm_tui.widgets.log_view import LogView


def line(number: int, level: str = "INFO", process: str = "APIServer pid=4001", message: str = "step") -> str:
    return f"({process}) {level} 11-21 08:53:43 [core.py:77] {message} {number:04}"


def write(folder: Path, lines: list[str], attempt: int = 1, mode: str = "w") -> None:
    with (folder / f"attempt-{attempt}.log").open(mode) as file:
        file.writelines(f"{text}\n" for text in lines)


@pytest.fixture
def source(tmp_path: Path) -> ScriptedSource:
    source, script = ScriptedSource(), Script()
    source.play(script.restored(tmp_path))
    source.play(script.attempt_started(), script.state("serving"))
    return source


async def test_it_follows_a_growing_log(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(n) for n in range(500)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "step 0499", "Log · 500 lines · following")
        for first in (500, 501, 504, 540, 2000):
            write(tmp_path, [line(n) for n in range(first, first + 3)], mode="a")
            await shows(app, pilot, f"step {first + 2:04}")


async def test_moving_away_stops_following_and_counts_what_comes(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(n) for n in range(500)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "step 0499")
        await pilot.press("up", "up")
        await shows(app, pilot, "line 498")
        write(tmp_path, [line(n) for n in range(500, 523)], mode="a")
        await shows(app, pilot, "+23 lines, G follows")
        assert "step 0510" not in screen_text(app)
        await pilot.press("G")
        await shows(app, pilot, "step 0522", "following")
        await pilot.press("g")
        await shows(app, pilot, "step 0000", "line 1 ")
        await pilot.press("down", "pagedown", "pageup")
        await shows(app, pilot, "line 2 ")


async def test_a_truncated_log_begins_anew(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(n) for n in range(500)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "step 0499")
        await pilot.press("up")
        write(tmp_path, [line(n) for n in range(900, 903)])
        await shows(app, pilot, "step 0902", "3 lines")


async def test_search_goes_round_and_is_highlighted(source: ScriptedSource, tmp_path: Path) -> None:
    lines = [line(n, message="needle" if n in (7, 300) else "step") for n in range(500)]
    write(tmp_path, lines)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "step 0499")
        await pilot.press("slash", *"NEEDLE", "enter")
        await shows(app, pilot, "needle 0300", "line 301")
        await pilot.press("n")
        await shows(app, pilot, "needle 0007", "line 8 ")
        await pilot.press("N")
        await shows(app, pilot, "needle 0300")
        await pilot.press("slash", *"absent", "enter")
        await shows(app, pilot, "“absent” is not in the log.")


async def test_escape_leaves_the_search(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(0)])
    async with running(source, tmp_path) as (app, pilot):
        await pilot.press("slash", "q", "escape")
        await until(pilot, lambda: isinstance(app.focused, LogView))
        assert app.is_running


async def test_errors_are_stepped_through_and_go_round(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(n, level="ERROR" if n in (100, 300) else "INFO") for n in range(500)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "2 errors")
        for key, number in (("]", 101), ("]", 301), ("]", 101), ("[", 301), ("[", 101)):
            await pilot.press("right_square_bracket" if key == "]" else "left_square_bracket")
            await shows(app, pilot, f"line {number}")


async def test_a_log_without_errors_says_so(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(0)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "1 line")
        await pilot.press("right_square_bracket")
        await shows(app, pilot, "The log has no error.")


async def test_filters_by_level_and_process_keep_the_place(source: ScriptedSource, tmp_path: Path) -> None:
    core = "EngineCore pid=4013"
    lines = [line(n, "WARNING" if n % 50 == 0 else "INFO", core if n % 2 else "APIServer pid=4001") for n in range(500)]
    write(tmp_path, lines)
    api = row(4001, "APIServer", role="api_server")
    source.play(Script().processes(api, row(4013, "EngineCore", role="engine_core")))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "500 lines", "EngineCore")
        await pilot.press("f")
        await shows(app, pilot, "10 of 500 lines · 10 warnings · warnings and errors")
        await pilot.press("f")
        await shows(app, pilot, "0 of 500 lines", "errors only")
        await pilot.press("f", "F")
        await shows(app, pilot, "250 of 500 lines", "APIServer", "step 0498")
        await pilot.press("F")
        await shows(app, pilot, "250 of 500 lines", "step 0499")
        await pilot.press("F")
        await shows(app, pilot, "Log · 500 lines")


async def test_a_line_can_be_read_whole_and_copied(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(0), line(1, message="x" * 3000 + " the end")])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "2 lines")
        await pilot.press("enter")
        await shows(app, pilot, "Line 2 · APIServer · pid 4001 · INFO · 11-21 08:53:43 · core.py:77")
        await pilot.press("y")
        assert app.clipboard.endswith("the end 0001")
        await pilot.press("up")
        await shows(app, pilot, "Line 1 · APIServer")
        await pilot.press("escape")
        await until(pilot, lambda: "Line 1 ·" not in screen_text(app))


async def test_a_click_opens_the_line(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(n) for n in range(500)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "step 0499")
        await pilot.click(LogView, offset=(10, 0))
        await shows(app, pilot, "Line 468 ·")


async def test_a_long_line_is_scrolled_sideways(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, [line(0, message="x" * 200 + "right end")])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "1 line")
        assert "right end" not in screen_text(app)
        await pilot.press(*["right"] * 8)
        await shows(app, pilot, "right end")
        await pilot.press(*["left"] * 9)
        await shows(app, pilot, "(APIServer pid=4001)")


async def test_a_new_attempt_shows_its_own_log_and_the_old_one_stays_within_reach(
    source: ScriptedSource, tmp_path: Path
) -> None:
    write(tmp_path, [line(1, message="first run")])
    write(tmp_path, [line(2, message="second run")], attempt=2)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "first run")
        source.play(Script(attempt=2).attempt_started(50))
        await shows(app, pilot, "second run", "attempt 2")
        await pilot.press("a")
        await shows(app, pilot, "first run", "Log of attempt 1")
        await pilot.press("a")
        await shows(app, pilot, "second run")


HOSTILE = [
    "[/foo] [bold]x[/bold] [@click=app.quit]y[/]",
    "a\x1b[2Jb\x1b]52;c;aGk=\x07c",
    "tab\there",
    "\u202eright-to-left",
]


async def test_hostile_text_is_shown_and_never_obeyed(source: ScriptedSource, tmp_path: Path) -> None:
    write(tmp_path, HOSTILE)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "[/foo] [bold]x[/bold] [@click=app.quit]y[/]", "abc", "tab     here")
        assert "\u202e" not in screen_text(app)
        assert "\x1b" not in screen_text(app)
        await pilot.press("g", "enter")
        await shows(app, pilot, "Line 1")


@pytest.mark.parametrize(
    "text", [HOSTILE[0], line(1), "", "(", "(x pid=1)", "INFO 01-01 00:00:00 [a.py:1] ", "]" * 300]
)
@pytest.mark.parametrize("needle", ["", "(", "O", "[/foo]"])
def test_styling_changes_no_character(text: str, needle: str) -> None:
    assert styled_line(LogLine(number=1, text=text), needle).plain == text


def test_a_narrow_screen_keeps_process_time_and_message() -> None:
    shown = styled_line(LogLine(number=1, text=line(7, "WARNING", "Worker_TP0 pid=4031")), compact=True)
    assert shown.plain == "Worker_TP0 08:53:43 WARNING step 0007"
    assert styled_line(LogLine(number=1, text=line(7)), compact=True).plain == "APIServer 08:53:43 step 0007"
    assert styled_line(LogLine(number=1, text="  File x"), compact=True).plain == "  File x"


def test_ranks_have_different_colours_and_a_process_always_the_same() -> None:
    assert len({process_style(f"Worker_TP{rank}", rank) for rank in range(8)}) == 8
    assert process_style("ray::x", None) == process_style("ray::x", None)
