"""The log of a run that we did not start: the file, or who has it."""

import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from vllm_probes.sensors import foreign_log, tree
from vllm_probes.sensors.foreign_log import log_of

Shell = Callable[..., int]


@pytest.fixture
def shell(spawned: Spawn, wait_for: WaitFor) -> Shell:
    """`shell("exec sleep 600 > FILE")`: the pid, once it is that sleep."""

    def start(line: str, **options: object) -> int:
        process = spawned(["bash", "-c", line], **options)
        wait_for(lambda: tree.command_line(process.pid)[:1] == ["sleep"])
        return process.pid

    return start


def test_a_file(shell: Shell, tmp_path: Path) -> None:
    log = tmp_path / "a log.txt"
    assert log_of([shell(f"exec sleep 600 >'{log}' 2>&1")]) == (log, None)


def test_standard_error_where_the_output_is_no_file(shell: Shell, tmp_path: Path) -> None:
    log = tmp_path / "err"
    assert log_of([shell(f"exec sleep 600 >/dev/null 2>'{log}'")]) == (log, None)


def test_the_first_process_that_has_one(shell: Shell, tmp_path: Path) -> None:
    pids = [shell("exec sleep 600 >/dev/null 2>&1"), shell(f"exec sleep 600 >'{tmp_path / 'rank0'}'")]
    assert log_of(pids) == (tmp_path / "rank0", None)


def test_a_file_that_was_deleted_is_read_through_the_process(shell: Shell, tmp_path: Path) -> None:
    log = tmp_path / "gone"
    pid = shell(f"exec sleep 600 >'{log}' 2>/dev/null")
    log.write_text("said\n")
    log.unlink()
    found = log_of([pid]).path
    assert found == Path(f"/proc/{pid}/fd/1")
    assert found.read_text() == "said\n"


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="only root has other mount namespaces")
def test_a_file_that_has_its_name_in_another_mount_namespace_only(
    spawned: Spawn, wait_for: WaitFor, tmp_path: Path
) -> None:
    line = f"mount -t tmpfs none {tmp_path} && exec sleep 600 >{tmp_path}/log 2>&1"
    process = spawned(["unshare", "--mount", "bash", "-c", line])
    wait_for(lambda: tree.command_line(process.pid)[:1] == ["sleep"] or process.poll() is not None)
    if process.poll() is not None:
        pytest.skip("no mounts here")
    assert log_of([process.pid]).path == Path(f"/proc/{process.pid}/root{tmp_path}/log")


def test_a_pipe_to_a_program_that_writes_a_file(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    whole = spawned(["bash", "-c", f"sleep 600 2>&1 | tee {copy} >/dev/null; true"])
    wait_for(lambda: copy.exists() and len(tree.descendants(whole.pid)) == 2)
    sleep = next(pid for pid in tree.descendants(whole.pid) if tree.title(pid) == "sleep")
    tee = next(pid for pid in tree.descendants(whole.pid) if tree.title(pid) == "tee")
    place = log_of([sleep])
    assert place.path is None
    assert place.reason == (
        f"Its log goes through a pipe to tee (pid {tee}), which alone has it. It writes {copy}: try `--log {copy}`."
    )


def test_a_pipe_that_nobody_reads_any_more(shell: Shell) -> None:
    reading, writing = os.pipe()
    pid = shell("exec sleep 600", stdout=writing, stderr=writing)
    os.close(reading)
    os.close(writing)
    assert "cannot be seen from here" in str(log_of([pid]).reason)


def test_a_terminal(shell: Shell) -> None:
    ours, theirs = pty.openpty()
    pid = shell("exec sleep 600", stdout=theirs, stderr=theirs)
    name = os.ttyname(theirs)
    os.close(theirs)
    assert f"goes to the terminal {name} and is kept nowhere" in str(log_of([pid]).reason)
    os.close(ours)


def test_nothing(shell: Shell) -> None:
    pid = shell("exec sleep 600", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert "/dev/null" in str(log_of([pid]).reason)


def test_the_journal(shell: Shell) -> None:
    """systemd hands out one end of a stream socket, and tells device and inode in the environment."""

    ours, theirs = socket.socketpair()
    status = os.fstat(theirs.fileno())
    env = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    pid = shell("exec sleep 600", stdout=theirs.fileno(), stderr=theirs.fileno(), env=env)
    assert log_of([pid]).reason == f"Its log goes to the journal: `journalctl -f _PID={pid}` shows it."
    other = shell("exec sleep 600", stdout=theirs.fileno(), stderr=theirs.fileno())
    assert "nobody else can read" in str(log_of([other]).reason)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (f"0::/system.slice/docker-{'ab' * 32}.scope", "docker logs -f abababababab"),
        (f"12:pids:/docker/{'ab' * 32}", "docker logs -f abababababab"),
        (f"0::/machine.slice/libpod-{'ab' * 32}.scope/container", "podman logs -f abababababab"),
        (f"0::/kubepods.slice/pod1/cri-containerd-{'ab' * 32}.scope", "crictl logs -f abababababab"),
        (f"0::/kubepods.slice/pod1/crio-{'ab' * 32}.scope", "crictl logs -f abababababab"),
        ("0::/user.slice/user-0.slice/session-1.scope", None),
    ],
)
def test_the_cgroups_of_containers(line: str, command: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as the runtimes name them: no container can be started here."""
    monkeypatch.setattr(foreign_log.tree, "read", lambda path: b"0::/" if "self" in path else line.encode())
    assert foreign_log._container_command(1) == command


def test_another_users(shell: Shell, nobody: list[str]) -> None:
    pid = shell("exec sleep 600")
    code = f"from vllm_probes.sensors.foreign_log import log_of; print(log_of([{pid}]).reason)"
    said = subprocess.run([*nobody, sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"`sudo ls -l /proc/{pid}/fd/1`" in said
