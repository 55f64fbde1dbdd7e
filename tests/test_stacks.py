"""Real stacks of real processes."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from vllm_probes.rows import ProcessRef, StackFile
from vllm_probes.sensors import stacks
from vllm_probes.sensors.stacks import capture, explain, find_py_spy

WAITS = """
import threading
def wait_for_work(): threading.Event().wait()
def worker_busy_loop(): wait_for_work()
threading.Thread(target=worker_busy_loop, name="other").start()
worker_busy_loop()
"""

TARGET = ProcessRef(pid=7, process="Worker_TP1")

Waiting = Callable[[], subprocess.Popen[bytes]]


def functions(file: Path) -> list[set[str]]:
    return [{frame["name"] for frame in thread["frames"]} for thread in json.loads(file.read_bytes())]


def ref(pid: int, process: str = "Worker_TP0") -> ProcessRef:
    return ProcessRef(pid=pid, process=process)


def captured(targets: list[ProcessRef], folder: Path, timeout_s: float = 5.0) -> list[StackFile]:
    return asyncio.run(capture(targets, folder, timeout_s=timeout_s))


@pytest.fixture
def waiting(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> Waiting:
    """`waiting()`: a Python with two threads that have come to where they stay."""

    def is_there(pid: int) -> bool:
        [found] = captured([ref(pid)], tmp_path)
        threads = functions(tmp_path / found.file) if found.file else []
        return ["wait_for_work" in thread for thread in threads] == [True, True]

    def start() -> subprocess.Popen[bytes]:
        child = spawned([sys.executable, "-c", WAITS])
        wait_for(lambda: is_there(child.pid))
        return child

    return start


def test_stacks_of_several_processes(waiting: Waiting, tmp_path: Path) -> None:
    pids = [waiting().pid for _ in range(3)]
    folder = tmp_path / "snapshots" / "1"
    files = captured([ref(pid) for pid in pids], folder)
    assert files == [StackFile(pid=pid, process="Worker_TP0", file=f"{pid}-Worker_TP0.json") for pid in pids]
    for file in files:
        assert len(functions(folder / str(file.file))) == 2
        assert all({"worker_busy_loop", "wait_for_work"} <= thread for thread in functions(folder / str(file.file)))


def test_a_stopped_process_has_stacks_and_stays_stopped(waiting: Waiting, tmp_path: Path) -> None:
    child = waiting()
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    [found] = captured([ref(child.pid)], tmp_path)
    assert "wait_for_work" in functions(tmp_path / str(found.file))[0]
    assert Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_what_is_no_python_does_not_spoil_the_rest(waiting: Waiting, spawned: Spawn, tmp_path: Path) -> None:
    python, other, gone = waiting(), spawned(["sleep", "inf"]), spawned(["true"])
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    found = captured([ref(other.pid, "sleep"), ref(gone.pid), ref(python.pid)], tmp_path)
    gone.wait()
    found += captured([ref(gone.pid)], tmp_path)
    assert [file.error for file in found] == [
        f"sleep (pid {other.pid}) is not a Python process: it has no Python stacks.",
        f"Worker_TP0 (pid {gone.pid}) has ended.",
        None,
        f"Worker_TP0 (pid {gone.pid}) has ended.",
    ]


def test_any_name_makes_a_file_in_the_folder(waiting: Waiting, tmp_path: Path) -> None:
    child = waiting()
    names = ["../../x y", "ray::IDLE", "[/red]", "n" * 300, ""]
    for found in captured([ref(child.pid, name) for name in names], tmp_path / "s"):
        assert (tmp_path / "s" / str(found.file)).parent == tmp_path / "s"
        assert (tmp_path / "s" / str(found.file)).is_file()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_is_told_what_to_run(waiting: Waiting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = waiting()
    # A copy in a folder that everybody may enter: the environment that the tests run in may be closed to other users.
    everybodys = Path(tempfile.mkdtemp())
    everybodys.chmod(0o755)
    py_spy = shutil.copy(str(find_py_spy()), everybodys / "py-spy")
    monkeypatch.setattr(sys, "executable", str(everybodys / "python"))
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            [found] = asyncio.run(capture([ref(child.pid)], tmp_path))
            os.write(writer, str(found.error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        error = pipe.read()
    os.wait()
    shutil.rmtree(everybodys)
    assert f"`sudo {py_spy} dump --nonblocking --pid {child.pid}`" in error
    assert "SYS_PTRACE" in error


def test_one_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "py-spy"
    fake.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    [found] = captured([TARGET], tmp_path, timeout_s=0.3)
    assert found.error == "Worker_TP1 (pid 7) gave no stacks within 0.3 s: see its state."
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_folder_that_cannot_be_written_is_an_error(waiting: Waiting, tmp_path: Path) -> None:
    child = waiting()
    (tmp_path / "file").touch()
    [found] = captured([ref(child.pid)], tmp_path / "file" / "folder")
    assert "Not a directory" in str(found.error)


def test_missing_py_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "find_py_spy", lambda: None)
    [found] = captured([TARGET], tmp_path)
    assert "pip install py-spy" in str(found.error)


def test_py_spy_is_found_without_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_py_spy() is not None


@pytest.mark.parametrize(
    ("stderr", "scope", "said"),
    [
        ("Permission Denied: Try running again with elevated permissions", 1, "ptrace_scope is 1"),
        ("Permission Denied: Try running again with elevated permissions", 1, "sudo sysctl -w"),
        ("Error: Operation not permitted (os error 1)", None, "--cap-add SYS_PTRACE"),
        ("Error: Failed to find python version from target process\n\nStack backtrace:\n  0: x", None, "not a Python"),
        ("Error: No such process (os error 3)", None, "has ended"),
        ("Error: Odd\n\nCaused by:\n  odder\n\nStack backtrace:\n  0: anyhow", None, "Error: Odd Caused by: odder"),
        ("", None, "does not say why"),
    ],
)
def test_explain(stderr: str, scope: int | None, said: str) -> None:
    assert said in explain(stderr, TARGET, "/v/bin/py-spy", scope)


def test_a_scope_that_only_a_reboot_changes_is_not_to_be_set() -> None:
    assert "sysctl" not in explain("permission denied", TARGET, "/v/bin/py-spy", 3)
