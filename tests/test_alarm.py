"""A stalled verdict calls the user, once a hang, and never for what had happened before."""

from pathlib import Path

import pytest

from tests.hang_stacks import verdict
from tests.ui_source import START_MONO, Script, ScriptedSource, serving, shows
from vllm_probes.events import Event, ModelRestored, VerdictChanged
from vllm_probes.model import SessionModel, snapshot
from vllm_tui.alarm import Alarm, Notify
from vllm_tui.app import VllmTui


def calls(notify: Notify, *events: Event) -> list[str]:
    """What is written to the terminal for these events of an attempt."""
    alarm, model = Alarm(notify), SessionModel(name="night")
    found = []
    for event in (Script().attempt_started(), *events):
        model.apply(event)
        found.append(alarm.take(event, model))
    return [text for text in found if text]


def test_it_rings_once_a_hang() -> None:
    script = Script()
    wavers = [verdict(script, at, health) for at, health in ((50, "suspect"), (53, "stalled"), (56, "suspect"))]
    again = [verdict(script, 59), script.tree(at=60)]
    assert calls("bell", *wavers, *again) == ["\a"]
    assert calls("bell", *wavers, VerdictChanged(**script.stamp(58), health="ok"), *again) == ["\a", "\a"]
    assert calls("bell", wavers[0]) == []


def test_another_attempt_may_hang_as_well() -> None:
    first, second = Script(), Script(attempt=2)
    hangs = verdict(first, 50), second.attempt_started(60), verdict(second, 90)
    assert calls("bell", *hangs) == ["\a", "\a"]


def test_a_notification_has_the_sentence_and_nothing_that_a_terminal_obeys() -> None:
    assert calls("osc9", verdict(Script(), 50, summary="Worker_TP3\x1b]0;x\a waits.")) == [
        "\x1b]9;vLLM stalled (night): Worker_TP3·]0;x· waits.\a"
    ]
    assert calls("off", verdict(Script(), 50)) == []


def test_what_was_so_before_calls_nobody() -> None:
    script, model = Script(), SessionModel()
    model.apply(script.attempt_started())
    model.apply(verdict(script, 50))
    restored = ModelRestored(**script.stamp(60), model=snapshot(model))
    alarm = Alarm("bell")
    assert alarm.take(restored, model) == ""
    assert alarm.take(script.tree(at=61), model) == ""


@pytest.mark.parametrize(("notify", "expected"), [("bell", ["\a"]), ("off", [])])
async def test_the_app_writes_it_to_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notify: Notify, expected: list[str]
) -> None:
    script = Script()
    source: ScriptedSource = serving(script, tmp_path)
    app = VllmTui(source, folder=tmp_path, clock=lambda: START_MONO + 60, notify=notify)
    async with app.run_test(size=(120, 36)) as pilot:
        await shows(app, pilot, "SERVING")
        written: list[str] = []
        assert app._driver is not None
        monkeypatch.setattr(app._driver, "write", written.append)
        source.play(verdict(script, 58))
        await shows(app, pilot, "STALLED")
        assert [text for text in written if text == "\a"] == expected
