"""The shim alone, run as it is in production: by its path, isolated, with real commands."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WaitFor
from vllm_probes.launch import shim as shim_module
from vllm_probes.sensors import tree

SHIM = [sys.executable, "-I", "-S", shim_module.__file__]


def run(prefix: Path, *command: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The record of a command that ends; checks that the shim ends with it, and says nothing."""
    done = subprocess.run([*SHIM, str(prefix), "--", *command], env=env, timeout=20, capture_output=True, check=True)
    assert done.stdout == done.stderr == b""
    return record(prefix, ".exit")


def record(prefix: Path, suffix: str) -> dict[str, Any]:
    return json.loads(Path(f"{prefix}{suffix}").read_text())  # type: ignore[no-any-return]


def log(prefix: Path) -> str:
    return Path(f"{prefix}.log").read_text()


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "attempt-1"


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [("true", 0, None), ("exit 3", 3, None), ("kill -9 $$", None, 9), ("kill 0", None, 15), ("kill -INT 0", None, 2)],
)
def test_how_the_command_ended(prefix: Path, script: str, code: int | None, number: int | None) -> None:
    ended = run(prefix, "sh", "-c", script)
    assert (ended["code"], ended["signal"], ended["error"]) == (code, number, None)


def test_a_command_that_is_not_there(prefix: Path) -> None:
    ended = run(prefix, "no-such-vllm", "serve")
    assert (ended["code"], ended["signal"]) == (127, None)
    assert ended["error"] == "'no-such-vllm' cannot be started: No such file or directory."
    assert not Path(f"{prefix}.pid").exists()
    assert run(prefix, "")["code"] == 127


@pytest.mark.parametrize(("mode", "text"), [(0o644, "#!/bin/sh\n"), (0o755, "no program"), (0o755, "")])
def test_a_command_that_cannot_be_executed(prefix: Path, tmp_path: Path, mode: int, text: str) -> None:
    script = tmp_path / "start"
    script.write_text(text)
    script.chmod(mode)
    ended = run(prefix, str(script))
    assert ended["code"] == 126
    assert ended["error"].startswith(f"'{script}' cannot be started: ")


def test_the_environment_arrives_unchanged(prefix: Path) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": "/some/where", "EMPTY": "", "ODD": "a=b\nc \udcff"}
    run(prefix, sys.executable, "-S", "-c", "print(open('/proc/self/environ', 'rb').read())", env=env)
    expected = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items())
    assert log(prefix) == f"{expected!r}\n"


def test_arguments_arrive_unchanged(prefix: Path) -> None:
    run(prefix, "printf", "<%s>", "", "--", "a b", "$(x)", "ünï\n")
    assert log(prefix) == "<><--><a b><$(x)><ünï\n>"


def test_what_the_command_begins_with(prefix: Path) -> None:
    """Default signals, nothing open but its three descriptors, a group of its own in the shim's session."""
    blocked = {signal.SIGUSR1}
    with open(os.devnull) as extra:
        os.set_inheritable(extra.fileno(), True)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            code = (
                "import os; fields = dict(l.split(':', 1) for l in open('/proc/self/status'))\n"
                "print(*(int(fields[k], 16) & 0x7fffffff for k in ('SigBlk', 'SigIgn')), end=' ')\n"
                "print(os.getpgrp() == os.getpid(), os.getsid(0) == os.getppid(), os.readlink('/proc/self/fd/0'))"
            )
            command = [
                sys.executable,
                "-c",
                f"import subprocess, sys; subprocess.call(['ls', '/proc/self/fd']); {code}",
            ]
            arguments = [*SHIM, str(prefix), "--", *command]
            subprocess.run(arguments, close_fds=False, timeout=20, check=True, start_new_session=True)
        finally:
            signal.signal(signal.SIGINT, ignored)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    # Python itself ignores SIGPIPE and SIGXFSZ; 3 is the folder that ls reads
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert log(prefix) == f"0\n1\n2\n3\n0 {python_ignores} True True /dev/null\n"


def test_the_log_is_private_and_only_appended_to(prefix: Path) -> None:
    run(prefix, "sh", "-c", "echo out; echo err >&2")
    run(prefix, "echo", "again")
    assert log(prefix).splitlines() == ["out", "err", "again"]
    assert Path(f"{prefix}.log").stat().st_mode & 0o777 == 0o600


def test_orphans_stay_below_the_shim_and_it_ends_with_the_last(prefix: Path, tmp_path: Path, wait_for: WaitFor) -> None:
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    script = f"(setsid sh -c 'read line < {go_on}; echo orphan done' &) ; (sleep 0 &) ; echo command done"
    with subprocess.Popen([*SHIM, str(prefix), "--", "sh", "-c", script]) as shim:
        wait_for(Path(f"{prefix}.exit").exists)
        assert record(prefix, ".exit")["code"] == 0
        assert record(prefix, ".pid")["shim"] == shim.pid
        wait_for(lambda: len(tree.descendants(shim.pid)) == 1)  # the other orphan is reaped
        assert shim.poll() is None
        go_on.write_text("\n")
        assert shim.wait(timeout=10) == 0
    assert log(prefix).splitlines() == ["command done", "orphan done"]


def test_it_ignores_polite_signals_and_the_death_of_its_parent(prefix: Path, tmp_path: Path, wait_for: WaitFor) -> None:
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    shim_command = [*SHIM, str(prefix), "--", "sh", "-c", f"read line < {go_on}; exit 5"]
    keeper_code = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(60)"
    keeper = subprocess.Popen([sys.executable, "-c", keeper_code, *shim_command])
    wait_for(Path(f"{prefix}.pid").exists)
    keeper.kill()
    keeper.wait()
    pids = record(prefix, ".pid")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(pids["shim"], number)
    assert tree.is_running(pids["command"])
    assert tree.descendants(pids["shim"]) == [pids["command"]]
    go_on.write_text("\n")
    wait_for(Path(f"{prefix}.exit").exists)
    assert record(prefix, ".exit")["code"] == 5
    wait_for(lambda: not tree.is_running(pids["shim"]))


def test_a_parent_that_ignores_dead_children_loses_no_exit_code(prefix: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        shim = subprocess.Popen([*SHIM, str(prefix), "--", "sh", "-c", "exit 4"])
        shim.wait(timeout=10)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert record(prefix, ".exit")["code"] == 4


def test_records_that_cannot_be_written_are_tried_again(prefix: Path, wait_for: WaitFor) -> None:
    """A folder in the way of the temporary file stands for a full disk."""
    obstacle = Path(f"{prefix}.exit.tmp")
    obstacle.mkdir()
    shim = subprocess.Popen([*SHIM, str(prefix), "--", "true"])
    command = wait_for(lambda: Path(f"{prefix}.pid").exists() and record(prefix, ".pid")["command"])
    wait_for(lambda: not tree.is_running(command))
    assert shim.poll() is None
    obstacle.rmdir()
    assert shim.wait(timeout=10) == 0
    assert record(prefix, ".exit")["code"] == 0


def test_a_removed_folder_does_not_keep_it(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    command = ["sh", "-c", f"rm -r {folder}"]
    assert subprocess.run([*SHIM, str(folder / "attempt-1"), "--", *command], timeout=20, check=False).returncode == 0


def test_it_is_small() -> None:
    """It stands beside every run for its whole life."""
    assert len(Path(shim_module.__file__).read_text().splitlines()) < 75
