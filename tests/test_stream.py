"""A keeper that takes the place of a killed one: what it finds, and what it makes up for."""

from pathlib import Path

import pytest

from vllm_probes.events import (
    AttemptStarted,
    CommandEnded,
    Event,
    Exited,
    LogRecorded,
    SessionStarted,
    StateChanged,
    TreeEnded,
    VerdictChanged,
)
from vllm_probes.judges.frames import load_frames
from vllm_probes.judges.judging import Knowledge
from vllm_probes.judges.rules import load_rules
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.keeper.recording import read_events
from vllm_probes.keeper.stream import Stream


def stream(folder: Path) -> Stream:
    return Stream(SessionFolder(folder), Knowledge(load_rules().by_id, load_frames()), lambda event: None)


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """The recording of a session that ended with code 4."""
    one = stream(tmp_path)
    one.publish(
        SessionStarted(**one.stamp(), schema=1, session="s", version="0", name="s", command=["x"], cwd="/", boot_id="b")
    )
    one.begin_attempt()
    one.publish(
        AttemptStarted(**one.stamp(), command=["x"], levers=[], log="attempt-1.log", shim_pid=1, expects_vllm=False)
    )
    one.publish(LogRecorded(**one.stamp(), line_number=31, level="error", message="bad", line="bad"))
    one.publish(CommandEnded(**one.stamp(), code=4, signal=None))
    one.close()
    return tmp_path


def recorded(folder: Path) -> list[Event | None]:
    return list(read_events(folder / "events.jsonl"))


@pytest.mark.parametrize("lost_lines", [0, 1, 2])
def test_conclusions_that_were_not_written_any_more_are_drawn_again(ended: Path, lost_lines: int) -> None:
    whole = recorded(ended)
    assert [type(event) for event in whole[-4:]] == [CommandEnded, StateChanged, Exited, VerdictChanged]
    path = ended / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) - lost_lines]) + (lines[-1][:40] if lost_lines else b""))
    again = stream(ended)
    again.close()
    assert [event for event in recorded(ended) if event is not None] == whole
    assert again.model.state == "crashed"


def test_it_knows_which_lines_were_told(ended: Path) -> None:
    again = stream(ended)
    assert again.last_line_number == 31
    again.begin_attempt()
    assert again.last_line_number == 0
    again.close()


def test_a_closed_attempt_is_not_judged_again(ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = stream(ended)
    one.publish(TreeEnded(**one.stamp()))
    one.close()
    before = recorded(ended)

    def refuse(*_: object) -> None:
        raise AssertionError("a day of it takes seconds")

    monkeypatch.setattr("vllm_probes.keeper.stream.judge", refuse)
    again = stream(ended)
    again.close()
    assert (again.model.state, again.attempt) == ("crashed", 1)
    assert recorded(ended) == before
