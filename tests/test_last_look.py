"""Before the first signal of a stop everybody's stacks are taken, for two seconds at most."""

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Spawn
from tests.hooked import Fake
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

pytest_plugins = ["tests.stack_fixtures"]

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
    """A course that is going to be stopped."""

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

    def look_for_ever(self) -> None:
        """Its look at stacks never ends."""
        assert self.course.watch
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
def argv() -> list[str]:
    return ["sleep", "100"]


@pytest.fixture
async def stopped(argv: list[str]) -> AsyncIterator[Stopped]:
    spec = LaunchSpec(argv=argv, env=dict(os.environ), cwd="/")
    folder = create(Launch(spec=spec, bare=True), command=argv, name="night")
    first_attempt(folder, folder.launch()).start()
    one = Stopped(folder)
    await one.begin()
    yield one
    one.course.stop("key", kill=True)
    await one.end()


async def test_a_look_that_does_not_end_is_not_waited_for(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch, async_wait_for: Callable[..., Any]
) -> None:
    stopped.look_for_ever()
    monkeypatch.setattr(courses, "LAST_LOOK_S", 0.3)
    stopped.course.stop("key")
    await async_wait_for(lambda: stopped.signals() == ["SIGINT"])
    assert stopped.looks == 1


async def test_a_kill_that_is_asked_for_meanwhile_is_not_delayed(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch, async_wait_for: Callable[..., Any]
) -> None:
    stopped.look_for_ever()
    monkeypatch.setattr(courses, "LAST_LOOK_S", 1000.0)
    stopped.course.stop("key")
    await async_wait_for(lambda: stopped.looks == 1)
    assert stopped.signals() == []
    assert stopped.course.stop("key", kill=True) == "Killing what is left."
    await async_wait_for(lambda: stopped.signals() == ["SIGKILL"])


TWO_STAND = f"{shlex.join(WAITS)} & {shlex.join(WAITS)} & wait"
ONE_HANGS = '[ "$5" = "$(cat $HERE/hangs)" ] && exec sleep 600\nexec "$REAL" "$@"'


@pytest.mark.parametrize("argv", [["sh", "-c", TWO_STAND]])
async def test_one_that_does_not_answer_does_not_hide_the_others(
    stopped: Stopped,
    fake_py_spy: Fake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    async_wait_for: Callable[..., Any],
) -> None:
    watch = stopped.course.watch
    assert watch
    await async_wait_for(lambda: watch.look_at_processes() or len(watch.rows) == 3)
    root, silent, other = sorted(watch.rows)
    await async_wait_for(lambda: b"stand_still" in Path(f"/proc/{other}/cmdline").read_bytes())
    (tmp_path / "hangs").write_text(str(silent))
    fake_py_spy(ONE_HANGS)
    monkeypatch.setattr(courses, "LAST_LOOK_S", 10.0)
    monkeypatch.setattr(courses, "PY_SPY_S", 2.0)
    stopped.course.stop("key")
    await async_wait_for(lambda: stopped.signals()[:1] == ["SIGINT"])
    [captured] = stopped.stream.model.stacks
    found = {stack.pid: stack for stack in captured.stacks}
    assert str(found[silent].error).endswith("gave no stacks within 2 s: see its state.")
    assert [thread.state for thread in found[silent].threads] == ["S"]
    assert "stand_still" in [frame.function for thread in found[other].threads for frame in thread.frames]
    assert sorted(found) == [root, silent, other]
