"""The demo ends in a verdict that names the worker which its own processes drew."""

from pathlib import Path

import pytest

from tests.conftest import Spawn
from tests.kept import View, started
from vllm_probes import commands
from vllm_probes.demo import demo_command
from vllm_probes.events import StacksCaptured, VerdictChanged
from vllm_probes.keeper.client import connect


@pytest.fixture(autouse=True)
def _own_state(state_home: Path, spawned: Spawn) -> None:
    """None of the user's sessions, and no keeper that outlives the test."""


async def test_the_worker_that_takes_a_lock_twice_is_named() -> None:
    folder, _ = started([*demo_command(), "--pace", "20"], "demo")
    view = View(await connect(folder))
    verdict = await view.until(VerdictChanged, lambda event: event.health == "stalled", wait_s=60)
    assert verdict.kind == "rank_absent"
    (culprit,) = verdict.culprits
    assert culprit.doing == "lock"
    assert culprit.frame is not None
    assert culprit.frame.startswith("_condense (")
    assert culprit.process == f"Worker_TP{culprit.rank}"
    assert (await view.ask(commands.CaptureStacks(id=1)))[0]
    captured = await view.until(StacksCaptured, lambda event: event.reason == "key")
    held = [
        file.process
        for file in captured.stacks
        for one in file.threads
        for frame in one.frames
        if frame.function == "_condense"
    ]
    assert held == [culprit.process]
    assert (await view.ask(commands.Stop(id=2, kill=True)))[0]
    await view.close()
