"""What many tests need: a home of their own, processes that never outlive a test, deadlines, and a real vLLM."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
from hypothesis import settings

from tests.real_vllm import RealVllm, provision
from tests.terminal import Terminal

POLL_S = 0.02
PROGRAM = [sys.executable, "-m", "vllm_tui"]
Open = Callable[..., Terminal]

settings.register_profile("patient", deadline=None)  # how long an example takes says more of the host than of the code
settings.load_profile("patient")


class Spawn(Protocol):
    def __call__(self, argv: list[str], **popen_options: Any) -> subprocess.Popen[bytes]: ...


class WaitFor(Protocol):
    def __call__(self, predicate: Callable[[], Any], timeout_s: float = 10.0, message: str = ...) -> Any: ...


@pytest.fixture
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty XDG state folder, so that no test sees or touches the sessions of the user."""
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def wait_for() -> WaitFor:
    """`wait_for(predicate, timeout_s, message)` polls, returns the first true value, or fails with the message."""

    def wait(predicate: Callable[[], Any], timeout_s: float = 10.0, message: str = "it never became true") -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := predicate()):
            if time.monotonic() > deadline:
                pytest.fail(f"after {timeout_s:g} s: {message}")
            time.sleep(POLL_S)
        return value

    return wait


@pytest.fixture
def async_wait_for() -> Callable[..., Any]:
    """`await async_wait_for(predicate, timeout_s, message)`: the same, while the event loop goes on."""

    async def wait(predicate: Callable[[], Any], timeout_s: float = 10.0, message: str = "it never became true") -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := predicate()):
            if time.monotonic() > deadline:
                pytest.fail(f"after {timeout_s:g} s: {message}")
            await asyncio.sleep(POLL_S)
        return value

    return wait


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spawn]:
    """`spawned(argv, **popen_options)` starts a process in a session of its own; the test's end kills its whole tree.

    What the test starts by other ways (a keeper, a shim) is ended too: it inherits a mark in its environment.
    """
    mark_name, mark = "VTUI_TEST_MARK", uuid.uuid4().hex
    monkeypatch.setenv(mark_name, mark)
    started: list[subprocess.Popen[bytes]] = []

    def spawn(argv: list[str], **popen_options: Any) -> subprocess.Popen[bytes]:
        options = {"start_new_session": True, "stdin": subprocess.DEVNULL} | popen_options
        # The environment is given when the process starts, so one that the test made for it needs the mark as well.
        options["env"] = (options.get("env") or os.environ) | {mark_name: mark}
        started.append(subprocess.Popen(argv, **options))
        return started[-1]

    yield spawn
    _kill_leftovers(mark.encode(), {process.pid for process in started})
    for process in started:
        process.wait(10)


def _kill_leftovers(mark: bytes, session_ids: set[int]) -> None:
    """Kill until nothing is left: a dying process may have just forked. A title may have erased the mark."""
    deadline = time.monotonic() + 10
    while (leftovers := _leftovers(mark, session_ids)) and time.monotonic() < deadline:
        session_ids |= {session_id for _, session_id in leftovers} - {os.getsid(0)}
        for pid, _ in leftovers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _leftovers(mark: bytes, session_ids: set[int]) -> list[tuple[int, int]]:
    """Pid and session id of every living process that carries the mark or is in one of the sessions."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):
            session_id = os.getsid(pid)
            own = session_id in session_ids or mark in Path(f"/proc/{pid}/environ").read_bytes()
            if own and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append((pid, session_id))
    return found


@pytest.fixture
def nobody() -> list[str]:
    """What to write before a command so that another user runs it."""
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    if subprocess.run([*become, sys.executable, "-c", "import vllm_probes"], capture_output=True).returncode:
        pytest.skip("another user may not read this virtual environment")
    return become


@pytest.fixture
def open_terminal(state_home: Path, spawned: Spawn) -> Iterator[Open]:
    """Start the program on a pseudo-terminal; what it starts is ended with the test (by `spawned`)."""
    opened: list[Terminal] = []

    def start(*arguments: str, **options: Any) -> Terminal:
        opened.append(Terminal([*PROGRAM, *arguments], os.environ, **options))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytest.fixture(scope="session")
def real_vllm() -> RealVllm:
    """Real vLLM 0.32 on the CPU; for tests marked `vllm`, since the first use installs it."""
    return provision()
