"""The program in a real terminal, on commands that are no vLLM: leave, come back, lose the view, lose the keeper."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Open, WaitFor
from vllm_probes.keeper.control import short_path

TICKER = 'n=0; while [ $n -lt 600 ]; do n=$((n+1)); echo "tick $n"; sleep 0.2; done'


def folder_of(state_home: Path, name: str) -> Path:
    return state_home / "vllm-tui" / "sessions" / name


def recorded(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def keeper_pid(folder: Path) -> int:
    return int(recorded(folder, "keeper_started")[-1]["pid"])


def command_pid(folder: Path) -> int:
    return int(json.loads((folder / "attempt-1.pid").read_text())["command"])


def test_leaving_lets_it_run_and_attach_comes_back(open_terminal: Open, state_home: Path) -> None:
    terminal = open_terminal("--name", "tick", "--", "sh", "-c", TICKER)
    terminal.wait("tick 3")
    terminal.type("d")
    assert terminal.wait_end() == 0
    assert "vllm-tui attach tick" in terminal.text
    os.kill(command_pid(folder_of(state_home, "tick")), 0)
    back = open_terminal("attach")
    back.wait("RUNNING")
    back.wait("tick 5")
    back.type("x")
    back.wait("Stop")
    back.type("\r")
    back.wait("EXITED")
    back.type("q")
    assert back.wait_end() == 0


def test_quitting_asks_and_stops(open_terminal: Open) -> None:
    terminal = open_terminal("--", "sh", "-c", "echo here; trap 'exit 5' INT; while :; do sleep 0.1; done")
    terminal.wait("here")
    terminal.type("\x03")
    terminal.wait("leave it running")
    terminal.type("s")
    assert terminal.wait_end() == 5


def test_a_crash_stays_on_the_screen_and_gives_its_code(open_terminal: Open) -> None:
    terminal = open_terminal("--", "sh", "-c", "echo 'ValueError: no such thing' >&2; exit 9")
    terminal.wait("CRASHED")
    assert "no such thing" in terminal.text
    terminal.type("q")
    assert terminal.wait_end() == 9
    assert "exit code 9" in terminal.text


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL, signal.SIGTERM])
def test_a_killed_view_changes_nothing(open_terminal: Open, state_home: Path, number: signal.Signals) -> None:
    terminal = open_terminal("--name", "tick", "--", "sh", "-c", TICKER)
    terminal.wait("tick 2")
    pid, keeper = command_pid(folder_of(state_home, "tick")), keeper_pid(folder_of(state_home, "tick"))
    terminal.signal(number)
    terminal.wait_end()
    back = open_terminal("attach", "tick")
    back.wait("RUNNING")
    assert command_pid(folder_of(state_home, "tick")) == pid
    assert keeper_pid(folder_of(state_home, "tick")) == keeper
    back.type("x")
    back.wait("Stop")
    back.type("\r")
    back.wait("EXITED")


def test_a_killed_keeper_is_replaced_with_tree_and_exit_code_intact(
    open_terminal: Open, state_home: Path, wait_for: WaitFor
) -> None:
    terminal = open_terminal("--name", "tick", "--", "sh", "-c", f"trap 'exit 7' USR1; {TICKER}")
    terminal.wait("tick 2")
    folder = folder_of(state_home, "tick")
    first = keeper_pid(folder)
    terminal.signal(signal.SIGKILL)
    os.kill(first, signal.SIGKILL)
    back = open_terminal("attach", "tick")
    back.wait("RUNNING")
    assert recorded(folder, "keeper_started")[-1]["replaced"]
    assert [line["state"] for line in recorded(folder, "state_changed")] == ["running"]
    os.kill(keeper_pid(folder), signal.SIGKILL)
    os.kill(command_pid(folder), signal.SIGUSR1)
    wait_for((folder / "attempt-1.exit").exists)
    back.wait("CRASHED")
    assert recorded(folder, "exited")[-1]["code"] == 7
    assert len(recorded(folder, "keeper_started")) == 3, "the open view found itself a new keeper"


def test_the_end_that_nobody_saw_is_told_to_the_next_view(
    open_terminal: Open, state_home: Path, wait_for: WaitFor
) -> None:
    terminal = open_terminal("--name", "gone", "--", "sh", "-c", f"trap 'exit 7' USR1; {TICKER}")
    terminal.wait("tick 1")
    folder = folder_of(state_home, "gone")
    terminal.signal(signal.SIGKILL)
    os.kill(keeper_pid(folder), signal.SIGKILL)
    os.kill(command_pid(folder), signal.SIGUSR1)
    wait_for((folder / "attempt-1.exit").exists)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"event":"half a li')
    back = open_terminal("attach", "gone")
    back.wait("CRASHED")
    back.wait("code 7")
    back.type("R")
    back.wait("attempt 2")
    back.wait("RUNNING")


def test_two_views_see_the_same(open_terminal: Open) -> None:
    one = open_terminal("--name", "tick", "--", "sh", "-c", TICKER)
    one.wait("tick 2")
    two = open_terminal("attach", "tick", columns=80, rows=24)
    two.wait("tick 3")
    two.type("x")
    two.wait("Stop")
    two.type("\r")
    two.wait("EXITED")
    one.wait("EXITED")


def test_leftovers_are_named_and_ended_at_a_key(open_terminal: Open, state_home: Path) -> None:
    terminal = open_terminal("--name", "left", "--", "sh", "-c", "sleep 1000 & echo begun; sleep 1; kill -9 $$")
    terminal.wait("CRASHED")
    left = recorded(folder_of(state_home, "left"), "command_ended")[0]["leftovers"]
    assert [process["process"] for process in left] == ["sleep"]
    terminal.wait("still run")
    terminal.type("x")
    terminal.wait(lambda text: "still run" not in text)
    assert not Path(f"/proc/{left[0]['pid']}").exists()


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (20, 5), (80, 24), (200, 50)])
def test_any_size_of_terminal(open_terminal: Open, columns: int, rows: int) -> None:
    terminal = open_terminal("--", "sh", "-c", TICKER, columns=columns, rows=rows)
    terminal.pump(1.0)
    terminal.resize(120, 36)
    terminal.wait("RUNNING")
    terminal.resize(2, 2)
    terminal.pump(0.3)
    terminal.resize(80, 24)
    terminal.wait("RUNNING")
    terminal.wait("tick")


@pytest.mark.parametrize(
    "script",
    [
        "exec >&- 2>&-; sleep 1000",
        "printf 'no newline at the end'; sleep 1000",
        r"printf '\377\376 [/foo] [bold]x \033[31mred\n'; sleep 1000",
        "yes 'x' | head -c 20000000; sleep 1000",
        "head -c 12000000 /dev/zero | tr '\\0' 'a'; sleep 1000",
    ],
    ids=["closes its output", "no newline", "odd bytes", "flood", "one long line"],
)
def test_whatever_the_child_writes(open_terminal: Open, script: str) -> None:
    terminal = open_terminal("--", "sh", "-c", script)
    terminal.wait("RUNNING")
    terminal.type("?")
    terminal.wait("search the log")
    terminal.type("\x1b")
    terminal.wait("Log")


def test_a_socket_deep_below_is_reached(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["x" * 60] * 4)
    deep.mkdir(parents=True)
    with short_path(deep / "control.sock") as address:
        assert len(address) < 108


def test_the_socket_refuses_another_user(open_terminal: Open, state_home: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    terminal = open_terminal("--name", "mine", "--", "sh", "-c", TICKER)
    terminal.wait("tick 1")
    socket_path = folder_of(state_home, "mine") / "control.sock"
    socket_path.chmod(0o666)
    for parent in socket_path.parents:
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(0o755)
    code = (
        "import os, socket, sys\n"
        "os.setuid(65534); os.chdir(sys.argv[1])\n"
        "s = socket.socket(socket.AF_UNIX); s.connect('control.sock')\n"
        'try: s.sendall(b\'{"command":"hello"}\\n\'); sys.exit(len(s.recv(100)))\n'
        "except ConnectionError: pass\n"
    )
    stranger = subprocess.run([sys.executable, "-c", code, str(socket_path.parent)], timeout=20, check=False)
    assert stranger.returncode == 0, "a peer of another user got an answer"
