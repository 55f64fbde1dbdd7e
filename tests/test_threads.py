"""What the kernel says of real threads: blocked in every way, stopped, stuck, dead, in a container, frozen."""

import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from vllm_probes.judges.doing import NO_DESCRIPTOR
from vllm_probes.judges.syscalls import numbers, wait_in
from vllm_probes.sensors.cgroup import mounts, text_of
from vllm_probes.sensors.threads import ThreadFacts, facts, ids_inside, is_frozen, signal_state
from vllm_probes.sensors.tree import descendants

NUMBERS = numbers(os.uname().machine)
VFORK = "import ctypes, time\nif ctypes.PyDLL(None).vfork() == 0: time.sleep(60)"
"""The parent of a vfork is in state D until its child ends."""
ONLY_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can do that")

Python = Callable[[str], int]


@pytest.fixture
def python(spawned: Spawn) -> Python:
    return lambda code: spawned([sys.executable, "-c", code]).pid


def main_thread(pid: int) -> ThreadFacts | None:
    return facts(pid).get(pid)


def all_in_call(pid: int, count: int, call: str) -> bool:
    """Whether it has so many threads, and all of them are in this call."""
    return [one.syscall for one in facts(pid).values()] == count * [NUMBERS[call]]


def in_vfork(pid: int) -> bool:
    """In state D for good, not for a moment while something is read from a disk."""
    return bool(descendants(pid)) and "D" in {one.state for one in facts(pid).values()}


def polled(pid: int) -> str | None:
    """What its main thread polls, also by what is in its memory."""
    now = facts(pid, reads_memory=True).get(pid)
    return now.descriptor if now and wait_in(now.syscall, os.uname().machine) == "poll" else None


def in_state(pid: int, state: str) -> ThreadFacts | None:
    found = main_thread(pid)
    return found if found and found.state == state else None


@pytest.mark.parametrize(
    ("code", "calls", "descriptor"),
    [
        ("import time; time.sleep(60)", "clock_nanosleep nanosleep", "None"),
        ("import os; os.read(os.pipe()[0], 1)", "read", r"pipe:\[\d+\]"),
        ("import socket; ends = socket.socketpair(); ends[0].recv(1)", "recvfrom", r"socket:\[\d+\]"),
        ("import socket; socket.create_server(('127.0.0.1', 0)).accept()", "accept4", r"socket:\[\d+\]"),
        ("import select; select.epoll().poll()", "epoll_wait epoll_pwait", r"anon_inode:\[eventpoll\]"),
        ("import os, select; select.select([os.pipe()[0]], [], [])", "select pselect6", "None"),
        (
            "import os, select; p = select.poll(); p.register(os.pipe()[0]); p.modify(3, 1); p.poll()",
            "poll ppoll",
            "None",
        ),
        ("import select; select.poll().poll()", "poll ppoll", NO_DESCRIPTOR),
        ("import select; select.select([], [], [], 60)", "select pselect6", NO_DESCRIPTOR),
        ("import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()", "futex", "None"),
        ("import subprocess; subprocess.run(['sleep', '60'])", "wait4", "None"),
    ],
)
def test_what_a_thread_is_blocked_in(code: str, calls: str, descriptor: str, python: Python, wait_for: WaitFor) -> None:
    pid, expected = python(code), {NUMBERS[name] for name in calls.split() if name in NUMBERS}

    def is_there() -> bool:
        now = main_thread(pid)
        return bool(now and now.syscall in expected and re.fullmatch(descriptor, str(now.descriptor)))

    wait_for(is_there, message=f"it is not in {calls} on {descriptor}: {main_thread(pid)}")
    assert facts(pid)[pid].state == "S"


POLLS = """
import asyncio, ctypes, multiprocessing, os, select, socket, sys
libc = ctypes.CDLL(None)
fifo, (reader, writer), (a, b) = sys.argv[1], os.pipe(), socket.socketpair()
os.mkfifo(fifo)
fifo = os.open(fifo, os.O_RDWR)
def poll(kind, *descriptors):
    polling = kind()
    for one in descriptors:
        polling.register(one, select.POLLIN)
    polling.poll()
"""
SOCKET, PIPE = r"socket:\[\d+\]", r"pipe:\[\d+\]"


@pytest.mark.parametrize(
    ("code", "descriptor"),
    [
        ("select.select([fifo], [], [])", ".*/fifo"),
        ("select.select([reader, a], [], [])", SOCKET),
        ("select.select([], [], [reader])", PIPE),
        ("libc.select(1000, None, None, None, None)", NO_DESCRIPTOR),
        ("poll(select.poll, fifo)", ".*/fifo"),
        ("poll(select.poll, reader, fifo)", PIPE),
        ("poll(select.poll, fifo, a)", SOCKET),
        ("poll(select.poll, fifo, os.eventfd(0))", r"anon_inode:\[eventfd\]"),
        ("poll(select.poll, fifo, select.epoll())", ".*/fifo"),
        ("poll(select.poll, *(os.dup(fifo) for _ in range(200)))", ".*/fifo"),
        ("poll(select.poll)", NO_DESCRIPTOR),
        ("libc.poll((ctypes.c_int * 4)(-1, 1, reader, 1), 2, -1)", PIPE),
        ("libc.poll((ctypes.c_int * 2)(-1, 1), 1, -1)", NO_DESCRIPTOR),
        ("poll(select.epoll, reader)", PIPE),
        ("poll(select.epoll, reader, a)", SOCKET),
        ("poll(select.epoll)", r"anon_inode:\[eventpoll\]"),
        ("asyncio.new_event_loop().run_forever()", SOCKET),
        ("multiprocessing.Queue().get(timeout=60)", PIPE),
        ("ends = multiprocessing.Pipe(); ends[0].poll(None)", SOCKET),
    ],
)
def test_what_a_thread_polls(code: str, descriptor: str, spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    pid = spawned([sys.executable, "-c", POLLS + code, str(tmp_path / "fifo")]).pid

    wait_for(lambda: re.fullmatch(descriptor, str(polled(pid))), message=f"it does not poll {descriptor}")


def test_a_thread_that_polls_and_sleeps_in_turn(python: Python, wait_for: WaitFor) -> None:
    """What it polls is not told of its sleep, nor anything that it does not poll."""
    pid = python(
        "import os, select, time\n"
        "polling = select.poll(); polling.register(os.pipe()[0], select.POLLIN)\n"
        "while True: polling.poll(1); time.sleep(0.001)"
    )
    wait_for(lambda: polled(pid))
    looks = [facts(pid, reads_memory=True)[pid] for _ in range(2000)]
    told = [one for one in looks if one.descriptor is not None]
    assert {str(one.descriptor).partition(":")[0] for one in told} == {"pipe"}
    assert {wait_in(one.syscall, os.uname().machine) for one in told} == {"poll"}


def test_a_file_has_its_path_whatever_its_name(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    fifo = os.fsencode(tmp_path) + b"/na\xffme \xc3\xa9"
    os.mkfifo(fifo)
    child = spawned(["sh", "-c", 'exec <> "$1"; read line', "sh", os.fsdecode(fifo)])
    in_read = wait_for(lambda: (now := main_thread(child.pid)) and now.syscall == NUMBERS["read"] and now)
    assert in_read.descriptor == f"{tmp_path}/na\N{REPLACEMENT CHARACTER}me é"


def test_a_descriptor_that_was_closed_meanwhile(spawned: Spawn, wait_for: WaitFor) -> None:
    code = (
        "import os, threading, sys\n"
        "reader, writer = os.pipe()\n"
        "threading.Thread(target=os.read, args=(reader, 1)).start()\n"
        "sys.stdin.readline(); os.close(reader); sys.stdin.readline()"
    )
    child = spawned([sys.executable, "-c", code], stdin=subprocess.PIPE)

    def reads_from() -> list[str | None]:
        read = NUMBERS["read"]
        return [one.descriptor for id_, one in facts(child.pid).items() if id_ != child.pid and one.syscall == read]

    wait_for(lambda: any(str(descriptor).startswith("pipe:") for descriptor in reads_from()))
    assert child.stdin
    child.stdin.write(b"\n")
    child.stdin.flush()
    wait_for(lambda: reads_from() == [None])


def test_one_that_runs_has_no_call_and_uses_cpu(python: Python, wait_for: WaitFor) -> None:
    pid = python("while True: pass")
    before = wait_for(lambda: in_state(pid, "R"))
    after = wait_for(lambda: (now := in_state(pid, "R")) and now.cpu_ticks > before.cpu_ticks and now)
    assert after.syscall is after.descriptor is None


def test_one_that_is_stopped_is_still_in_its_call(python: Python, wait_for: WaitFor) -> None:
    pid = python("import os; os.read(os.pipe()[0], 1)")
    wait_for(lambda: (now := main_thread(pid)) and str(now.descriptor).startswith("pipe:"))
    os.kill(pid, signal.SIGSTOP)
    stopped = wait_for(lambda: in_state(pid, "T"))
    assert stopped.syscall == NUMBERS["read"]
    assert stopped.descriptor.startswith("pipe:")


def test_every_thread_of_many(python: Python, wait_for: WaitFor) -> None:
    pid = python("import threading\nfor _ in range(50): threading.Thread(target=threading.Event().wait).start()")
    wait_for(lambda: all_in_call(pid, 51, "futex"))


def test_threads_that_come_and_go(python: Python, wait_for: WaitFor) -> None:
    pid = python("import threading\nwhile True: threading.Thread(target=int).start()")
    wait_for(lambda: len(facts(pid)) > 1)
    assert all(pid in facts(pid) for _ in range(300))


def test_a_name_that_looks_like_a_state(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    sleep = shutil.copy(str(shutil.which("sleep")), tmp_path / "a) R 1 (b")
    child = spawned([sleep, "60"])
    wait_for(lambda: text_of(Path(f"/proc/{child.pid}/comm")) == "a) R 1 (b\n" and in_state(child.pid, "S"))


def test_a_zombie_and_what_is_gone(spawned: Spawn) -> None:
    child = spawned(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert facts(child.pid)[child.pid].state == "Z"
    assert not is_frozen(child.pid)
    child.wait()
    assert facts(child.pid) == ids_inside(child.pid) == {}
    assert not is_frozen(child.pid)
    assert signal_state(child.pid, child.pid, signal.SIGTERM) == ("X", False, False, False)


# --- state D ----------------------------------------------------------------------------------------------------------


def test_state_d(python: Python, wait_for: WaitFor) -> None:
    pid = python(VFORK)
    wait_for(lambda: in_vfork(pid))
    stuck = facts(pid)[pid]
    assert stuck.state == "D"
    assert stuck.syscall is not None
    assert stuck.syscall > 0
    assert not is_frozen(pid)
    assert signal_state(pid, pid, signal.SIGUSR2) == ("D", False, False, False)


def test_of_a_process_in_state_d_only_what_never_waits_is_opened(python: Python, wait_for: WaitFor) -> None:
    """A vfork does not hold the lock that a driver may hold, so it is looked at which files are asked for."""
    pid = python(VFORK)
    wait_for(lambda: in_vfork(pid))
    code = (
        "import sys\n"
        "from vllm_probes.sensors.threads import facts, ids_inside, is_frozen, signal_state\n"
        f"pid, opened = {pid}, set()\n"
        "sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == 'open' else None)\n"
        "assert facts(pid, reads_memory=True); ids_inside(pid); is_frozen(pid); signal_state(pid, pid, 12)\n"
        "print(*(path.rpartition('/')[2] for path in opened if path.startswith(f'/proc/{pid}/')))"
    )
    opened = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(opened.split()) == {"stat", "syscall", "status", "cgroup"}


def test_the_memory_of_a_process_with_a_thread_in_state_d_is_left_alone(spawned: Spawn, wait_for: WaitFor) -> None:
    code = (
        "import os, select, sys, threading\n"
        f"def stuck(): sys.stdin.readline(); exec({VFORK!r})\n"
        "threading.Thread(target=stuck).start()\n"
        "select.select([os.pipe()[0]], [], [])"
    )
    child = spawned([sys.executable, "-c", code], stdin=subprocess.PIPE)
    wait_for(lambda: str(polled(child.pid)).startswith("pipe:"))
    assert child.stdin
    child.stdin.write(b"\n")
    child.stdin.flush()
    wait_for(lambda: in_vfork(child.pid))
    assert polled(child.pid) is None
    assert facts(child.pid)[child.pid].state == "S"


# --- rights, containers, control groups, signals ----------------------------------------------------------------------


@ONLY_ROOT
def test_of_another_users_process_only_the_state_is_known(python: Python, wait_for: WaitFor) -> None:
    pid = python("import os; os.read(os.pipe()[0], 1)")
    wait_for(lambda: (now := main_thread(pid)) and now.syscall == NUMBERS["read"])
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            os.write(writer, repr(main_thread(pid)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with open(reader) as pipe:
        seen = pipe.read()
    assert re.fullmatch(r"ThreadFacts\(state='S', cpu_ticks=\d+, syscall=None, descriptor=None\)", seen)


@ONLY_ROOT
def test_threads_of_a_container_have_ids_of_their_own(spawned: Spawn, wait_for: WaitFor) -> None:
    code = "import threading; threading.Thread(target=threading.Event().wait).start()"
    outer = spawned(["unshare", "--pid", "--fork", sys.executable, "-c", code])
    (pid,) = wait_for(lambda: [pid for pid in descendants(outer.pid) if all_in_call(pid, 2, "futex")])
    other = max(facts(pid))
    assert ids_inside(pid) == {1: pid, 2: other}
    assert ids_inside(outer.pid) == {}


@pytest.fixture
def control_group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A group of our own, of the version that is asked for."""
    mounted = mounts(text_of(Path("/proc/self/mountinfo")))
    tree = next((one.point for one in mounted if one.kind == request.param or request.param in one.options), None)
    if tree is None:
        pytest.skip(f"no {request.param} is mounted here")
    folder = tree / f"vtui-test-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    folder.rmdir()


@pytest.mark.parametrize(
    ("control_group", "switch", "on", "off"),
    [("freezer", "freezer.state", "FROZEN", "THAWED"), ("cgroup2", "cgroup.freeze", "1", "0")],
    indirect=["control_group"],
)
def test_a_frozen_process(
    control_group: Path, switch: str, on: str, off: str, spawned: Spawn, wait_for: WaitFor
) -> None:
    child = spawned(["sleep", "60"])
    (control_group / "cgroup.procs").write_text(str(child.pid))
    try:
        assert not is_frozen(child.pid)
        (control_group / switch).write_text(on)
        wait_for(lambda: is_frozen(child.pid))
        (control_group / switch).write_text(off)
        wait_for(lambda: not is_frozen(child.pid))
    finally:
        (control_group / switch).write_text(off)
        child.kill()
        child.wait()


def test_signals_that_are_caught_blocked_and_pending(python: Python, wait_for: WaitFor) -> None:
    pid = python(
        "import signal, threading\n"
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN); signal.signal(signal.SIGUSR2, lambda *_: None)\n"
        "threading.Thread(target=signal.pause).start()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])\n"
        "signal.pthread_kill(threading.get_ident(), signal.SIGUSR2); signal.pause()"
    )
    wait_for(lambda: signal_state(pid, pid, signal.SIGUSR2) == ("S", True, True, True))
    wait_for(lambda: signal_state(pid, max(facts(pid)), signal.SIGUSR2) == ("S", True, False, False))
    assert signal_state(pid, pid, signal.SIGINT) == ("S", True, False, False)
    for other in (signal.SIGUSR1, signal.SIGTERM):
        assert signal_state(pid, pid, other) == ("S", False, False, False)
