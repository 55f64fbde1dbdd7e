"""Stacks are taken before vLLM gives up by itself: the demo, told of a short time-out."""

from pathlib import Path

import pytest

from tests.conftest import Spawn
from tests.kept import View, started
from vllm_probes import commands
from vllm_probes.demo import demo_command
from vllm_probes.events import DeadlineChanged, StacksCaptured, TimeoutsRead, VerdictChanged
from vllm_probes.keeper.client import connect


async def test_the_last_moment_is_foreseen(state_home: Path, spawned: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "14")
    view = View(await connect(started([*demo_command(), "--pace", "20"], "demo")[0], headless=True))
    read = await view.until(TimeoutsRead)
    assert (read.seconds, read.where) == ({"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": 14.0}, "environment of EngineCore")
    verdict = await view.until(VerdictChanged, lambda event: event.health != "ok", wait_s=60)
    assert verdict.since is not None
    deadline = await view.until(DeadlineChanged)
    assert deadline.gives_up_mono == pytest.approx(verdict.mono - (verdict.time - verdict.since) + 14, abs=0.01)
    captured = await view.until(StacksCaptured, lambda event: event.reason == "deadline")
    assert deadline.gives_up_mono - 10 <= captured.mono < deadline.gives_up_mono
    await view.ask(commands.Stop(id=1, kill=True))
    await view.close()
