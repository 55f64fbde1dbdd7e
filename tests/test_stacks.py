"""Real stacks of real processes, with what the kernel says of their threads."""

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

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Spawn, WaitFor
from tests.hooked import Fake
from tests.test_threads import NUMBERS, ONLY_ROOT, VFORK, all_in_call, in_vfork
from vllm_probes.rows import Frame, ProcessRef, StackFile, ThreadStack
from vllm_probes.sensors import stacks
from vllm_probes.sensors.py_spy import explain, find_py_spy
from vllm_probes.sensors.stacks import MAX_THREADS, capture, join, shorten
from vllm_probes.sensors.threads import ThreadFacts, facts
from vllm_probes.sensors.tree import descendants

WAITS = """
import threading
def wait_for_work(): threading.Event().wait()
def worker_busy_loop(): wait_for_work()
threading.Thread(target=worker_busy_loop, name="other").start()
worker_busy_loop()
"""

pytest_plugins = ["tests.stack_fixtures"]

TARGET = ProcessRef(pid=7, process="Worker_TP1")

Waiting = Callable[[], subprocess.Popen[bytes]]


def functions(file: Path) -> list[set[str]]:
    return [{frame["name"] for frame in thread["frames"]} for thread in json.loads(file.read_bytes())]


def ref(pid: int, process: str = "Worker_TP0") -> ProcessRef:
    return ProcessRef(pid=pid, process=process)


def captured(targets: list[ProcessRef], folder: Path, timeout_s: float = 5.0) -> list[StackFile]:
    return asyncio.run(capture(targets, folder, timeout_s=timeout_s))


def called(thread: ThreadStack) -> list[str]:
    return [frame.function for frame in thread.frames]


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
    assert [(file.pid, file.process, file.file, file.error) for file in files] == [
        (pid, "Worker_TP0", f"{pid}-Worker_TP0.json", None) for pid in pids
    ]
    for file in files:
        assert len(functions(folder / str(file.file))) == 2
        assert all({"worker_busy_loop", "wait_for_work"} <= thread for thread in functions(folder / str(file.file)))


def test_a_stopped_process_has_stacks_and_stays_stopped(waiting: Waiting, tmp_path: Path) -> None:
    child = waiting()
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    [found] = captured([ref(child.pid)], tmp_path)
    assert "wait_for_work" in functions(tmp_path / str(found.file))[0]
    assert [(thread.state, "wait_for_work" in called(thread)) for thread in found.threads] == 2 * [("T", True)]
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
    assert [[(thread.thread_id, thread.state, thread.frames) for thread in file.threads] for file in found[:2]] == [
        [(other.pid, "S", [])],
        [(gone.pid, "Z", [])],
    ]
    assert found[3].threads == []


def test_any_name_makes_a_file_in_the_folder(waiting: Waiting, tmp_path: Path) -> None:
    child = waiting()
    names = ["../../x y", "ray::IDLE", "[/red]", "n" * 300, ""]
    for found in captured([ref(child.pid, name) for name in names], tmp_path / "s"):
        assert (tmp_path / "s" / str(found.file)).parent == tmp_path / "s"
        assert (tmp_path / "s" / str(found.file)).is_file()


@ONLY_ROOT
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
            os.write(writer, msgspec.json.encode(found))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        seen = msgspec.json.decode(pipe.read(), type=StackFile)
    os.wait()
    shutil.rmtree(everybodys)
    assert f"`sudo {py_spy} dump --nonblocking --pid {child.pid}`" in str(seen.error)
    assert "SYS_PTRACE" in str(seen.error)
    assert [(thread.thread_id, thread.state, thread.syscall) for thread in seen.threads] == [(child.pid, "S", None)]


def test_one_that_hangs_is_killed(fake_py_spy: Fake, tmp_path: Path) -> None:
    fake_py_spy("echo $$ > $HERE/pid\nexec sleep 600")
    [found] = captured([TARGET], tmp_path, timeout_s=0.3)
    assert found.error == "Worker_TP1 (pid 7) gave no stacks within 0.3 s: see its state."
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_folder_that_cannot_be_written_is_an_error(waiting: Waiting, tmp_path: Path) -> None:
    child = waiting()
    (tmp_path / "file").touch()
    [found] = captured([ref(child.pid)], tmp_path / "file" / "folder")
    assert "Not a directory" in str(found.error)
    assert ["wait_for_work" in called(thread) for thread in found.threads] == [True, True]


def test_missing_py_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "find_py_spy", lambda: None)
    [found] = captured([ref(os.getpid())], tmp_path)
    assert "pip install py-spy" in str(found.error)
    assert [(thread.thread_id, thread.state, thread.frames) for thread in found.threads] == [(os.getpid(), "R", [])]


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
        ("Error: Failed to get stack traces\n\nCaused by:\n  Bad address (os error 14)", None, "capture again"),
        ("Error: Odd\n\nCaused by:\n  odder\n\nStack backtrace:\n  0: anyhow", None, "Error: Odd Caused by: odder"),
        ("", None, "does not say why"),
    ],
)
def test_explain(stderr: str, scope: int | None, said: str) -> None:
    assert said in explain(stderr, TARGET, "/v/bin/py-spy", scope)


def test_a_scope_that_only_a_reboot_changes_is_not_to_be_set() -> None:
    assert "sysctl" not in explain("permission denied", TARGET, "/v/bin/py-spy", 3)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_a_thread_has_its_calls_and_what_the_kernel_says(waiting: Waiting, tmp_path: Path) -> None:
    child = waiting()
    [found] = captured([ref(child.pid)], tmp_path)
    main, other = found.threads
    assert (main.thread_id, main.name, main.active, main.state) == (child.pid, "MainThread", False, "S")
    assert main.syscall == NUMBERS["futex"]
    assert main.cpu_ticks is not None
    assert main.frames[0] == Frame(function="wait", file="threading.py", line=main.frames[0].line)
    assert main.frames[-1] == Frame(function="<module>", file="<string>", line=6)
    assert other.name == "other"
    assert called(other)[-4:] == ["worker_busy_loop", "run", "_bootstrap_inner", "_bootstrap"]
    assert {other.thread_id} == set(facts(child.pid)) - {child.pid}


def test_one_in_state_d_shows_its_state_whether_py_spy_hangs_or_not(
    spawned: Spawn, wait_for: WaitFor, fake_py_spy: Fake, tmp_path: Path
) -> None:
    stuck = spawned([sys.executable, "-c", f"def into_the_driver():\n  exec({VFORK!r})\ninto_the_driver()"]).pid
    wait_for(lambda: in_vfork(stuck))
    [found] = captured([ref(stuck)], tmp_path)
    assert [(thread.state, "into_the_driver" in called(thread)) for thread in found.threads] == [("D", True)]
    fake_py_spy("exec sleep 600")
    [found] = captured([ref(stuck)], tmp_path, timeout_s=0.3)
    assert "see its state" in str(found.error)
    assert [(thread.thread_id, thread.state, thread.frames) for thread in found.threads] == [(stuck, "D", [])]


def test_of_a_dead_process_the_thread_that_is_stuck_is_shown(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    code = (
        "import ctypes, threading\n"
        f"threading.Thread(target=exec, args=({VFORK!r},)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    dead = spawned([sys.executable, "-c", code]).pid
    wait_for(lambda: in_vfork(dead) and facts(dead)[dead].state == "Z")
    [found] = captured([ref(dead)], tmp_path)
    assert [(thread.thread_id == dead, thread.state) for thread in found.threads] == [(True, "Z"), (False, "D")]


def test_a_thread_that_ends_meanwhile_keeps_its_calls(
    spawned: Spawn, wait_for: WaitFor, fake_py_spy: Fake, tmp_path: Path
) -> None:
    code = (
        "import os, threading, time\n"
        "def until_it_was_seen():\n"
        f"  while not os.path.exists({str(tmp_path / 'seen')!r}): time.sleep(0.1)\n"
        "threading.Thread(target=until_it_was_seen).start(); time.sleep(60)"
    )
    pid = spawned([sys.executable, "-c", code]).pid
    wait_for(lambda: all_in_call(pid, 2, "clock_nanosleep"))
    fake_py_spy('"$REAL" "$@"; touch $HERE/seen; while [ $(ls /proc/$5/task | wc -l) -gt 1 ]; do sleep 0.02; done')
    [found] = captured([ref(pid)], tmp_path)
    assert [thread.state for thread in found.threads] == ["S", None]
    assert "until_it_was_seen" in called(found.threads[1])


def test_two_hundred_threads_are_bounded_and_the_named_come_first(
    spawned: Spawn, wait_for: WaitFor, tmp_path: Path
) -> None:
    code = (
        "import threading\n"
        "def start(**options): threading.Thread(target=threading.Event().wait, **options).start()\n"
        "for _ in range(190): start()\n"
        "for number in range(10): start(name=f'Named{number}')\n"
    )
    pid = spawned([sys.executable, "-c", code]).pid
    wait_for(lambda: all_in_call(pid, 201, "futex"))
    [found] = captured([ref(pid)], tmp_path)
    assert len(functions(tmp_path / str(found.file))) == 201
    names = [str(thread.name) for thread in found.threads]
    assert names[:11] == ["MainThread", *(f"Named{number}" for number in range(10))]
    assert names[11:] == [f"Thread-{number} (wait)" for number in range(1, MAX_THREADS - 10)]
    assert all(thread.state == "S" and thread.frames for thread in found.threads)


def test_both_ends_of_a_deep_stack(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    code = (
        "import time\n"
        "def leaf(): time.sleep(60)\n"
        "def down(n): down(n - 1) if n else leaf()\n"
        "def root(): down(300)\n"
        "root()"
    )
    pid = spawned([sys.executable, "-c", code]).pid

    def threads() -> list[ThreadStack]:
        [found] = captured([ref(pid)], tmp_path)
        return found.threads if found.threads and "leaf" in called(found.threads[0]) else []

    [main] = wait_for(threads)
    assert called(main) == ["leaf", *(37 * ["down"]), "root", "<module>"]


def test_a_script_whose_name_is_no_utf8(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    """py-spy leaves out the calls of such a file."""
    script = tmp_path / os.fsdecode(b"na\xffme.py")
    script.write_text("import threading\ndef inner(): threading.Event().wait()\ninner()")
    pid = spawned([sys.executable, str(script)]).pid
    wait_for(lambda: facts(pid)[pid].syscall == NUMBERS["futex"])
    [found] = captured([ref(pid)], tmp_path)
    assert [(thread.state, called(thread)) for thread in found.threads] == [("S", ["wait", "wait"])]
    assert msgspec.json.decode(msgspec.json.encode(found), type=StackFile) == found


@ONLY_ROOT
def test_threads_of_a_container_are_found(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    outer = spawned(["unshare", "--pid", "--fork", sys.executable, "-c", WAITS])
    (pid,) = wait_for(lambda: [pid for pid in descendants(outer.pid) if all_in_call(pid, 2, "futex")])
    [found] = captured([ref(pid)], tmp_path)
    assert [(thread.thread_id, thread.name, thread.state) for thread in found.threads] == [
        (pid, "MainThread", "S"),
        (max(facts(pid)), "other", "S"),
    ]


def test_python_3_10_does_not_tell_the_ids_of_its_threads(waiting: Waiting, fake_py_spy: Fake, tmp_path: Path) -> None:
    """So it looks without a pause (py-spy 0.4.3); only the main thread is known by its name."""
    child = waiting()
    fake_py_spy("""$REAL "$@" | sed 's/"os_thread_id": [0-9]*/"os_thread_id": null/'""")
    [found] = captured([ref(child.pid)], tmp_path)
    assert [(thread.name, thread.state) for thread in found.threads] == [("MainThread", "S"), ("other", None)]
    assert found.threads[0].thread_id == child.pid
    assert "wait_for_work" in called(found.threads[1])


# --- many, busy and strange -------------------------------------------------------------------------------------------

MOVED = "echo 'Error: Failed to get stack traces' >&2; exit 1"


@pytest.mark.parametrize(("failures", "error"), [(5, "None"), (6, "ran on while it was looked at")])
def test_what_moves_is_looked_at_again(
    failures: int, error: str, waiting: Waiting, fake_py_spy: Fake, tmp_path: Path
) -> None:
    child = waiting()
    fake_py_spy(f'echo >> $HERE/n; if [ $(wc -l < $HERE/n) -le {failures} ]; then {MOVED}; fi; exec $REAL "$@"')
    [found] = captured([ref(child.pid)], tmp_path)
    assert error in str(found.error)
    assert found.threads[0].state == "S"


@pytest.mark.parametrize("printed", ["[{}]", "Thread 1"])
def test_what_py_spy_does_not_write_is_an_error(printed: str, fake_py_spy: Fake, tmp_path: Path) -> None:
    fake_py_spy(f"echo '{printed}'")
    [found] = captured([ref(os.getpid())], tmp_path)
    assert "install py-spy 0.4" in str(found.error)
    assert [thread.thread_id for thread in found.threads] == [os.getpid()]


def test_only_so_many_are_looked_at_together(
    fake_py_spy: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(stacks, "TURN_S", 60)
    fake_py_spy("mkdir $HERE/in$5; ls -d $HERE/in* | wc -l >> $HERE/counts; sleep 0.05; rmdir $HERE/in$5; echo []")
    captured([ref(pid) for pid in range(1, 9)], tmp_path, timeout_s=60)
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert len(counts) == 8
    assert max(counts) <= stacks.DUMPS_PER_CORE


def test_those_that_hang_hold_up_nobody(fake_py_spy: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hangs until the last one has been looked at."""
    monkeypatch.setattr(stacks, "TURN_S", 0.05)
    fake_py_spy("[ $5 = 1 ] && touch $HERE/last; until [ -e $HERE/last ]; do sleep 0.02; done; echo []")
    hanging = [ref(pid) for pid in range(2, 4 + stacks.DUMPS_PER_CORE * len(os.sched_getaffinity(0)))]
    assert {found.error for found in captured([*hanging, ref(1)], tmp_path, timeout_s=20)} == {None}


# --- pure parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "short"),
    [
        ("/v/lib/python3.12/site-packages/vllm/v1/engine/core.py", "vllm/v1/engine/core.py"),
        ("/usr/lib/python3/dist-packages/zmq/sugar/poll.py", "zmq/sugar/poll.py"),
        ("/usr/lib64/python3.11/threading.py", "threading.py"),
        ("/x/lib/python3.13t/concurrent/futures/thread.py", "concurrent/futures/thread.py"),
        ("/v/lib/python3.11/site-packages/a/lib/python3.11/site-packages/b/c.py", "b/c.py"),
        ("/src/vllm/vllm/v1/worker/gpu/worker.py", "vllm/v1/worker/gpu/worker.py"),
        ("/src/pytorch/torch/_ops.py", "torch/_ops.py"),
        ("/src/my_vllm/a/b/c.py", "a/b/c.py"),
        ("/my-site-packages/a/b/c/d.py", "b/c/d.py"),
        ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap>"),
        ("<string>", "<string>"),
        ("", ""),
    ],
)
def test_shorten(file: str, short: str) -> None:
    assert shorten(file) == short


def test_threads_whose_id_nobody_knows_are_all_kept() -> None:
    threads = [ThreadStack(thread_id=0, name=name) for name in ("one", "other")]
    assert join(7, threads, {7: ThreadFacts("S", 1, None, None)}) == [
        ThreadStack(thread_id=7, state="S", cpu_ticks=1),
        *threads,
    ]


NAMES = st.sampled_from(
    [None, "MainThread", "DeathPipeMonitor", "Thread-7 (run)", "asyncio_0", "ThreadPoolExecutor-3_1"]
)
FRAMES = st.lists(st.just(Frame(function="f", file="f.py")), max_size=1)
PYTHON = st.builds(ThreadStack, thread_id=st.integers(1, 40), name=NAMES, frames=FRAMES)
KERNEL = st.builds(ThreadFacts, st.sampled_from("RSDZ"), st.integers(0), st.none(), st.none())


@given(st.lists(PYTHON, unique_by=lambda thread: thread.thread_id), st.dictionaries(st.integers(1, 40), KERNEL))
def test_which_threads_are_kept(python: list[ThreadStack], kernel: dict[int, ThreadFacts]) -> None:
    main, known = 1, {thread.thread_id: thread for thread in python}
    kept = join(main, python, kernel)
    assert kept == join(main, python[::-1], kernel)
    ids = [thread.thread_id for thread in kept]
    assert len(set(ids)) == len(ids) <= MAX_THREADS
    assert (ids[:1] == [main]) == (main in known.keys() | kernel.keys())
    for thread in kept:
        own = known.get(thread.thread_id, ThreadStack(thread_id=thread.thread_id))
        assert (thread.name, thread.frames) == (own.name, own.frames)
        assert thread.state == (kernel[thread.thread_id].state if thread.thread_id in kernel else None)
    telling = {one.thread_id for one in python if one.frames or one.name in ("MainThread", "DeathPipeMonitor")}
    assert telling <= set(ids) or (len(ids) == MAX_THREADS and set(ids) <= telling | {main})
