"""Lines that travel: what is written is what is read, and what is not known is skipped."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes import commands, events, rows

STAMP = events.Stamp(time=1700000000.5, mono=12.25, node="n1", attempt=1)


def test_a_line_carries_the_common_fields_and_its_kind() -> None:
    line = events.encode(events.StateChanged(**STAMP, state="idle"))
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "event": "state_changed",
        "time": 1700000000.5,
        "mono": 12.25,
        "node": "n1",
        "attempt": 1,
        "state": "idle",
        "reason": None,
    }


def test_a_finding_writes_class_and_every_field() -> None:
    finding = rows.Finding(
        rule=None, class_="other", role="cause", severity="error", file="f", line_number=3, line="x", why="", fix=""
    )
    written = json.loads(events.encode(events.Exited(**STAMP, code=1, signal=None, findings=[finding])))
    assert written["findings"][0] == {
        "rule": None,
        "class": "other",
        "role": "cause",
        "severity": "error",
        "file": "f",
        "line_number": 3,
        "line": "x",
        "why": "",
        "fix": "",
    }


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'{"event":"from_the_future","time":1}', b'{"event":"state_changed"}', b"\xff\xfe"]
)
def test_lines_that_cannot_be_read_give_none(line: bytes) -> None:
    assert events.decode(line) is None
    assert commands.decode(line) is None


def test_unknown_fields_are_skipped() -> None:
    line = json.dumps({"event": "state_changed", **STAMP, "state": "idle", "colour": "blue"}).encode()
    assert events.decode(line) == events.StateChanged(**STAMP, state="idle")


@given(st.text(), st.floats(0, 1e12), st.integers(0, 1 << 62))
def test_every_text_survives_the_way_there_and_back(text: str, number: float, size: int) -> None:
    row = rows.ProcessRow(pid=1, parent_pid=0, started=number, process=text, read_bytes=size)
    event = events.ProcessesSampled(**STAMP, rows=[row], gone=[size])
    assert events.decode(events.encode(event)) == event


def test_every_event_is_an_observation_a_conclusion_or_never_recorded() -> None:
    assert set(events.Event.__subclasses__()) == {
        events.Observation,
        events.Conclusion,
        events.ModelRestored,
        events.CommandAnswered,
    }


def test_every_event_has_a_tag_of_its_own_and_is_offered() -> None:
    kinds = [*events.Observation.__subclasses__(), *events.Conclusion.__subclasses__()]
    assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds)
    assert {kind.__name__ for kind in kinds} <= set(events.__all__)


@pytest.mark.parametrize(
    "command",
    [
        commands.Hello(headless=True),
        commands.Stop(id=4, kill=True, by="signal"),
        commands.Relaunch(id=2, levers=["eager"], clean=True),
        commands.CaptureStacks(id=9),
    ],
)
def test_commands_survive_the_way_there_and_back(command: commands.Command) -> None:
    assert commands.decode(commands.encode(command)) == command


def test_events_cannot_be_changed() -> None:
    event = events.StateChanged(**STAMP, state="idle")
    with pytest.raises(AttributeError):
        event.state = "serving"  # type: ignore[misc]
    assert msgspec.structs.replace(event, state="serving").state == "serving"
