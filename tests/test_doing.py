"""What a thread does at this moment: real processes that do each of it, as py-spy and /proc show them."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Spawn, WaitFor
from tests.stack_notation import thread
from vllm_probes.judges.doing import Doing, doing, place
from vllm_probes.judges.frames import Classified, load_frames
from vllm_probes.judges.syscalls import NO_DESCRIPTOR, numbers
from vllm_probes.rows import Frame, ThreadStack
from vllm_probes.sensors.py_spy import find_py_spy
from vllm_probes.sensors.threads import facts

MACHINE = platform.machine()
TABLE = load_frames(machine=MACHINE)
PY_SPY = str(find_py_spy())

# Each is the body of a function `stuck` that never returns; `folder` is the test's own, `a` and `b` are a socket pair.
STUCK: list[tuple[str, str, Doing]] = [
    ("sleeps", "time.sleep(1000)", "sleep"),
    ("takes a lock twice", "lock = threading.Lock(); lock.acquire(); lock.acquire()", "lock"),
    ("takes a lock with a deadline", "lock = threading.Lock(); lock.acquire(); lock.acquire(timeout=1000)", "lock"),
    ("waits for an event", "threading.Event().wait()", "lock"),
    ("waits for a queue", "queue.Queue().get()", "lock"),
    ("waits for a lock between processes", "lock = multiprocessing.Lock(); lock.acquire(); lock.acquire()", "lock"),
    ("waits for a thread", "t = threading.Thread(target=time.sleep, args=(1000,)); t.start(); t.join()", "lock"),
    ("opens a FIFO", "os.mkfifo(folder / 'f'); open(folder / 'f')", "read"),
    ("reads a FIFO", "os.mkfifo(folder / 'f'); open(os.open(folder / 'f', os.O_RDWR)).read(1)", "read"),
    ("reads a pipe", "r, w = os.pipe(); os.read(r, 1)", "read"),
    ("writes to a full pipe", "r, w = os.pipe(); os.write(w, bytes(1 << 20))", "read"),
    ("waits for a subprocess", "subprocess.run(['sleep', '1000'])", "subprocess"),
    ("reads what a subprocess says", "subprocess.run(['sleep', '1000'], stdout=subprocess.PIPE)", "subprocess"),
    ("reads both of its outputs", "subprocess.run(['sleep', '1000'], capture_output=True)", "subprocess"),
    ("looks for its end", "subprocess.run(['sleep', '1000'], timeout=1000)", "subprocess"),
    ("waits for its pid", "os.waitpid(subprocess.Popen(['sleep', '1000']).pid, 0)", "subprocess"),
    ("waits for any child", "subprocess.Popen(['sleep', '1000']); os.waitid(os.P_ALL, 0, os.WEXITED)", "subprocess"),
    ("joins a process", "p = FORK.Process(target=time.sleep, args=(1000,)); p.start(); p.join()", "subprocess"),
    (
        "joins it with a deadline",
        "p = FORK.Process(target=time.sleep, args=(1000,)); p.start(); p.join(1000)",
        "subprocess",
    ),
    ("receives from a socket", "a.recv(1)", "socket"),
    ("receives with a deadline", "a.settimeout(1000); a.recv(1)", "socket"),
    ("reads a socket as a file", "os.read(a.fileno(), 1)", "socket"),
    ("accepts", "socket.create_server(('127.0.0.1', 0)).accept()", "socket"),
    ("selects a socket", "select.select([a], [], [])", "socket"),
    ("polls a socket", "p = select.poll(); p.register(a); p.modify(a, 1); p.poll()", "socket"),
    ("waits for a selector", "s = selectors.EpollSelector(); s.register(a, 1); s.select()", "socket"),
    ("selects a FIFO", "os.mkfifo(folder / 'f'); select.select([os.open(folder / 'f', os.O_RDWR)], [], [])", "read"),
    ("polls a pipe", "r, w = os.pipe(); p = select.poll(); p.register(r); p.modify(r, 1); p.poll()", "read"),
    ("waits for a pipe by epoll", "r, w = os.pipe(); p = select.epoll(); p.register(r, 1); p.poll()", "read"),
    ("waits to write to a full pipe", "r, w = os.pipe(); fill(w); select.select([], [w], [])", "read"),
    ("waits for a queue between processes", "q = multiprocessing.Queue(); q.get(timeout=1000)", "read"),
    ("waits for a pipe between processes", "r, w = multiprocessing.Pipe(duplex=False); r.poll(None)", "read"),
    ("waits for a connection between processes", "r, w = multiprocessing.Pipe(); r.poll(None)", "socket"),
    ("waits for an eventfd", "p = select.poll(); p.register(os.eventfd(0), 1); p.poll()", "socket"),
    ("polls nothing", "select.poll().poll()", "sleep"),
    ("selects nothing", "select.select([], [], [])", "sleep"),
    ("pauses", "signal.pause()", "sleep"),
    ("waits for a signal", "signal.sigwait([signal.SIGUSR1])", "sleep"),
    ("sends to nobody", "a.sendall(bytes(1 << 24))", "socket"),
    (
        "takes a held file lock",
        "f, g = open(folder / 'l', 'w'), open(folder / 'l', 'w'); fcntl.flock(f, 2); fcntl.flock(g, 2)",
        "lock",
    ),
    ("takes a held record lock", "f = open(folder / 'l', 'w'); held(f); fcntl.lockf(f, fcntl.LOCK_EX)", "lock"),
]
LOOPS: list[tuple[str, str, Doing]] = [
    (
        "loops in Python",
        "n = 0\n    while True:\n        n += 1\n        n -= 1\n        n ^= 1\n        n |= 2",
        "python_loop",
    ),
    (
        "loops through calls",
        "while True:\n        sum([1])\n        len('')\n        abs(1)\n        id(2)",
        "python_loop",
    ),
    ("sums", "sum(range(10 ** 14))", "native_loop"),
    ("matches", "re.match('(a+)+$', 'a' * 60 + 'b')", "native_loop"),
    ("raises to a power", "pow(3, 10 ** 9)", "native_loop"),
    ("hashes without the lock of Python", "hashlib.pbkdf2_hmac('sha256', b'', b'', 2 ** 31 - 1)", "native_loop"),
]
PROGRAM = """
import contextlib, fcntl, hashlib, multiprocessing, os, pathlib, queue, re, select, selectors, signal, socket
import subprocess, sys, threading, time
a, b = socket.socketpair()
FORK = multiprocessing.get_context("fork")
folder = pathlib.Path(sys.argv[1])
def held(file):
    r, w = os.pipe()
    if os.fork() == 0:
        fcntl.lockf(file, fcntl.LOCK_EX); os.write(w, b"x"); time.sleep(1000)
    os.read(r, 1)
def fill(pipe):
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True: os.write(pipe, bytes(4096))
def stuck():
    {body}
{rename}
stuck()
"""


def look(pid: int) -> ThreadStack | None:
    """The main thread of a process now; None: it has no stack yet."""
    dump = subprocess.run([PY_SPY, "dump", "--nonblocking", "--json", "--pid", str(pid)], capture_output=True)
    threads = json.loads(dump.stdout) if dump.returncode == 0 and dump.stdout else []
    stack = next((one["frames"] for one in threads if one["os_thread_id"] == pid), [])
    if not stack:
        return None
    calls = [
        Frame(function=one["name"].rpartition(".")[2], file=one["short_filename"], line=one["line"]) for one in stack
    ]
    now = facts(pid, reads_memory=True).get(pid)
    return now and ThreadStack(thread_id=pid, frames=calls, **now._asdict())


Start = Callable[..., int]


@pytest.fixture
def stuck(spawned: Spawn, tmp_path: Path) -> Start:
    def start(body: str, rename: str = "") -> int:
        return spawned([sys.executable, "-c", PROGRAM.format(body=body, rename=rename), str(tmp_path)]).pid

    return start


def settled(wait_for: WaitFor, pid: int, states: str) -> ThreadStack:
    """The process where it stays: two looks in a row at the same stack and system call, in `stuck`."""

    def now() -> ThreadStack | None:
        first, second = look(pid), look(pid)
        is_there = first == second and first and first.state in tuple(states)
        return second if is_there and any(call.function == "stuck" for call in first.frames) else None

    stack: ThreadStack = wait_for(now, 20, "it is not stuck")
    return stack


@pytest.mark.parametrize(("body", "expected"), [case[1:] for case in STUCK], ids=[case[0] for case in STUCK])
def test_a_process_that_is_stuck(body: str, expected: Doing, stuck: Start, wait_for: WaitFor) -> None:
    stack = settled(wait_for, stuck(body), "S")
    assert doing(stack, TABLE.classify(stack), moved=False, machine=MACHINE) == expected
    assert str(place(stack)).startswith("stuck (<string>:")


@pytest.mark.parametrize(("body", "expected"), [case[1:] for case in LOOPS], ids=[case[0] for case in LOOPS])
def test_a_process_that_loops(body: str, expected: Doing, stuck: Start, wait_for: WaitFor) -> None:
    pid = stuck(body)
    wait_for(lambda: (one := look(pid)) and any(call.function == "stuck" for call in one.frames), 20)
    looks = [stack for _ in range(15) if (stack := look(pid))]
    moved = len({stack.frames[0].line for stack in looks}) > 1
    stack = next(one for one in looks if one.state == "R")
    assert doing(stack, TABLE.classify(stack), moved=moved, machine=MACHINE) == expected


def test_a_process_that_is_stopped(stuck: Start, wait_for: WaitFor) -> None:
    pid = stuck("time.sleep(1000)")
    settled(wait_for, pid, "S")
    os.kill(pid, signal.SIGSTOP)
    stack = settled(wait_for, pid, "T")
    assert doing(stack, TABLE.classify(stack), moved=False, machine=MACHINE) == "stopped"


@pytest.mark.skipif(MACHINE not in ("x86_64", "aarch64"), reason="the number of clone is not known")
def test_a_process_that_cannot_be_interrupted(stuck: Start, wait_for: WaitFor) -> None:
    """The parent of a vfork waits in state D until its child ends or becomes another program."""
    clone, vfork_and_sigchld = {"x86_64": 56, "aarch64": 220}.get(MACHINE), 0x4000 | signal.SIGCHLD
    body = f"import ctypes; ctypes.CDLL(None).syscall({clone}, {vfork_and_sigchld}, 0, 0, 0, 0) or time.sleep(1000)"
    stack = settled(wait_for, stuck(body), "D")
    assert doing(stack, TABLE.classify(stack), moved=False, machine=MACHINE) == "uninterruptible"


# --- functions that pretend to be vLLM's ------------------------------------------------------------------------------

RENAME = """
stuck.__code__ = stuck.__code__.replace(co_name={name!r}, co_qualname={name!r}, co_filename={file!r})
def forward(): stuck()
def worker_busy_loop(): forward()
stuck_, stuck = stuck, None
def stuck(): stuck_()
"""
PRETENDED = [
    ("all_reduce", "vllm/distributed/parallel_state.py"),
    ("_process_input_queue", "vllm/v1/engine/core.py"),
    ("worker_busy_loop", "vllm/v1/executor/multiproc_executor.py"),
    ("all_reduce", "vllm/distributed/device_communicators/cpu_communicator.py"),
]
DEEDS = [
    case for case in STUCK if case[0] in ("sleeps", "takes a lock twice", "reads a FIFO", "receives from a socket")
]


@pytest.mark.parametrize(("name", "file"), PRETENDED)
@pytest.mark.parametrize(("body", "expected"), [case[1:] for case in DEEDS], ids=[case[0] for case in DEEDS])
def test_a_function_that_is_called_like_one_of_vllm(
    name: str, file: str, body: str, expected: Doing, stuck: Start, wait_for: WaitFor, tmp_path: Path
) -> None:
    installed = tmp_path / "site-packages" / file
    installed.parent.mkdir(parents=True)
    for folder in [*installed.parents][: file.count("/")]:
        (folder / "__init__.py").touch()
    stack = settled(wait_for, stuck(body, RENAME.format(name=name, file=str(installed))), "S")
    assert stack.frames[0].function == name
    assert doing(stack, TABLE.classify(stack), moved=False, machine=MACHINE) == expected
    assert place(stack) == f"{name} ({file}:{stack.frames[0].line})"


# --- the rule ---------------------------------------------------------------------------------------------------------

NUMBERS = numbers("x86_64")
RUNNING = Classified("running")


@pytest.mark.parametrize(
    ("fields", "class_", "moved", "expected"),
    [
        ({"state": "T"}, "collective", False, "stopped"),
        ({"state": "t"}, "idle", None, "stopped"),
        ({"state": "D"}, "collective", False, "collective"),
        ({"state": "D"}, "disk", False, "uninterruptible"),
        ({"state": "R"}, "compile", True, "compile"),
        ({"state": "S", "syscall": NUMBERS["wait4"]}, "compile", False, "compile"),
        ({"state": "S", "syscall": NUMBERS["nanosleep"]}, "compile", False, "sleep"),
        ({"state": "S", "syscall": NUMBERS["nanosleep"]}, "file_lock", False, "lock"),
        ({"state": "S", "syscall": NUMBERS["select"], "descriptor": NO_DESCRIPTOR}, "running", False, "sleep"),
        ({"state": "S", "syscall": NUMBERS["select"]}, "running", False, "socket"),
        ({"state": "S", "syscall": NUMBERS["poll"], "descriptor": NO_DESCRIPTOR}, "running", False, "sleep"),
        ({"state": "S", "syscall": NUMBERS["poll"], "descriptor": "pipe:[7]"}, "running", False, "read"),
        ({"state": "S", "syscall": NUMBERS["ppoll"], "descriptor": "socket:[7]"}, "running", False, "socket"),
        ({"state": "S", "syscall": NUMBERS["epoll_wait"], "descriptor": "/dev/pts/0"}, "running", False, "read"),
        ({"state": "S", "syscall": NUMBERS["poll"], "descriptor": "anon_inode:[eventfd]"}, "running", False, "socket"),
        ({"state": "S", "syscall": NUMBERS["rt_sigsuspend"]}, "running", False, "sleep"),
        ({"state": "S", "syscall": NUMBERS["connect"]}, "running", False, "socket"),
        ({"state": "S", "syscall": NUMBERS["readv"], "descriptor": "socket:[7]"}, "running", False, "socket"),
        ({"state": "S", "syscall": NUMBERS["readv"], "descriptor": "/m/model.safetensors"}, "disk", False, "read"),
        ({"state": "S", "syscall": NUMBERS["read"]}, "running", False, "read"),
        ({"state": "S", "syscall": NUMBERS["openat2"]}, "running", False, "read"),
        ({"state": "S", "syscall": NUMBERS["ioctl"], "descriptor": "/dev/nvidia0"}, "running", False, "unknown"),
        ({"state": "S", "syscall": NUMBERS["futex_waitv"]}, "running", False, "lock"),
        ({"state": "S", "syscall": 9999}, "running", False, "unknown"),
        ({"state": "S", "syscall": -1}, "lock", False, "unknown"),
        ({"state": "S"}, "lock", False, "lock"),
        ({"state": "S"}, "running", False, "unknown"),
        ({"state": "R"}, "running", True, "python_loop"),
        ({"state": "R"}, "torch_op", False, "native_loop"),
        ({"state": "R"}, "running", None, "unknown"),
        ({"state": "S", "syscall": NUMBERS["sched_yield"]}, "running", False, "native_loop"),
        ({"active": True}, "running", True, "python_loop"),
        ({}, "running", None, "unknown"),
    ],
)
def test_doing(fields: dict[str, Any], class_: Any, moved: bool | None, expected: Doing) -> None:
    assert doing(thread("f (x.py:1)", **fields), RUNNING._replace(class_=class_), moved=moved) == expected


def test_numbers_mean_what_they_mean_on_that_machine() -> None:
    asleep = thread("f (x.py:1)", state="S", syscall=numbers("aarch64")["clock_nanosleep"])
    assert doing(asleep, RUNNING, moved=False, machine="aarch64") == "sleep"
    assert doing(asleep, RUNNING, moved=False, machine="riscv64") == "unknown"


@given(
    st.builds(
        ThreadStack,
        thread_id=st.just(1),
        frames=st.lists(st.builds(Frame, function=st.text(max_size=3), file=st.text(max_size=3)), max_size=3),
        state=st.none() | st.text(max_size=1),
        syscall=st.none() | st.integers(-1, 500),
    ),
    st.none() | st.booleans(),
)
def test_everything_does_something(any_thread: ThreadStack, moved: bool | None) -> None:
    found = doing(any_thread, TABLE.classify(any_thread), moved=moved)
    assert found in Doing.__args__  # type: ignore[attr-defined]


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_the_kernels(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    known = {name: int(number) for name, number in found}
    assert {name: number for name, number in numbers(machine).items() if known.get(name, number) != number} == {}


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        (
            "wait (threading.py:327) < get (queue.py:171) < acquire (tokenizer_pool.py:88)",
            "acquire (tokenizer_pool.py:88)",
        ),
        ("poll (zmq/sugar/poll.py:106) < f (x.py:1)", "poll (zmq/sugar/poll.py:106)"),
        (
            "_worker (concurrent/futures/thread.py:81) < run (threading.py:982)",
            "_worker (concurrent/futures/thread.py:81)",
        ),
        ("Lock.take (pool.py:8)", "take (pool.py:8)"),
        ("", None),
    ],
)
def test_place(stack: str, expected: str | None) -> None:
    assert place(thread(stack)) == expected
