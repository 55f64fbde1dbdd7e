"""What a relaunch waits for, with a real keeper, real processes and a real port."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from tests.kept import View, started
from vllm_probes import commands
from vllm_probes.events import AttemptStarted, GateChanged, ModelRestored, StopRequested, TreeEnded
from vllm_probes.keeper.client import connect
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.sensors import ports, tree

TRACER = """
import ctypes, sys, time
SEIZE, TRACE_EXIT = 0x4206, 0x40
print(ctypes.CDLL(None).ptrace(SEIZE, int(sys.argv[1]), None, ctypes.c_void_p(TRACE_EXIT)), flush=True)
time.sleep(100)
"""
"""Wants to see a process exit and then looks away: not even SIGKILL ends it, as in a driver that hangs."""
LISTENER = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(100)"


@pytest.fixture(autouse=True)
def _own_state(state_home: Path, spawned: Spawn) -> None:
    """None of the user's sessions, and no keeper that outlives the test."""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path, port: int) -> SessionFolder:
    """What looks like `vllm serve --port PORT`, but never opens its port."""
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o755)
    return started([str(program), "serve", "m", "--port", str(port)], "night")[0]


def occupy(spawned: Spawn, wait_for: WaitFor, port: int) -> "subprocess.Popen[bytes]":
    holder = spawned([sys.executable, "-c", LISTENER, str(port)])
    wait_for(lambda: ports.is_taken(port))
    return holder


@pytest.fixture
async def view(server: SessionFolder) -> AsyncIterator[View]:
    """Of a server that is to be started again."""
    view = View(await connect(server))
    await view.until(ModelRestored)
    yield view
    await view.close()


def waits(event: GateChanged) -> bool:
    return bool(event.holds)


async def test_nothing_in_the_way_is_not_waited_for(view: View) -> None:
    assert (await view.ask(commands.Relaunch(id=1)))[0]
    assert (await view.until(AttemptStarted)).attempt == 2


async def test_a_taken_port_is_named_and_waited_for(view: View, spawned: Spawn, wait_for: WaitFor, port: int) -> None:
    holder = occupy(spawned, wait_for, port)
    assert (await view.ask(commands.Relaunch(id=1)))[0]
    [hold] = (await view.until(GateChanged, waits)).holds
    assert (hold.kind, hold.what, hold.pid) == ("port", f"port {port}", holder.pid)
    assert (hold.session, hold.hint) == (None, f"kill {holder.pid} ends it")
    holder.kill()
    assert (await view.until(GateChanged)).holds == []
    assert (await view.until(AttemptStarted)).attempt == 2


async def test_who_does_not_want_to_wait_starts_now(view: View, spawned: Spawn, wait_for: WaitFor, port: int) -> None:
    occupy(spawned, wait_for, port)
    assert await view.ask(commands.StartNow(id=1)) == (False, "Nothing waits to be started.")
    assert (await view.ask(commands.Relaunch(id=2)))[0]
    await view.until(GateChanged, waits)
    assert (await view.ask(commands.StartNow(id=3)))[0]
    assert (await view.until(AttemptStarted)).attempt == 2


async def test_a_relaunch_that_waits_can_be_called_off(
    view: View, server: SessionFolder, spawned: Spawn, wait_for: WaitFor, port: int
) -> None:
    occupy(spawned, wait_for, port)
    assert (await view.ask(commands.Relaunch(id=1)))[0]
    await view.until(GateChanged, waits)
    assert await view.ask(commands.Stop(id=2)) == (True, "It will not be started again.")
    assert (await view.until(StopRequested)).by == "key"
    assert (await view.until(GateChanged)).holds == []
    assert not server.attempt(2).with_suffix(".pid").exists()
    assert (await view.ask(commands.Stop(id=3)))[0] is False


async def test_what_another_session_of_ours_holds_can_be_ended(view: View, wait_for: WaitFor, port: int) -> None:
    _, shim_pid = started([sys.executable, "-c", LISTENER, str(port)], "day")
    wait_for(lambda: ports.is_taken(port))
    assert (await view.ask(commands.Relaunch(id=1)))[0]
    [hold] = (await view.until(GateChanged, waits)).holds
    assert (hold.session, hold.hint) == ("day", None)
    assert (await view.ask(commands.EndHolders(id=2)))[0]
    assert (await view.until(AttemptStarted)).attempt == 2
    wait_for(lambda: not tree.is_running(shim_pid))


async def test_what_is_not_ours_is_not_ended(view: View, spawned: Spawn, wait_for: WaitFor, port: int) -> None:
    holder = occupy(spawned, wait_for, port)
    assert (await view.ask(commands.Relaunch(id=1)))[0]
    await view.until(GateChanged, waits)
    assert (await view.ask(commands.EndHolders(id=2)))[0] is False
    assert holder.poll() is None


async def test_what_no_signal_ends_is_named_and_waited_for(view: View, server: SessionFolder, spawned: Spawn) -> None:
    command = json.loads(server.attempt(1).with_suffix(".pid").read_text())["command"]
    tracer = spawned([sys.executable, "-c", TRACER, str(command)], stdout=subprocess.PIPE)
    assert tracer.stdout
    assert tracer.stdout.readline() == b"0\n"
    assert (await view.ask(commands.Stop(id=1, kill=True)))[0]
    [survivor] = (await view.until(TreeEnded)).survivors
    assert survivor.pid == command
    assert (await view.ask(commands.Relaunch(id=2)))[0]
    [hold] = (await view.until(GateChanged, waits)).holds
    assert (hold.kind, hold.pid) == ("process", command)
    assert "no signal ends it" in (hold.hint or "")
    tracer.kill()
    assert (await view.until(AttemptStarted)).attempt == 2


def test_a_port_is_taken_by_who_listens_and_by_nobody_else(port: int) -> None:
    assert not ports.is_taken(port)
    with socket.create_server(("127.0.0.1", port)) as server:
        assert ports.is_taken(port)
        assert ports.listener(port) == os.getpid()
        with socket.create_connection(server.getsockname()) as client:
            own_port = client.getsockname()[1]
            assert not ports.is_taken(own_port)
            assert ports.client_ports(port) == {own_port}
    assert not ports.is_taken(port)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a network namespace")
def test_connections_in_another_network_namespace(spawned: Spawn, port: int) -> None:
    code = (
        "import fcntl, socket, struct, sys, time\n"
        "server = socket.socket()\n"
        "fcntl.ioctl(server, 0x8914, struct.pack('16sH14x', b'lo', 1))\n"  # SIOCSIFFLAGS, IFF_UP: netdevice(7)
        f"server.bind(('127.0.0.1', {port})); server.listen()\n"
        "client = socket.create_connection(server.getsockname())\n"
        "print(client.getsockname()[1], flush=True); time.sleep(60)"
    )
    inside = spawned(["unshare", "--net", sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert inside.stdout
    own_port = int(inside.stdout.readline())
    assert ports.client_ports(port) == set()
    assert ports.client_ports(port, Path(f"/proc/{inside.pid}/net")) == {own_port}


def test_a_listener_on_ipv6_counts() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert ports.is_taken(server.getsockname()[1])
