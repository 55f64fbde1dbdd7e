"""Sessions that watch what somebody else started: real keepers on real process trees, which are never touched."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import PROGRAM, Spawn, WaitFor
from tests.kept import View
from tests.titled_tree import PORT, TitledTree, server_argv, start_tree
from vllm_probes import commands
from vllm_probes.demo import demo_command
from vllm_probes.events import (
    AttemptStarted,
    CommandEnded,
    KeeperStarted,
    ModelRestored,
    ProcessesSampled,
    StacksCaptured,
    StateChanged,
    TreeEnded,
    TroubleNoted,
    decode,
)
from vllm_probes.keeper import attached, catalogue
from vllm_probes.keeper.client import connect
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.model import SessionModel, restore
from vllm_probes.sensors import foreign, tree

LOGGED = "(APIServer pid=1) INFO 11-21 20:53:14 [x.py:1] vLLM server version 0.32.0, serving model m\n"


@pytest.fixture(autouse=True)
def _own_state(state_home: Path, spawned: Spawn) -> None:
    """None of the user's sessions, and no keeper that outlives the test."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "server.log"
    path.write_text(LOGGED)
    return path


@pytest.fixture
def server(spawned: Spawn, wait_for: WaitFor, tmp_path: Path, log: Path) -> TitledTree:
    with log.open("ab") as stream:
        argv = server_argv(tmp_path, "--port", PORT, "--api-key", "sesame")
        return start_tree(spawned, wait_for, argv, cwd=tmp_path, stdout=stream, stderr=stream)


@pytest.fixture
def session(server: TitledTree, wait_for: WaitFor) -> SessionFolder:
    """Its keeper has seen the processes."""
    folder = attached.watch_run(foreign.run_of(server.root.pid), None)
    wait_for(lambda: folder.events.exists() and recorded(folder, ProcessesSampled))
    return folder


@pytest.fixture
async def view(session: SessionFolder) -> AsyncIterator[View]:
    view = View(await connect(session))
    await restored(view)
    yield view
    await view.close()


async def restored(view: View) -> SessionModel:
    return restore(await view.until(ModelRestored))


def recorded(folder: SessionFolder, kind: type[Any]) -> list[Any]:
    lines = folder.events.read_bytes().splitlines()
    return [event for line in lines if isinstance(event := decode(line), kind)]


async def test_what_it_is_told_of_a_run(
    session: SessionFolder, server: TitledTree, log: Path, wait_for: WaitFor
) -> None:
    (started,) = wait_for(lambda: recorded(session, AttemptStarted))
    assert (started.attached_pid, started.attached_user, started.shim_pid) == (server.root.pid, None, None)
    assert (started.log, started.expects_vllm, started.attached_serving) == (str(log), True, False)
    assert started.command[-2:] == ["--api-key", "***"]
    assert session.meta().cwd == str(log.parent)
    rows = wait_for(lambda: [row for event in recorded(session, ProcessesSampled) for row in event.rows])
    assert {row.pid for row in rows} == {server.root.pid, *server.pids.values()}
    assert {row.role for row in rows} == {"api_server", "engine_core", "worker"}
    assert "sesame" not in session.events.read_text() + (session.path / "meta.json").read_text()


async def test_nothing_is_done_to_it(view: View, server: TitledTree, log: Path) -> None:
    pid = server.root.pid
    refusal = f"Not started by this program: stop it with `kill -INT {pid}`; D shows how to take it over."
    for command in (
        commands.Stop(id=1),
        commands.Stop(id=2, kill=True),
        commands.Relaunch(id=3),
        commands.StartNow(id=4),
        commands.EndHolders(id=5),
    ):
        assert await view.ask(command) == (False, refusal)
    assert tree.is_running(pid)
    assert all(map(tree.is_running, server.pids.values()))
    assert tree.read(str(log)).decode() == LOGGED
    assert (await view.ask(commands.CaptureStacks(id=6)))[0]
    captured = await view.until(StacksCaptured)
    assert {file.pid for file in captured.stacks} == {pid, *server.pids.values()}


async def test_its_end_is_told_and_what_it_left(view: View, server: TitledTree, session: SessionFolder) -> None:
    server.root.kill()
    server.root.wait(10)
    ended = await view.until(CommandEnded)
    assert (ended.code, ended.signal, ended.error) == (None, None, attached.GONE)
    assert {ref.pid for ref in ended.leftovers} == set(server.pids.values())
    state = await view.until(StateChanged, lambda event: event.state in ("exited", "crashed"))
    assert (state.state, state.reason) == ("exited", attached.GONE)
    for pid in server.pids.values():
        os.kill(pid, signal.SIGKILL)
    await view.until(TreeEnded)


async def test_workers_stay_when_their_engine_is_killed(view: View, server: TitledTree) -> None:
    server.kill("VLLM::EngineCore")
    gone = await view.until(ProcessesSampled, lambda event: bool(event.gone) or bool(event.rows))
    assert not {server.pids["VLLM::Worker_TP0"], server.pids["VLLM::Worker_TP1"]} & set(gone.gone)


async def test_a_new_keeper_takes_it_up(session: SessionFolder, server: TitledTree, wait_for: WaitFor) -> None:
    first = View(await connect(session))
    (keeper,) = recorded(session, KeeperStarted)
    os.kill(keeper.pid, signal.SIGKILL)
    wait_for(lambda: not session.has_keeper())
    await first.close()
    view = View(await connect(session))
    model = await restored(view)
    assert [attempt.launch.attached_pid for attempt in model.attempts] == [server.root.pid]
    assert (await view.ask(commands.Stop(id=1)))[0] is False
    await view.close()


async def test_watching_can_be_given_up_unless_somebody_else_looks(
    view: View, session: SessionFolder, server: TitledTree, wait_for: WaitFor
) -> None:
    other = View(await connect(session))
    await restored(other)
    assert await view.ask(commands.StopWatching(id=1)) == (
        False,
        "Somebody else looks at it, too: it is watched on.",
    )
    await other.close()
    async with asyncio.timeout(10):
        while not (await view.ask(commands.StopWatching(id=2)))[0]:  # noqa: ASYNC110 - it is another process's event
            await asyncio.sleep(0.02)
    wait_for(lambda: not session.has_keeper())
    assert tree.is_running(server.root.pid)
    (row,) = [row for row in catalogue.rows() if row.name == session.path.name]
    assert (row.alive, row.kept) == (True, False)


async def test_a_pid_that_somebody_else_got_is_not_the_run(
    server: TitledTree, monkeypatch: pytest.MonkeyPatch, wait_for: WaitFor
) -> None:
    monkeypatch.setattr(attached, "start_keeper", lambda folder: None)
    run = foreign.run_of(server.root.pid)
    folder = attached.watch_run(replace(run, start_ticks=run.start_ticks - 1), None)
    assert folder.is_over()
    assert attached.session_of(run) is None
    view = View(await connect(folder))
    (ended,) = wait_for(lambda: recorded(folder, CommandEnded))
    assert (ended.error, ended.leftovers) == (attached.GONE, [])
    wait_for(lambda: recorded(folder, TreeEnded))
    assert tree.is_running(run.pid)
    await view.close()


async def test_a_run_whose_log_is_a_pipe_says_so(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    run = start_tree(spawned, wait_for, server_argv(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder = attached.watch_run(foreign.run_of(run.root.pid), None)
    (trouble, *_) = wait_for(lambda: recorded(folder, TroubleNoted))
    assert trouble.what.startswith("Its log goes through a pipe to ")
    assert f"(pid {os.getpid()})" in trouble.what
    (started,) = recorded(folder, AttemptStarted)
    assert started.log == attached.NO_LOG


# --- the command ------------------------------------------------------------------------------------------------------


class Headless:
    """`vllm-tui attach --headless …` and its lines."""

    def __init__(self, spawned: Spawn, *words: str) -> None:
        self.process = spawned(
            [*PROGRAM, "attach", "--headless", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def until(self, event: str, **fields: Any) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found["event"] == event and all(found.get(name) == value for name, value in fields.items()):
                return found
        assert self.process.stderr
        raise AssertionError(f"no {event}: {self.process.stderr.read().decode()}")

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


def test_two_that_attach_share_a_session_and_a_signal_ends_the_view_alone(
    spawned: Spawn, server: TitledTree, wait_for: WaitFor
) -> None:
    first = Headless(spawned, str(server.pids["VLLM::Worker_TP1"]))
    begun = first.until("session_started")
    first.until("processes_sampled")
    second = Headless(spawned, "--port", PORT)
    assert second.until("session_started")["session"] == begun["session"]
    assert second.interrupt() == 0
    folder = SessionFolder(Path(begun["session"]))
    assert folder.has_keeper()
    assert first.interrupt() == 0
    wait_for(lambda: not folder.has_keeper())
    assert tree.is_running(server.root.pid)
    assert all(map(tree.is_running, server.pids.values()))


def test_the_view_ends_with_the_run(spawned: Spawn, server: TitledTree) -> None:
    view = Headless(spawned, str(server.root.pid))
    view.until("processes_sampled")
    for process in (server.root, *map(psutil.Process, server.pids.values())):
        process.kill()
    assert view.until("command_ended")["error"] == attached.GONE
    assert view.until("exited")["code"] is None
    view.until("tree_ended")
    assert view.process.wait(20) == 0


def test_a_log_of_ones_own_choice(spawned: Spawn, server: TitledTree, tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    other.write_text(LOGGED)
    view = Headless(spawned, str(server.root.pid), "--log", str(other))
    assert view.until("attempt_started")["log"] == str(other)
    assert view.until("log_recorded")["rule"] == "banner"
    again = subprocess.run(
        [*PROGRAM, "attach", "--headless", str(server.root.pid), "--log", str(other)], capture_output=True, text=True
    )
    assert (again.returncode, again.stdout) == (2, "")
    assert "has its log already" in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--headless", "4194305"], 1, "There is no process 4194305 here"),
        (["--headless", "--port", "1"], 1, "Nobody listens on port 1"),
        (["--headless", "1", "--log", "/nowhere/x"], 2, "does not exist"),
        (["--headless", "1", "--log", "/"], 2, "is a directory"),
        (["1"], 2, "This is no terminal"),
    ],
)
def test_bad_input_is_a_sentence(words: list[str], code: int, said: str) -> None:
    done = subprocess.run([*PROGRAM, "attach", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_hangs_already_gets_its_verdict_and_who_it_is(
    spawned: Spawn, wait_for: WaitFor, tmp_path: Path
) -> None:
    log = tmp_path / "demo.log"
    with log.open("wb") as stream:
        demo = spawned([*demo_command(), "--pace", "8"], stdout=stream, stderr=stream)
    wait_for(lambda: b"No available shared memory broadcast block" in log.read_bytes(), 60, "it does not hang")
    view = Headless(spawned, str(demo.pid))
    assert view.until("attempt_started")["attached_serving"] is True
    verdict = view.until("verdict_changed", health="stalled")
    (culprit,) = verdict["culprits"]
    assert (verdict["kind"], culprit["doing"]) == ("rank_absent", "lock")
    assert culprit["frame"].startswith("_condense (")
    assert verdict["evidence"][0]["signal"] == "no tokens"
    assert verdict["evidence"][0]["value"].startswith("for at least ")
