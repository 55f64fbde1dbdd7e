"""The main job on real vLLM with two ranks, in a real terminal and without one."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.real_vllm import RealVllm
from tests.terminal import Terminal

pytestmark = pytest.mark.vllm

READY_S = 240.0
"""Two ranks start in 30-40 s on two idle cores; a busy machine takes its time."""
PROGRAM = [sys.executable, "-m", "vllm_tui"]


@pytest.fixture
def environment(real_vllm: RealVllm, tmp_path: Path) -> Iterator[dict[str, str]]:
    environment = {**real_vllm.env, "XDG_STATE_HOME": str(tmp_path / "state")}
    yield environment
    for process in vllm_processes(tmp_path):
        process.kill()


def vllm_processes(tmp_path: Path) -> list[psutil.Process]:
    """Every process that was started with this test's folder in its environment and is a part of vLLM."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].startswith("VLLM::") or ("serve" in words and "vllm_tui" not in words):
            try:
                if process.environ().get("XDG_STATE_HOME", "").startswith(str(tmp_path)):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    return found


def complete(port: int, model: str) -> dict[str, Any]:
    """One request to the server."""
    body = json.dumps({"model": model, "prompt": "hello", "max_tokens": 16, "ignore_eos": True}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def session_folder(environment: dict[str, str], name: str) -> Path:
    return Path(environment["XDG_STATE_HOME"], "vllm-tui", "sessions", name)


def recorded(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def test_headless_from_starting_to_exited(real_vllm: RealVllm, environment: dict[str, str], tmp_path: Path) -> None:
    port = real_vllm.free_port()
    argv = [*PROGRAM, "run", "--headless", "--", *real_vllm.serve_argv(port)]
    run = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(READY_S, run.kill)
    watchdog.start()
    assert run.stdout
    lines, served = [], False
    for text in run.stdout:
        lines.append(line := json.loads(text))
        if line["event"] == "state_changed" and line["state"] == "idle" and not served:
            served = bool(complete(port, str(real_vllm.model))["choices"])
        elif line["event"] == "state_changed" and line["state"] == "serving":
            run.send_signal(signal.SIGTERM)
    watchdog.cancel()
    states = [line["state"] for line in lines if line["event"] == "state_changed"]
    assert states == ["starting", "loading", "warming_up", "idle", "serving", "stopping", "exited"]
    assert [line for line in lines if line["event"] == "verdict_changed"] == []
    rows = {row["process"]: row for line in lines if line["event"] == "processes_sampled" for row in line["rows"]}
    assert {"APIServer", "EngineCore", "Worker_TP0", "Worker_TP1"} <= set(rows)
    assert (rows["Worker_TP1"]["role"], rows["Worker_TP1"]["rank"]) == ("worker", 1)
    assert any(engine.get("generation_tokens") for engine in last_engines(lines))
    assert not vllm_processes(tmp_path)


def last_engines(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return next(line["engines"] for line in reversed(lines) if line["event"] == "endpoint_sampled" and line["engines"])


def test_a_port_in_use_is_a_crash_with_its_cause(real_vllm: RealVllm, environment: dict[str, str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        argv = [*PROGRAM, "--headless", "--", *real_vllm.serve_argv(server.getsockname()[1])]
        run = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=READY_S)
    lines = [json.loads(text) for text in run.stdout.splitlines()]
    assert run.returncode == 1
    assert [line["state"] for line in lines if line["event"] == "state_changed"][-1] == "crashed"
    exited = next(line for line in lines if line["event"] == "exited")
    assert "Address already in use" in exited["findings"][0]["line"]
    assert not [line for line in lines if line["event"] == "endpoint_sampled"], "a stranger on the port was asked"


@pytest.fixture
def open_terminal(environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str, **options: Any) -> Terminal:
        opened.append(Terminal([*PROGRAM, *arguments], environment, **options))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def test_the_kill_matrix(
    real_vllm: RealVllm, environment: dict[str, str], open_terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    """Launch, serve, lose the terminal, the view and the keeper, come back, relaunch with eager, stop."""
    port = real_vllm.free_port()
    terminal = open_terminal("--name", "matrix", "--", *real_vllm.serve_argv(port, eager=False))
    terminal.wait("IDLE", READY_S)
    assert complete(port, str(real_vllm.model))["choices"]
    folder = session_folder(environment, "matrix")
    first_pids = {process.pid for process in vllm_processes(tmp_path)}

    terminal.signal(signal.SIGHUP)
    terminal.wait_end()
    terminal = open_terminal("attach", "matrix")
    terminal.wait("IDLE")
    terminal.signal(signal.SIGKILL)
    terminal.wait_end()
    os.kill(recorded(folder, "keeper_started")[-1]["pid"], signal.SIGKILL)
    assert {process.pid for process in vllm_processes(tmp_path)} == first_pids
    terminal = open_terminal("attach")
    terminal.wait("IDLE")
    assert recorded(folder, "keeper_started")[-1]["replaced"]
    assert complete(port, str(real_vllm.model))["choices"]

    terminal.type("e")
    terminal.wait("--enforce-eager")
    terminal.type("\r")
    terminal.wait(lambda text: "attempt 2" in text and "IDLE" in text, READY_S)
    arrived = recorded(folder, "lever_checked")[-1]
    assert (arrived["lever"], arrived["arrived"], arrived["attempt"]) == ("eager", True, 2)
    assert not first_pids & {process.pid for process in vllm_processes(tmp_path)}

    stop(terminal)
    assert not vllm_processes(tmp_path)
    assert recorded(folder, "verdict_changed") == []
    terminal.type("q")
    assert terminal.wait_end() == 0


def test_the_api_server_killed_alone(
    real_vllm: RealVllm, environment: dict[str, str], open_terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    """Its engine and workers are named and offered for clean-up; a relaunch ends them first."""
    port = real_vllm.free_port()
    terminal = open_terminal("--name", "orphans", "--", *real_vllm.serve_argv(port))
    terminal.wait("IDLE", READY_S)
    folder = session_folder(environment, "orphans")
    os.kill(json.loads((folder / "attempt-1.pid").read_text())["command"], signal.SIGKILL)
    terminal.wait("CRASHED")
    ended = recorded(folder, "command_ended")[0]
    assert {"EngineCore", "Worker_TP0", "Worker_TP1"} <= {left["process"] for left in ended["leftovers"]}
    orphans = {left["pid"] for left in ended["leftovers"]}

    terminal.type("R")
    terminal.wait(lambda text: "attempt 2" in text and "IDLE" in text, READY_S)
    assert not orphans & {process.pid for process in vllm_processes(tmp_path)}
    stop(terminal)
    assert not vllm_processes(tmp_path)


def stop(terminal: Terminal) -> None:
    terminal.type("x")
    terminal.wait("Stop vLLM?")
    terminal.type("\r")
    terminal.wait("EXITED")
