"""A probe in the app: its key, and what came of it."""

from pathlib import Path
from typing import Any

import pytest

from tests.ui_source import SIZES, Script, running, screen_text, serving, shows, started, until
from vllm_probes.commands import Probe
from vllm_probes.events import ProbeFinished
from vllm_probes.rows import Light

OK: list[Any] = ["health", "metrics"]


def finished(script: Script, at: float, probe: Light) -> ProbeFinished:
    lights = [Light(name=name, outcome="ok", status=200, latency_s=0.002, said="answered 200") for name in OK]
    return ProbeFinished(**script.stamp(at), url="http://127.0.0.1:8000", deadline_s=10, lights=[*lights, probe])


@pytest.mark.parametrize("size", SIZES)
async def test_what_came_of_it_is_told_and_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    script = Script()
    source = serving(script, tmp_path)
    async with running(source, tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("p")
        await until(pilot, lambda: source.sent == [Probe()])
        await shows(app, pilot, "Asking for one token")
        source.play(finished(script, 59, Light(name="probe", outcome="timeout", said="no answer within 10 s")))
        await shows(app, pilot, "✖ Probe: The front end answers, the engine does not.", "probe no answer")
        await pilot.press("D")
        await shows(app, pilot, "Probe of http://127.0.0.1:8000", "timeout: no answer within 10 s")


async def test_a_server_that_serves_is_no_alarm_and_soon_forgotten(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    served = Light(name="probe", outcome="ok", status=200, latency_s=0.031, said="answered 200")
    source.play(finished(script, 59, served))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "• Probe: It serves. health ok 0.002 s · metrics ok 0.002 s · probe ok 0.031 s")
    async with running(serving(script, tmp_path), tmp_path, now=200) as (app, pilot):
        app.source.play(finished(script, 59, served))  # type: ignore[attr-defined]
        await shows(app, pilot, "SERVING")
        await pilot.press("D")
        await shows(app, pilot, "together", "It serves.")
        assert "Probe: It serves" not in screen_text(app)


async def test_the_keeper_says_why_not(tmp_path: Path) -> None:
    source = serving(Script(), tmp_path)
    source.refusal = "Nothing that could be asked listens."
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "SERVING")
        await pilot.press("p")
        await shows(app, pilot, "Nothing that could be asked listens.")


async def test_before_there_is_a_server_nobody_is_asked(tmp_path: Path) -> None:
    source = started(Script(), tmp_path)
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "STARTING")
        await pilot.press("p")
        await shows(app, pilot, "No server of this session has been seen yet.")
        assert source.sent == []
