"""Before the first signal of a stop everybody's stacks are taken, for two seconds at most."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Spawn
from tests.kept import View, started
from tests.test_stream import stream
from vllm_probes import commands
from vllm_probes.events import ProcessesSampled, SignalSent, StacksCaptured, StopRequested, TreeEnded
from vllm_probes.judges.rules import load_rules
from vllm_probes.keeper import course as courses
from vllm_probes.keeper.attempts import first_attempt
from vllm_probes.keeper.client import connect
from vllm_probes.keeper.course import Course
from vllm_probes.keeper.folder import Launch, SessionFolder, create
from vllm_probes.launch.spec import LaunchSpec

WAITS = [sys.executable, "-c", "import time\ndef stand_still():\n time.sleep(100)\nstand_still()"]


@pytest.fixture(autouse=True)
def _own_state(state_home: Path, spawned: Spawn) -> None:
    """None of the user's sessions, and no keeper that outlives the test."""


@pytest.mark.parametrize("command", [commands.Stop(id=1), commands.Stop(id=1, kill=True), commands.Relaunch(id=1)])
async def test_stacks_are_taken_before_the_first_signal(command: commands.Command) -> None:
    view = View(await connect(started(WAITS, "night")[0], headless=True))
    rows = (await view.until(ProcessesSampled)).rows
    assert (await view.ask(command))[0]
    await view.until(StopRequested)
    captured = await view.until(StacksCaptured)
    assert captured.reason == "stop"
    assert {stack.pid for stack in captured.stacks} == {row.pid for row in rows}
    functions = [frame.function for stack in captured.stacks for one in stack.threads for frame in one.frames]
    assert "stand_still" in functions
    first = await view.until(SignalSent)
    assert first.mono >= captured.mono
    assert first.signal == ("SIGKILL" if command == commands.Stop(id=1, kill=True) else "SIGINT")
    await view.until(TreeEnded)
    await view.close()


class Stopped:
    """A course whose look at stacks never ends."""

    def __init__(self, folder: SessionFolder) -> None:
        self.stream = stream(folder.path)
        self.looks = 0
        self._tasks: list[asyncio.Future[None]] = []
        self.course = Course(self.stream, folder, folder.launch(), load_rules(), self._start, lambda: None)

    def _start(self, work: Coroutine[Any, Any, Any]) -> Any:
        self._tasks.append(asyncio.ensure_future(work))
        return self._tasks[-1]

    async def begin(self) -> None:
        await self.course.begin()
        assert self.course.watch
        self.course.watch.look_at_processes()
        self.course.watch.capture_stacks = self._never  # type: ignore[assignment, method-assign]

    async def _never(self, reason: str, *, timeout_s: float) -> StacksCaptured:
        self.looks += 1
        await asyncio.Event().wait()
        raise AssertionError

    def signals(self) -> list[str]:
        attempt = self.stream.model.attempt
        return [one.signal for one in attempt.signals] if attempt else []

    async def end(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.course.close()
        self.stream.close()


@pytest.fixture
async def stopped() -> AsyncIterator[Stopped]:
    argv = ["sleep", "100"]
    folder = create(Launch(spec=LaunchSpec(argv=argv, env=dict(os.environ), cwd="/")), command=argv, name="night")
    first_attempt(folder, folder.launch()).start()
    one = Stopped(folder)
    await one.begin()
    yield one
    one.course.stop("key", kill=True)
    await one.end()


async def test_a_look_that_does_not_end_is_not_waited_for(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch, async_wait_for: Callable[..., Any]
) -> None:
    monkeypatch.setattr(courses, "LAST_LOOK_S", 0.3)
    stopped.course.stop("key")
    await async_wait_for(lambda: stopped.signals() == ["SIGINT"])
    assert stopped.looks == 1


async def test_a_kill_that_is_asked_for_meanwhile_is_not_delayed(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch, async_wait_for: Callable[..., Any]
) -> None:
    monkeypatch.setattr(courses, "LAST_LOOK_S", 1000.0)
    stopped.course.stop("key")
    await async_wait_for(lambda: stopped.looks == 1)
    assert stopped.signals() == []
    assert stopped.course.stop("key", kill=True) == "Killing what is left."
    await async_wait_for(lambda: stopped.signals() == ["SIGKILL"])
