"""Recordings: played at their own pace, faster, or moment by moment."""

import asyncio
from pathlib import Path

import pytest

from tests.ui_source import Script, screen_text, shows, until
from vllm_probes.commands import Stop
from vllm_probes.events import Event, ModelRestored, encode
from vllm_probes.rows import StackFile
from vllm_tui.app import VllmTui
from vllm_tui.replay import ReplaySource
from vllm_tui.source import ReplayControls


def record(folder: Path, *events: Event, damage: bytes = b"") -> Path:
    path = folder / "events.jsonl"
    path.write_bytes(b"".join(map(encode, events)) + damage)
    return path


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    script = Script()
    log = [f"line {n}\n" for n in range(10)]
    (tmp_path / "attempt-1.log").write_text("".join(log))
    return record(
        tmp_path,
        script.session_started(),
        script.attempt_started(),
        script.state("loading", 0.05),
        script.log_sampled(sum(map(len, log[:4])), 0.06),
        script.state("serving", 3600),
        script.log_sampled(sum(map(len, log[:8])), 3600),
        script.state("exited", 7200),
        script.command_ended(7200),
        script.tree_ended(7200),
        damage=b'{"event": "from_the_future", "time": 1}\n{"event": "state_ch',
    )


async def test_moments_and_unknown_lines(recording: Path) -> None:
    source = ReplaySource(recording)
    source.change_speed(1024)
    batches = [batch async for batch in source.batches()]
    assert [len(batch) for batch in batches] == [1, 4, 2, 3]
    assert isinstance(batches[0][0], ModelRestored)
    assert source.unknown_line_count == 2
    assert isinstance(source, ReplayControls)
    assert not (await source.send(Stop(id=7))).ok


async def test_a_pause_lasts_and_a_step_is_one_moment(recording: Path) -> None:
    source = ReplaySource(recording)
    source.toggle_pause()
    batches = source.batches()
    await anext(batches)
    await anext(batches)
    waiting = asyncio.ensure_future(anext(batches))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    source.step()
    assert len(await waiting) == 2
    last = asyncio.ensure_future(anext(batches))
    source.change_speed(1024)
    await asyncio.wait([last], timeout=0.05)
    assert not last.done()
    source.toggle_pause()
    assert len(await last) == 3


async def test_the_screen_of_a_replay(recording: Path, tmp_path: Path) -> None:
    app = VllmTui(ReplaySource(recording), folder=tmp_path)
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await pilot.press("space")
        await shows(app, pilot, "◌ LOADING", "REPLAY paused", "4 lines", "line 3", "Space pause", ". step")
        await pilot.press("x", "full_stop")
        await shows(app, pilot, "This is a recording", "● SERVING", "8 lines", "up 1:00:00")
        await pilot.press("greater_than_sign", "greater_than_sign", "space")
        await shows(app, pilot, "REPLAY over", "■ EXITED", "10 lines", "2 lines of the recording could not be read")
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is not None
    assert app.return_value.leaving == "ended"


async def test_an_empty_recording(tmp_path: Path) -> None:
    app = VllmTui(ReplaySource(record(tmp_path)), folder=tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(app, pilot, "q quit")


async def test_a_narrow_recording_shows_the_keys_that_work(recording: Path, tmp_path: Path) -> None:
    app = VllmTui(ReplaySource(recording), folder=tmp_path)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await shows(app, pilot, "LOADING", "> faster", "? help")
        assert "launch-blocking" not in screen_text(app)
        await pilot.press("question_mark")
        await shows(app, pilot, "where it is grey: This is a recording: there is nothing to send")
        assert screen_text(app).count("there is nothing to send") == 1


async def test_stacks_of_a_recording(tmp_path: Path) -> None:
    script = Script()
    stacks = script.stacks_captured(1, StackFile(pid=1, process="EngineCore", error="no such process"))
    path = record(tmp_path, script.session_started(), script.attempt_started(), stacks)
    app = VllmTui(ReplaySource(path), folder=tmp_path)
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await shows(app, pilot, "REPLAY over", "s stacks")
        await pilot.press("s")
        await shows(app, pilot, "by hand", "no such process")
        await pilot.press("s")
        await shows(app, pilot, "This is a recording")
