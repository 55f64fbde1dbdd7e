"""`vllm-tui ls`: what runs comes first, our own processes are no strangers, other hosts are named."""

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from tests.fake_nvml.driver import FakeDriver
from tests.titled_tree import server_argv, start_tree
from vllm_probes.keeper import catalogue
from vllm_probes.keeper import folder as folders
from vllm_probes.keeper.attempts import first_attempt
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.sensors import tree
from vllm_tui import listing

pytest_plugins = ["tests.fake_nvml.fixtures"]

WORKER = "exec -a 'VLLM::Worker_TP0' sleep 100"


@pytest.fixture(autouse=True)
def _own_state(state_home: Path) -> None:
    """None of the user's sessions."""


def session(name: str, script: str) -> SessionFolder:
    argv = ["bash", "-c", script]
    spec = LaunchSpec(argv=argv, env=dict(os.environ), cwd="/")
    return folders.create(folders.Launch(spec=spec), command=argv, name=name)


@pytest.fixture
def running(spawned: Spawn, wait_for: WaitFor) -> SessionFolder:
    """A session with one process that looks like a worker."""
    folder = session("night", WORKER)
    shim = first_attempt(folder, folder.launch()).start()
    wait_for(lambda: [pid for pid in tree.descendants(shim.pid) if tree.title(pid) == "Worker_TP0"])
    return folder


def strangers() -> list[int]:
    return [entry["pid"] for entry in json.loads(listing.as_json()) if entry["kind"] == "stranger"]


def test_only_what_was_started_without_us_is_a_stranger(
    running: SessionFolder, spawned: Spawn, wait_for: WaitFor
) -> None:
    other = spawned(["bash", "-c", WORKER])
    wait_for(lambda: tree.title(other.pid) == "Worker_TP0")
    own = tree.descendants(next(iter(catalogue.own_pids())))
    assert other.pid in strangers()
    assert not {*own} & {*strangers()}
    assert f"\n{other.pid}" in listing.as_text().partition("Not started by vllm-tui:")[2]


def test_a_stranger_is_shown_with_what_it_serves_and_without_secrets(
    spawned: Spawn, wait_for: WaitFor, tmp_path: Path
) -> None:
    argv = server_argv(tmp_path, "--port", "8123", "--api-key", "sesame")
    run = start_tree(spawned, wait_for, argv, env={"CUDA_VISIBLE_DEVICES": "0,1"})
    entry = next(entry for entry in json.loads(listing.as_json()) if entry.get("pid") == run.root.pid)
    assert (entry["user"], entry["port"], entry["model"], entry["gpus"], entry["cwd"]) == (
        *(getpass.getuser(), 8123, "org/model"),
        *("0,1", os.getcwd()),
    )
    assert {one["process"] for one in entry["processes"]} == {"APIServer", "EngineCore", "Worker_TP0", "Worker_TP1"}
    assert entry["command"][-2:] == ["--api-key", "***"]
    assert 0 <= entry["age_s"] < 600
    line = next(line for line in listing.as_text().splitlines() if line.startswith(str(run.root.pid)))
    assert {"8123", "org/model", "0,1"} <= set(line.split())
    assert "sesame" not in line


def test_what_the_driver_says_of_gpus_counts_more_than_the_environment(
    fake_driver: FakeDriver, spawned: Spawn, wait_for: WaitFor, tmp_path: Path
) -> None:
    run = start_tree(spawned, wait_for, server_argv(tmp_path), env={"CUDA_VISIBLE_DEVICES": "0,1"})
    ranks = [run.pids[f"VLLM::Worker_TP{rank}"] for rank in (0, 1)]
    fake_driver.write("gpus 4", *(f"gpu {2 + rank} process compute {pid} 1000" for rank, pid in enumerate(ranks)))
    entry = next(entry for entry in json.loads(listing.as_json()) if entry.get("pid") == run.root.pid)
    assert entry["gpus"] == "2,3"


def test_what_runs_comes_first(running: SessionFolder) -> None:
    session("newer", "exit 0")
    names = [line.split()[0] for line in listing.as_text().splitlines() if line]
    assert names[:3] == ["SESSION", "night", "newer"]


def test_a_session_of_another_host_says_where_to_go(running: SessionFolder) -> None:
    meta = running.path / "meta.json"
    record = json.loads(meta.read_text()) | {"host": "node7"}
    meta.write_text(json.dumps(record))
    line = listing.as_text().splitlines()[1]
    assert line.endswith("ssh -t node7 vllm-tui attach night")
    assert "lost" not in line


def test_a_session_of_an_earlier_boot_is_lost(running: SessionFolder) -> None:
    meta = running.path / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"boot_id": "before"}))
    line = listing.as_text().splitlines()[1]
    assert " lost " in line
    assert "ssh" not in line


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_state_folder_that_cannot_be_written_is_listed_all_the_same(tmp_path: Path) -> None:
    session("old", "exit 0")
    state = Path(os.environ["XDG_STATE_HOME"])
    program = f"""
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
os.unshare(0x20000) if hasattr(os, "unshare") else libc.unshare(0x20000)  # CLONE_NEWNS
state = {str(state)!r}.encode()
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
assert libc.mount(state, state, None, 0x1000, None) == 0  # MS_BIND
assert libc.mount(None, state, None, 0x1021, None) == 0  # MS_BIND | MS_REMOUNT | MS_RDONLY
for words in (["ls"], ["attach", "old"]):
    done = subprocess.run([sys.executable, "-m", "vllm_tui", *words], capture_output=True, text=True)
    print(done.returncode, done.stdout, done.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"no mounts here: {done.stderr.splitlines()[-1:]}")
    assert "Traceback" not in done.stdout
    assert "old " in done.stdout
