"""What a session tells of stacks when it begins, and what it shows where py-spy cannot read its processes.

A script stands in py-spy's place, and says what the real one was seen to say without the right to trace.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from tests.hooked import TWO_WAIT, Fake, Two, page
from tests.kept import View, started
from tests.test_stack_rungs import DENIED, TOO_OLD, saying
from tests.test_stream import stream
from tests.titled_tree import server_argv, start_tree
from vllm_probes import commands
from vllm_probes.events import AttemptStarted, ProcessesSampled, StacksCaptured, TroubleNoted
from vllm_probes.keeper import attached, rungs
from vllm_probes.keeper.client import connect
from vllm_probes.keeper.rungs import tell_rungs
from vllm_probes.launch.levers import HOOK
from vllm_probes.model import SessionModel
from vllm_probes.rows import ProcessRow
from vllm_probes.sensors import foreign
from vllm_probes.sensors.dumps import has_hook

pytest_plugins = ["tests.stack_fixtures"]

Tried = Callable[..., SessionModel]
Told = Callable[..., list[str]]
REAL = 'exec $REAL "$@"'


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tried:
    """`tried(pids)`: a session of a run with these processes, when it has tried how their stacks can be had."""
    monkeypatch.setattr(rungs, "TRY_EVERY_S", 0.01)

    def tell(*pids: int, bare: bool = False, foreign: bool = False) -> SessionModel:
        one = stream(tmp_path)
        one.begin_attempt()
        one.publish(AttemptStarted(**one.stamp(), command=["x"], levers=[], log="attempt-1.log", shim_pid=1))
        rows = [ProcessRow(pid=pid, parent_pid=1, started=0, process=f"P{pid}", foreign=foreign) for pid in pids]
        one.publish(ProcessesSampled(**one.stamp(), rows=rows))
        asyncio.run(tell_rungs(one, bare=bare))
        one.close()
        return one.model

    return tell


@pytest.fixture
def told(tried: Tried) -> Told:
    """`told(pids)`: the troubles that such a session tells, each in one text."""

    def tell(*pids: int, **more: bool) -> list[str]:
        return [f"{one.severity}: {one.what} {one.hint}" for one in tried(*pids, **more).troubles]

    return tell


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("script", "py_spy"), [(REAL, True), (saying(DENIED), False)])
def test_the_ways_that_work_are_told(
    script: str, py_spy: bool, bare: bool, two: Two, tried: Tried, fake_py_spy: Fake
) -> None:
    process, _ = two()
    fake_py_spy(script)
    attempt = tried(process.pid, bare=bare).attempt
    assert attempt
    assert attempt.rungs
    assert (attempt.rungs.py_spy, attempt.rungs.hook) == (py_spy, not bare)


def test_who_has_given_the_signal_away_is_not_asked(two: Two, tried: Tried) -> None:
    process, _ = two(f"import signal\nsignal.signal(signal.SIGUSR2, signal.SIG_DFL)\n{TWO_WAIT}")
    attempt = tried(process.pid).attempt
    assert attempt
    assert attempt.rungs
    assert (attempt.rungs.py_spy, attempt.rungs.hook) == (True, False)


def test_nothing_is_known_of_a_run_that_does_not_tell(two: Two, tried: Tried, fake_py_spy: Fake) -> None:
    process, _ = two()
    fake_py_spy(saying("Error: Odd"))
    attempt = tried(process.pid).attempt
    assert attempt
    assert attempt.rungs is None


def test_nothing_is_told_where_it_works(two: Two, told: Told, fake_py_spy: Fake, tmp_path: Path) -> None:
    process, _ = two()
    fake_py_spy('echo $5 >> $HERE/asked; exec $REAL "$@"')
    assert told(process.pid) == []
    assert (tmp_path / "asked").read_text() == f"{process.pid}\n", "it is tried once"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DENIED, "may not be read: run `sudo "),
        (TOO_OLD, "Python 3.13.0, which this py-spy does not know: `pip install"),
    ],
)
def test_an_obstacle_is_told_once_with_its_remedy(
    text: str, said: str, two: Two, told: Told, fake_py_spy: Fake
) -> None:
    first, second = two()[0], two()[0]
    fake_py_spy(saying(text))
    [trouble] = told(first.pid, second.pid)
    assert trouble.startswith(f"warning: P{first.pid} (pid {first.pid}) ")
    assert said in trouble
    assert trouble.endswith("asked to write their stacks down (SIGUSR2), which they do while they stand still.")


def test_py_spy_is_missing(two: Two, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    process, _ = two()
    monkeypatch.setattr("vllm_probes.sensors.py_spy.find_py_spy", lambda: None)
    [trouble] = told(process.pid)
    assert "py-spy is missing: `pip install py-spy`" in trouble


def test_yama_may_let_py_spy_into_hooked_processes_alone(
    two: Two, spawned: Spawn, told: Told, fake_py_spy: Fake
) -> None:
    shell, (process, _) = spawned(["sleep", "inf"]), two()
    fake_py_spy(f'[ $5 = {process.pid} ] && exec $REAL "$@"\n{saying(DENIED)}')
    assert told(shell.pid, process.pid) == []
    assert told(shell.pid) == []
    [trouble] = told(shell.pid, bare=True)
    assert trouble.endswith("a hang is known only from outside.")


def test_processes_that_are_not_ours_are_left_alone(two: Two, told: Told, fake_py_spy: Fake) -> None:
    process, _ = two()
    fake_py_spy(saying(DENIED))
    assert told(process.pid, foreign=True) == []


@pytest.mark.parametrize("text", ["Error: Failed to find python version from target process", "Error: Odd"])
def test_a_process_that_does_not_tell_is_tried_again(
    text: str, two: Two, told: Told, fake_py_spy: Fake, tmp_path: Path
) -> None:
    process, _ = two()
    fake_py_spy(f'echo >> $HERE/asked; [ $(wc -l < $HERE/asked) = 3 ] && exec $REAL "$@"\n{saying(text)}')
    assert told(process.pid) == []
    assert len((tmp_path / "asked").read_text()) == 3


@pytest.fixture
def denied(
    state_home: Path, spawned: Spawn, fake_py_spy: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keepers run with a Python beside which there is a py-spy that may read nothing."""
    os.symlink(sys.executable, tmp_path / "python")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    fake_py_spy(saying(DENIED))


@pytest.mark.usefixtures("denied")
async def test_a_whole_session() -> None:
    folder, _ = started([sys.executable, "-c", TWO_WAIT], "night")
    view = View(await connect(folder))
    trouble = await view.until(TroubleNoted)
    assert "may not be read" in trouble.what
    assert (await view.ask(commands.CaptureStacks(id=1)))[0]
    [stack] = (await view.until(StacksCaptured)).stacks
    assert (stack.rung, stack.error) == ("faulthandler", None)
    assert "wait_for_work" in [frame.function for frame in stack.threads[0].frames]
    assert (folder.path / str(stack.file)).is_file()
    await view.close()


@pytest.mark.usefixtures("denied")
async def test_the_run_of_somebody_else_is_never_signalled(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    """Though it has the hook: another session has started it."""
    argv = server_argv(tmp_path, "--port", "8123")
    server = start_tree(spawned, wait_for, argv, env={"PYTHONPATH": str(HOOK)}, cwd=tmp_path)
    assert has_hook(server.root.pid)
    view = View(await connect(attached.watch_run(foreign.run_of(server.root.pid), None)))
    trouble = await view.until(TroubleNoted, lambda event: "may not be read" in event.what)
    assert trouble.hint.endswith("a hang is known only from outside.")
    assert (await view.ask(commands.CaptureStacks(id=1)))[0]
    stacks = (await view.until(StacksCaptured)).stacks
    assert len(stacks) > 1
    assert {stack.rung for stack in stacks} == {"proc"}
    assert {page(stack.pid) for stack in stacks if has_hook(stack.pid)} == {b""}
    await view.close()
