"""`vllm-tui snapshot` on real processes: any pid, another user, and what is no vLLM."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import kept
from tests.conftest import PROGRAM, Spawn, WaitFor
from tests.titled_tree import PORT, TitledTree, server_argv, start_tree
from vllm_probes.sensors import tree

Done = subprocess.CompletedProcess[str]

LOCKED = """
import threading
def take_twice(lock):
    lock.acquire()
lock = threading.Lock()
lock.acquire()
print("ready", flush=True)
take_twice(lock)
"""


def snapshot(*words: str, before: list[str] | None = None) -> Done:
    return subprocess.run(
        [*(before or []), *PROGRAM, "snapshot", *words], capture_output=True, text=True, timeout=60, cwd="/"
    )


def as_json(*words: str, before: list[str] | None = None) -> dict[str, Any]:
    done = snapshot(*words, "--json", before=before)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(autouse=True)
def _own_state(state_home: Path) -> None:
    """None of the user's sessions."""


@pytest.fixture
def server(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> TitledTree:
    return start_tree(spawned, wait_for, server_argv(tmp_path, "--port", PORT))


@pytest.fixture
def locked(spawned: Spawn) -> int:
    program = spawned([sys.executable, "-c", LOCKED], stdout=subprocess.PIPE)
    assert program.stdout
    program.stdout.readline()
    return program.pid


def test_a_workers_pid_shows_every_process_of_the_server(server: TitledTree, wait_for: WaitFor) -> None:
    seen = as_json(str(server.pids["VLLM::Worker_TP1"]))
    assert (seen["session"], seen["pid"]) == (None, server.root.pid)
    assert {one["process"]: one["pid"] for one in seen["processes"]} == {
        "APIServer": server.root.pid,
        **{title.removeprefix("VLLM::"): pid for title, pid in server.pids.items()},
    }
    assert {one["rank"] for one in seen["processes"]} == {None, 0, 1}
    assert sum(len(group["members"]) for group in seen["groups"]) == 4
    assert (seen["health"], seen["look_count"]) == ("ok", 2)
    assert "has not started yet" in seen["summary"]
    wait_for(lambda: all(one["motion"] == "frozen" for one in as_json(str(server.root.pid))["processes"]), 20)


def test_a_script_that_sits_still_is_suspected_with_its_stack(locked: int) -> None:
    seen = as_json(str(locked))
    assert (seen["health"], seen["kind"]) == ("suspect", "unknown")
    (culprit,) = seen["culprits"]
    assert (culprit["pid"], culprit["doing"]) == (locked, "lock")
    assert culprit["frame"].startswith("take_twice (")
    assert "no proof" in seen["summary"]


def test_the_same_for_people(locked: int) -> None:
    lines = snapshot(str(locked)).stdout.splitlines()
    assert lines[0].startswith("SUSPECT (unknown): ")
    assert lines[2].split()[:3] == ["PID", "PROCESS", "STATE"]
    assert lines[3].split()[0] == str(locked)
    assert any(line.startswith("    take_twice (") for line in lines)


def test_where_the_time_goes(locked: int) -> None:
    done = snapshot(str(locked), "--seconds", "0.6")
    assert "Where they were, of " in done.stdout
    assert "100 %  lock " in done.stdout


def test_without_the_right_every_process_has_the_line_that_gets_it(server: TitledTree, nobody: list[str]) -> None:
    seen = as_json(str(server.root.pid), before=nobody)
    assert (seen["health"], seen["culprits"], seen["user"]) == (None, [], "root")
    assert len(seen["processes"]) == 4
    for one in seen["processes"]:
        assert f"dump --nonblocking --pid {one['pid']}`" in one["error"]
        assert one["doing"] is None
    text = snapshot("--port", PORT, before=nobody).stdout
    assert text.startswith("NOT KNOWN: ")
    assert f" snapshot {server.root.pid}`." in text.splitlines()[1]


def test_what_is_no_python_is_shown_and_not_blamed(spawned: Spawn, wait_for: WaitFor, locked: int) -> None:
    shell = spawned(["bash", "-c", "sleep 600; true"])
    wait_for(lambda: tree.descendants(shell.pid))
    seen = as_json(str(shell.pid))
    assert (seen["health"], seen["culprits"]) == (None, [])
    assert [(one["process"], one["doing"]) for one in seen["processes"]] == [("bash", "subprocess"), ("sleep", "sleep")]
    assert all("is not a Python process" in one["error"] for one in seen["processes"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["4194305"], 1, "There is no process 4194305 here"),
        (["nope"], 1, "There is no session called 'nope'"),
        (["--port", "1"], 1, "Nobody listens on port 1"),
        (["5", "--port", "1"], 2, "not both"),
        (["--port", "70000"], 2, "70000 is not in the range"),
        (["1", "--seconds", "0"], 2, "0.0 is not in the range"),
        (["--", "vllm"], 2, "Only `run` launches"),
    ],
)
def test_bad_input_is_a_sentence(words: list[str], code: int, said: str) -> None:
    done = snapshot(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_several_runs_are_listed(server: TitledTree, spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    other = start_tree(spawned, wait_for, server_argv(tmp_path, "--port", "8124"))
    done = snapshot()
    assert done.returncode == 2
    assert "`vllm-tui snapshot SESSION` or `vllm-tui snapshot PID`" in done.stderr
    assert {str(server.root.pid), str(other.root.pid)} <= {line.split()[0] for line in done.stderr.splitlines() if line}


def test_a_session_of_ours_by_name_and_by_pid(
    state_home: Path, spawned: Spawn, wait_for: Callable[..., Any], tmp_path: Path
) -> None:
    folder, shim_pid = kept.started([sys.executable, "-c", LOCKED], "night")
    pid = wait_for(lambda: next(iter(tree.descendants(shim_pid)), None))
    wait_for(lambda: "ready" in folder.attempt(1).with_suffix(".log").read_text())
    for word in ("night", str(pid)):
        seen = as_json(word)
        assert (seen["session"], seen["pid"]) == ("night", None)
        assert [one["pid"] for one in seen["processes"]] == [pid]
        file = next(one["file"] for one in seen["evidence"] if "file" in one)
        assert json.loads((folder.path / file).read_text())


# --- native frames and local variables, only when asked for -----------------------------------------------------------

TALKS = """
import time
def inner(word, api_key):
    numbers = {"a": 1}
    time.sleep(1000)
def outer():
    answer = 42
    inner("[bold]hello", "sk-" + 40 * "x")
print("ready", flush=True)
outer()
"""


@pytest.fixture
def talking(spawned: Spawn, wait_for: WaitFor) -> int:
    """It sleeps."""
    program = spawned([sys.executable, "-c", TALKS], stdout=subprocess.PIPE)
    assert program.stdout
    program.stdout.readline()
    wait_for(lambda: tree.state_letter(program.pid) == "S")
    return program.pid


def test_native_frames_are_in_the_merged_stacks(talking: int) -> None:
    done = snapshot(str(talking), "--native")
    assert "--native pauses each process" in done.stderr
    calls = [line.strip() for line in done.stdout.splitlines() if line.startswith("    ")]
    python = [line for line in calls if line.startswith(("inner", "outer", "<module>"))]
    assert [line.split()[0] for line in python] == ["inner", "outer", "<module>"]
    assert calls.index(python[0]) > 0, "the call of the library is below it"
    assert " (libc.so.6)" in calls[0]
    assert tree.state_letter(talking) == "S"


def test_local_variables_stand_below_their_calls(talking: int) -> None:
    done = snapshot(str(talking), "--locals")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    begin = next(at for at, line in enumerate(lines) if line.endswith(", local variables of its main thread:"))
    shown = [line for line in lines[begin + 1 :] if line]
    assert shown[0].startswith("    inner (")
    assert {'        word = "[bold]hello"', "        api_key = ***"} < set(shown)
    assert shown[shown.index("        answer = 42") - 1].startswith("    outer (")


def test_both_as_json(talking: int) -> None:
    seen = as_json(str(talking), "--native", "--locals")
    [stack] = seen["stacks"]
    assert (stack["pid"], stack["error"]) == (talking, None)
    calls = {call["function"]: call for call in stack["threads"][0]["calls"]}
    assert calls["inner"]["variables"]["api_key"] == "***"
    assert stack["threads"][0]["calls"][0]["line"] == 0
    assert seen["groups"][0]["frames"][0].endswith("(libc.so.6)")
    assert seen["culprits"] == as_json(str(talking))["culprits"], "the verdict is that of the calls of Python"
    assert "stacks" not in as_json(str(talking))


def test_what_is_stopped_is_not_paused(talking: int, wait_for: WaitFor) -> None:
    os.kill(talking, signal.SIGSTOP)
    wait_for(lambda: tree.state_letter(talking) == "T")
    done = snapshot(str(talking), "--native")
    assert f"(pid {talking}) is in state T and cannot be paused." in done.stdout
    assert any(line.startswith("    inner (") for line in done.stdout.splitlines())
