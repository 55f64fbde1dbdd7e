"""What stands in when py-spy cannot read a process: the process itself, which is asked; else what the kernel says.

Once the kernel itself denies it, by mounts and a filter; else a script stands in py-spy's place, and says what py-spy
0.4.3 and 0.3.14 were seen to say.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.conftest import Spawn, WaitFor
from tests.hooked import TWO_WAIT, Fake, Start, Two, said
from tests.test_hook import environment
from tests.test_stacks import called, ref
from tests.test_threads import NUMBERS, ONLY_ROOT, VFORK, in_vfork
from vllm_probes.rows import ProcessRef, StackFile
from vllm_probes.sensors import stacks
from vllm_probes.sensors.py_spy import explain
from vllm_probes.sensors.py_spy import read_stacks as read_stacks_by_py_spy
from vllm_probes.sensors.stacks import capture
from vllm_probes.sensors.threads import facts, switch_count
from vllm_probes.sensors.tree import descendants
from vllm_tui.screens.stack_processes import process_rows, read_stacks
from vllm_tui.stackfiles import read_threads

pytest_plugins = ["tests.stack_fixtures"]

DENIED = """Permission Denied: Try running again with elevated permissions by going 'sudo env "PATH=$PATH" !!'"""
TOO_OLD = "Error: Unsupported version of Python: 3.13.0"
NO_DENIAL = "Worker_TP0 (pid {pid}) may not be read: run `sudo "


def saying(text: str) -> str:
    return f"cat >&2 <<'END'\n{text}\nEND\nexit 1"


def captured(pid: int, folder: Path, *, own: bool = True, timeout_s: float = 20.0) -> StackFile:
    own_pids = [pid] if own else []
    [found] = asyncio.run(capture([ref(pid)], folder, timeout_s=timeout_s, own_pids=own_pids))
    return found


def shows_both(found: StackFile, folder: Path, other: int) -> None:
    """Both threads, by the process itself, with what the kernel says of them, and the same in the file."""
    assert (found.rung, found.error) == ("faulthandler", None)
    assert [(thread.thread_id, thread.name) for thread in found.threads] == [(found.pid, "MainThread"), (other, None)]
    for thread in found.threads:
        assert (thread.state, thread.syscall) == ("S", NUMBERS["futex"])
        assert (thread.frames[0].function, thread.frames[0].file) == ("wait", "threading.py")
        assert "wait_for_work" in called(thread)
    written = read_threads(folder / str(found.file))
    assert [(thread.os_thread_id, thread.active) for thread in written] == [(found.pid, False), (other, False)]
    assert [[frame.name for frame in one.frames] for one in written] == [called(one) for one in found.threads]
    assert written[0].frames[0].place.startswith("threading.py:")


# --- whatever is the matter with py-spy -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", [saying(DENIED), saying(TOO_OLD), saying("Error: Odd"), "exec sleep 600", "echo [{}]"]
)
def test_the_process_is_asked(script: str, two: Two, fake_py_spy: Fake, tmp_path: Path) -> None:
    process, other = two()
    fake_py_spy(script)
    found = captured(process.pid, tmp_path, timeout_s=0.5 if "sleep" in script else 20)
    shows_both(found, tmp_path, other)
    assert process.poll() is None
    head, *_ = process_rows(read_stacks(tmp_path, found), 120, all_threads=False)
    assert head.plain.endswith("+ 1 thread  as it told itself: without threads that ran")


def test_the_process_is_asked_without_py_spy(two: Two, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    process, other = two()
    monkeypatch.setattr(stacks, "find_py_spy", lambda: None)
    shows_both(captured(process.pid, tmp_path), tmp_path, other)


def test_whom_py_spy_reads_is_not_asked(two: Two, tmp_path: Path) -> None:
    process, _ = two()
    switches = switch_count(process.pid, process.pid)
    assert captured(process.pid, tmp_path).rung == "py-spy"
    assert switch_count(process.pid, process.pid) == switches


def test_whom_we_have_not_started_is_not_asked(two: Two, fake_py_spy: Fake, tmp_path: Path) -> None:
    process, _ = two()
    fake_py_spy(saying(DENIED))
    switches = switch_count(process.pid, process.pid)
    found = captured(process.pid, tmp_path, own=False)
    assert (found.rung, found.file) == ("proc", None)
    assert str(found.error).startswith(NO_DENIAL.format(pid=process.pid))
    assert [(thread.thread_id, thread.state, thread.frames) for thread in found.threads] == [(process.pid, "S", [])]
    assert switch_count(process.pid, process.pid) == switches


DENYING = """
import asyncio, ctypes, msgspec, pathlib, struct, sys
from vllm_probes.rows import ProcessRef
from vllm_probes.sensors.stacks import capture
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, 310), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
program = struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == libc.prctl(22, 2, program, 0, 0) == 0
pid = int(sys.argv[1])
[found] = asyncio.run(capture([ProcessRef(pid=pid, process="Worker_TP0")], pathlib.Path(sys.argv[2]), own_pids=[pid]))
sys.stdout.buffer.write(msgspec.json.encode(found))
"""
"""Its filter (seccomp(2)) fails process_vm_readv (310 on x86_64) with EPERM, as some containers do."""


@ONLY_ROOT
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter knows only its numbers")
def test_where_the_kernel_lets_nobody_read_memory(two: Two, tmp_path: Path) -> None:
    """The real py-spy. Yama is not there to be tried: like it, this leaves everything else of /proc to be read."""
    process, other = two()
    mounts = (
        f"mount -t tmpfs -o nodev none {tmp_path}/closed && mknod -m 666 {tmp_path}/closed/mem c 1 3 && "
        f'mount --bind {tmp_path}/closed/mem /proc/{process.pid}/mem && exec "$0" -c "$@"'
    )
    (tmp_path / "closed").mkdir()
    command = ["unshare", "-m", "sh", "-c", mounts, sys.executable, DENYING, str(process.pid), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    shows_both(msgspec.json.decode(done.stdout, type=StackFile), tmp_path, other)


# --- who has nothing to tell ------------------------------------------------------------------------------------------


def test_one_that_runs_shows_its_state_and_why_there_is_no_more(
    started: Start, fake_py_spy: Fake, tmp_path: Path
) -> None:
    process = started("print(flush=True)\nwhile True: pass")
    said(process)
    fake_py_spy(saying(DENIED))
    found = captured(process.pid, tmp_path)
    assert (found.rung, found.file) == ("proc", None)
    assert str(found.error).startswith(NO_DENIAL.format(pid=process.pid))
    assert str(found.error).endswith(
        " Nor can it be asked for them: it runs, and answers safely only while it stands still."
    )
    assert [(thread.state, thread.frames) for thread in found.threads] == [("R", [])]


def exits(spawned: Spawn, wait_for: WaitFor) -> int:
    process = spawned(["true"])
    process.wait()
    return process.pid


def zombie(spawned: Spawn, wait_for: WaitFor) -> int:
    process = spawned([sys.executable, "-c", ""], env=environment())
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process.pid


def in_kernel(spawned: Spawn, wait_for: WaitFor) -> int:
    process = spawned([sys.executable, "-c", VFORK], env=environment())
    wait_for(lambda: in_vfork(process.pid))
    return process.pid


def stopped(spawned: Spawn, wait_for: WaitFor) -> int:
    process = spawned([sys.executable, "-c", TWO_WAIT], env=environment(), stdout=subprocess.PIPE)
    said(process)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    return process.pid


def no_python(spawned: Spawn, wait_for: WaitFor) -> int:
    return spawned(["sleep", "inf"]).pid


@pytest.mark.parametrize(
    ("begin", "state", "why"),
    [
        (exits, None, "pid {pid}) gave no stacks within 1 s: see its state."),
        (zombie, "Z", "pid {pid}) gave no stacks within 1 s: see its state."),
        (in_kernel, "D", "see its state. Nor can it be asked for them: it waits inside the kernel."),
        (stopped, "T", "see its state. Nor can it be asked for them: it is stopped."),
        (no_python, "S", "pid {pid}) gave no stacks within 1 s: see its state."),
    ],
)
def test_each_is_a_fact_of_its_own_while_py_spy_hangs(
    begin: Callable[[Spawn, WaitFor], int],
    state: str | None,
    why: str,
    two: Two,
    spawned: Spawn,
    wait_for: WaitFor,
    fake_py_spy: Fake,
    tmp_path: Path,
) -> None:
    process, other = two()
    pid = begin(spawned, wait_for)
    fake_py_spy("exec sleep 600")
    targets = [ref(pid), ref(process.pid)]
    odd, well = asyncio.run(capture(targets, tmp_path, timeout_s=1.0, own_pids=[pid, process.pid]))
    assert str(odd.error).endswith(why.format(pid=pid))
    assert (odd.rung, [thread.state for thread in odd.threads[:1]]) == ("proc", [state] if state else [])
    shows_both(well, tmp_path, other)


async def test_whom_no_signal_ends_is_not_waited_for(
    two: Two, spawned: Spawn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a py-spy in state D: it reads a process that is, and cannot be killed."""
    process, _ = two()
    stuck = spawned(["sleep", "inf"]).pid

    async def read(py_spy: str | None, target: ProcessRef, timeout_s: float) -> bytes:
        await asyncio.Event().wait() if target.pid == stuck else None
        return await read_stacks_by_py_spy(py_spy, target, timeout_s)

    monkeypatch.setattr(stacks, "read_stacks", read)
    odd, well = await capture([ref(stuck), ref(process.pid)], tmp_path, timeout_s=2.0, own_pids=[stuck])
    assert odd.error == f"Worker_TP0 (pid {stuck}) gave no stacks within 4 s: see its state."
    assert (odd.rung, odd.file, [thread.state for thread in odd.threads]) == ("proc", None, ["S"])
    assert (well.rung, well.error) == ("py-spy", None)
    assert "wait_for_work" in called(well.threads[0])


# --- a container ------------------------------------------------------------------------------------------------------


@ONLY_ROOT
@pytest.mark.parametrize(("script", "rung"), [('exec $REAL "$@"', "py-spy"), (saying(DENIED), "faulthandler")])
def test_one_in_a_container(
    script: str, rung: str, spawned: Spawn, wait_for: WaitFor, fake_py_spy: Fake, tmp_path: Path
) -> None:
    """In the file are its own ids, as py-spy writes them; its threads have those that are seen from here."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", TWO_WAIT]
    outer = spawned(command, env=environment(), stdout=subprocess.PIPE)
    [inside] = said(outer)
    [pid] = wait_for(lambda: [pid for pid in descendants(outer.pid) if len(facts(pid)) == 2])
    threads = [pid, max(facts(pid))]
    fake_py_spy(script)
    found = wait_for(lambda: (seen := captured(pid, tmp_path)).file and seen)
    assert (found.rung, [(one.thread_id, one.state) for one in found.threads]) == (
        rung,
        [(one, "S") for one in threads],
    )
    assert all("wait_for_work" in called(thread) for thread in found.threads)
    written = json.loads((tmp_path / found.file).read_bytes())
    assert [thread["os_thread_id"] for thread in sorted(written, key=lambda one: one["os_thread_id"])] == [1, inside]


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_python_that_py_spy_does_not_know() -> None:
    said = explain(TOO_OLD, ref(7), "/v/bin/py-spy", None)
    assert (
        said
        == "Worker_TP0 (pid 7) runs Python 3.13.0, which this py-spy does not know: `pip install --upgrade py-spy`."
    )
