"""Why a run has ended: in a few rows on the main screen, and in full on the page of findings."""

from pathlib import Path

import pytest

from tests.crash_story import CAUSE_LINE, DIED, DIED_LINE, FAULT, crashed_run, finding, findings, log_text
from tests.ui_source import SIZES, Script, ScriptedSource, crashed, running, screen_text, serving, shows, until
from vllm_probes.commands import Relaunch
from vllm_probes.keeper.recording import read_events
from vllm_tui.screens.findings import FindingsPage, as_text
from vllm_tui.widgets.findings import counted, title

HANG = Path(__file__).with_name("sessions") / "real-hang-exception.jsonl"


@pytest.fixture
def script() -> Script:
    return Script()


# --- on the main screen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_the_cause_stands_above_the_log(script: Script, tmp_path: Path, size: tuple[int, int]) -> None:
    async with running(crashed_run(script, tmp_path, *findings()), tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "✖ CAUSE · cudagraph replay error · line 141", "Worker_TP3: torch.AcceleratorError")
        await shows(app, pilot, "→ e eager: Relaunch with --enforce-eager", "+ 2 consequences · 1 notice")
        text = screen_text(app)
        assert text.count("Engine 000: Running") >= 10
        assert "ZeroDivisionError" not in text
        await pilot.press("e")
        await until(pilot, lambda: app.source.sent == [Relaunch(levers=["eager"])])  # type: ignore[attr-defined]


async def test_it_makes_room_for_the_next_attempt(script: Script, tmp_path: Path) -> None:
    source = crashed_run(script, tmp_path, *findings())
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "CAUSE")
        again = Script(attempt=2)
        source.play(again.attempt_started(70), again.state("loading", 70))
        await until(pilot, lambda: "CAUSE" not in screen_text(app))


async def test_a_long_text_says_that_there_is_more_of_it(script: Script, tmp_path: Path) -> None:
    long = finding(7, "ValueError: x", why="Because of this. " * 30, fix="Do that. " * 60)
    async with running(crashed_run(script, tmp_path, long), tmp_path, size=(80, 24)) as (app, pilot):
        await shows(app, pilot, "ValueError: x")
        rows = [row for row in screen_text(app).splitlines() if "Because" in row or "Do that" in row]
        assert [row.endswith(" …") for row in rows] == [False, True, False, False, True]


async def test_of_a_hang_it_says_what_the_verdict_does_not(tmp_path: Path) -> None:
    async with running(recorded_hang(), tmp_path, size=(80, 24)) as (app, pilot):
        await shows(app, pilot, "✖ STALLED", "✖ CAUSE · shm broadcast stall · W tells more", "→ Look for an exception")
        assert screen_text(app).count("Worker_TP1 waits for work") == 1


def test_titles_and_counts_say_what_a_finding_is_to_the_end() -> None:
    cause, died, unknown, notice = findings()
    assert [[part.plain for part in title(one)] for one in (cause, died, unknown, notice)] == [
        ["✖ CAUSE", "cudagraph replay error", "line 141"],
        ["✖ CONSEQUENCE", "engine core died", "line 163"],
        ["✖ CONSEQUENCE", "", "line 180"],
        ["▲ NOTICE", "", "line 12"],
    ]
    assert counted([died, notice, cause, cause]) == "2 other causes · 1 consequence · 1 notice"


# --- on the page ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_the_page_tells_everything(script: Script, tmp_path: Path, size: tuple[int, int]) -> None:
    async with running(crashed_run(script, tmp_path, *findings()), tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "CAUSE")
        await pilot.press("W")
        await shows(app, pilot, "Why it ended · 4 findings", "▌✖ CAUSE", "fatal · graph-replay", "encountered [/foo]")
        await shows(app, pilot, "TP0-7 said so.", "https://docs.vllm.ai/", "repo:vllm-project/vllm torch.Accelerator")
        await shows(app, pilot, "e relaunch with --enforce-eager")
        await pilot.press("n", "n")
        await shows(app, pilot, "▌✖ CONSEQUENCE · line 180", "division by zero", "▲ NOTICE · line 12")
        await pilot.press("N")
        await shows(app, pilot, "▌✖ CONSEQUENCE · engine core died")
        await pilot.press("escape")
        await shows(app, pilot, "following")


async def test_enter_goes_to_the_line_whatever_was_filtered(script: Script, tmp_path: Path) -> None:
    async with running(crashed_run(script, tmp_path, *findings()), tmp_path) as (app, pilot):
        await shows(app, pilot, "CAUSE")
        await pilot.press("f", "f")
        await shows(app, pilot, "errors only")
        await pilot.press("W", "n", "enter")
        await shows(app, pilot, f"error 2 of 2 · line {DIED_LINE}", "▌(EngineCore pid=4013)", "Running: 162 reqs")
        assert "errors only" not in screen_text(app)


async def test_enter_goes_to_the_log_of_an_earlier_attempt(script: Script, tmp_path: Path) -> None:
    source = crashed_run(script, tmp_path, *findings())
    again = Script(attempt=2)
    (tmp_path / "attempt-2.log").write_text("begins anew\n")
    source.play(again.attempt_started(70), again.state("loading", 70))
    async with running(source, tmp_path, now=80) as (app, pilot):
        await shows(app, pilot, "begins anew")
        await pilot.press("W")
        await shows(app, pilot, "Why it ended · attempt 1 · 4 findings")
        await pilot.press("enter")
        await shows(app, pilot, "Log of attempt 1", f"line {CAUSE_LINE}", "▌(Worker_TP3 pid=4034)")


async def test_enter_goes_to_a_log_that_panels_have_taken_the_place_of(script: Script, tmp_path: Path) -> None:
    source = crashed_run(script, tmp_path, *findings())
    source.play(script.gpus(at=62))
    source.play(script.tree(at=62))
    async with running(source, tmp_path, size=(80, 24)) as (app, pilot):
        await shows(app, pilot, "CAUSE", "Running: 200")
        await pilot.press("v")
        await until(pilot, lambda: "Running: 200" not in screen_text(app))
        await pilot.press("W", "enter")
        await shows(app, pilot, f"line {CAUSE_LINE}", "▌Worker_TP3 ")


async def test_a_line_that_is_not_read_yet_is_gone_to_when_it_is(script: Script, tmp_path: Path) -> None:
    source = crashed_run(script, tmp_path, *findings())
    lines = log_text().splitlines(keepends=True)
    log = tmp_path / "attempt-1.log"
    log.write_text("".join(lines[:50]))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "CAUSE", "Running: 50 reqs")
        await pilot.press("W", "enter")
        await shows(app, pilot, "line 50")
        log.write_text("".join(lines))
        await shows(app, pilot, f"line {CAUSE_LINE}", "▌(Worker_TP3 pid=4034)")


async def test_from_a_hang_it_goes_to_its_stacks_and_back(tmp_path: Path) -> None:
    async with running(recorded_hang(), tmp_path) as (app, pilot):
        await shows(app, pilot, "CAUSE")
        await pilot.press("W")
        await shows(app, pilot, "It hung before it ended", "Enter its stacks")
        await pilot.press("enter")
        await shows(app, pilot, "Stacks", "5 of 7", "✖ TP1")
        await pilot.press("escape")
        await shows(app, pilot, "Why it ended")


async def test_a_hang_without_stacks_says_so(script: Script, tmp_path: Path) -> None:
    hang = finding(1, "All wait.", rule="hang", class_="other", role="cause", severity="fatal")
    async with running(crashed_run(script, tmp_path, hang), tmp_path) as (app, pilot):
        await shows(app, pilot, "CAUSE")
        await pilot.press("W", "enter")
        await shows(app, pilot, "No stacks of this hang are at hand")


async def test_a_finding_is_copied_and_all_are_saved(script: Script, tmp_path: Path) -> None:
    async with running(crashed_run(script, tmp_path, *findings()), tmp_path, size=(200, 50)) as (app, pilot):
        await shows(app, pilot, "CAUSE")
        await pilot.press("W", "n", "y", "w")
        await shows(app, pilot, "The chosen finding is copied.", "attempt-1-findings.txt")
        assert app.clipboard == as_text(findings()[1])
        saved = (tmp_path / "attempt-1-findings.txt").read_text()
        assert saved.count("\n\n") == 3
        assert f"FATAL  cause  cudagraph_replay_error  attempt-1.log:{CAUSE_LINE}\n  line: {FAULT}\n" in saved
        assert f"  line: {DIED}\n  why: The engine ended because a worker did.\n" in saved


async def test_where_nothing_can_be_written_it_says_so(script: Script, tmp_path: Path) -> None:
    (tmp_path / "attempt-1-findings.txt").mkdir()
    async with running(crashed_run(script, tmp_path, *findings()), tmp_path, size=(200, 50)) as (app, pilot):
        await shows(app, pilot, "CAUSE")
        await pilot.press("W", "w")
        await shows(app, pilot, "Cannot write", "Is a directory")


async def test_the_palette_has_the_keys_of_the_page_only_there(script: Script, tmp_path: Path) -> None:
    async with running(crashed_run(script, tmp_path, *findings()), tmp_path) as (app, pilot):
        await shows(app, pilot, "CAUSE")
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert "Why it ended" in titles
        assert "Findings: save" not in titles
        await app.action_perform("findings")
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert "Findings: save" in titles
        assert "Stacks: save" not in titles


# --- when a key does nothing ------------------------------------------------------------------------------------------


async def test_without_findings_the_key_says_why_not(script: Script, tmp_path: Path) -> None:
    async with running(serving(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("W")
        await shows(app, pilot, "It has not ended: why it did is told then.")
        assert not isinstance(app.screen, FindingsPage)
    async with running(crashed(script, tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "CRASHED")
        await pilot.press("W")
        await shows(app, pilot, "No failure that can be told from its log.")


@pytest.mark.parametrize("is_on", [True, False])
async def test_a_lever_that_cannot_be_pulled_is_grey(script: Script, tmp_path: Path, is_on: bool) -> None:
    launch = {"levers": ["eager"]} if is_on else {"readonly": True}
    why_not = "It is on already." if is_on else "This view is read-only"
    source = crashed_run(script, tmp_path, *findings(), **launch)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "→ Relaunch with --enforce-eager")
        await pilot.press("W")
        await shows(app, pilot, f"e relaunch with --enforce-eager; again: without it — not now: {why_not}")


def recorded_hang() -> ScriptedSource:
    """A recorded run of real vLLM that hung and was stopped."""
    source = ScriptedSource(live=False)
    source.play(*(event for event in read_events(HANG) if event))
    source.lose()
    return source
