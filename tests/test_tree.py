"""The walk down a process tree, against real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from tests.conftest import WaitFor
from vllm_probes.sensors import tree

THREE_GENERATIONS = "sh -c 'sleep 60 & wait' & sleep 60 & echo ready; wait"


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a group of its own and waits for its first line; everything is killed afterwards."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_parents_come_before_their_children(spawn: Callable[..., subprocess.Popen[str]], wait_for: WaitFor) -> None:
    top = spawn("sh", "-c", THREE_GENERATIONS)
    wait_for(lambda: len(tree.descendants(top.pid)) == 3)
    found = tree.descendants(top.pid)
    grandchild = next(pid for pid in found if not _is_child(pid, top.pid))
    parent = next(pid for pid in found if _is_child(grandchild, pid))
    assert found.index(parent) < found.index(grandchild)
    assert all(tree.descends(pid, top.pid) for pid in found)
    assert not tree.descends(top.pid, found[0])


def test_a_kernel_without_children_files_gives_the_same(
    wait_for: WaitFor, spawn: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    top = spawn("sh", "-c", THREE_GENERATIONS)
    wait_for(lambda: len(tree.descendants(top.pid)) == 3)
    expected = tree.descendants(top.pid)
    monkeypatch.setattr(tree, "_kernel_lists_children", lambda: False)
    assert sorted(tree.descendants(top.pid)) == sorted(expected)


def test_children_of_other_threads_are_found(spawn: Callable[..., subprocess.Popen[str]]) -> None:
    code = (
        "import subprocess, threading\n"
        "def start():\n"
        "    subprocess.Popen(['sleep', '60']); print('ready', flush=True); threading.Event().wait()\n"
        "threading.Thread(target=start).start()"
    )
    assert len(tree.descendants(spawn(sys.executable, "-c", code).pid)) == 1


def test_a_zombie_is_listed_but_does_not_run(spawn: Callable[..., subprocess.Popen[str]], wait_for: WaitFor) -> None:
    top = spawn(
        sys.executable, "-c", "import os\nif os.fork(): print('ready', flush=True); import time; time.sleep(60)"
    )
    wait_for(lambda: [tree.state_letter(pid) for pid in tree.descendants(top.pid)] == ["Z"])
    assert not tree.is_running(tree.descendants(top.pid)[0])
    assert tree.is_running(top.pid)


def test_a_dead_leader_with_a_living_thread_runs(
    spawn: Callable[..., subprocess.Popen[str]], wait_for: WaitFor
) -> None:
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: (print('ready', flush=True), time.sleep(60))).start()\n"
        "time.sleep(0.1); ctypes.CDLL(None).pthread_exit(None)"
    )
    process = spawn(sys.executable, "-c", code)
    leader = Path(f"/proc/{process.pid}/task/{process.pid}/stat")
    wait_for(lambda: leader.read_text().rpartition(")")[2].split()[0] == "Z")
    assert tree.state_letter(process.pid) == "S"
    assert tree.is_running(process.pid)


def test_a_stopped_process_shows_its_state(spawn: Callable[..., subprocess.Popen[str]], wait_for: WaitFor) -> None:
    process = spawn("sh", "-c", "echo ready; read line < /dev/zero")
    os.kill(process.pid, signal.SIGSTOP)
    wait_for(lambda: tree.state_letter(process.pid) == "T")
    assert tree.is_running(process.pid)


def test_the_vanished_never_raise() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    gone = process.pid
    assert tree.descendants(gone) == []
    assert not tree.is_running(gone)
    assert tree.state_letter(gone) is None
    assert tree.start_ticks(gone) is None
    assert tree.process_group(gone) is None
    assert tree.shm_files([gone]) == set()
    assert tree.title(gone) == f"pid {gone}"


def test_process_group_and_start_identify(spawn: Callable[..., subprocess.Popen[str]]) -> None:
    process = spawn("sh", "-c", "echo ready; sleep 60")
    assert tree.process_group(process.pid) == process.pid
    ticks = tree.start_ticks(process.pid)
    assert ticks is not None
    assert ticks >= (tree.start_ticks(os.getpid()) or 0)


def test_shared_memory_is_seen_while_it_is_mapped() -> None:
    name = f"vtui test {os.getpid()}"
    memory = SharedMemory(name=name, create=True, size=4096)
    path = f"/dev/shm/{name}"
    try:
        assert path in tree.shm_files([os.getpid()])
    finally:
        memory.unlink()
    assert path not in tree.shm_files([os.getpid()])  # still mapped, but deleted
    memory.close()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-a 'VLLM::Worker_TP0' sleep 60", "Worker_TP0"),
        ("-a /opt/bin/ray sleep 60", "ray"),
    ],
)
def test_titles(spawn: Callable[..., subprocess.Popen[str]], arguments: str, expected: str, wait_for: WaitFor) -> None:
    process = spawn("bash", "-c", f"echo ready; exec {arguments}")
    wait_for(lambda: tree.title(process.pid) == expected)


def test_a_script_gives_its_name(spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    script = tmp_path / "offline.py"
    script.write_text("import time; print('ready', flush=True); time.sleep(60)")
    assert tree.title(spawn(sys.executable, str(script)).pid) == "offline.py"


def _is_child(pid: int, parent: int) -> bool:
    return f"PPid:\t{parent}\n" in Path(f"/proc/{pid}/status").read_text()
