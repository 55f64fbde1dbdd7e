"""Real processes that are asked for their stacks."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Spawn, WaitFor
from tests.test_hook import environment, every_python
from vllm_probes.rows import Frame, ThreadStack
from vllm_probes.sensors import dumps
from vllm_probes.sensors.dumps import DumpError, dump, parse

Start = Callable[..., "subprocess.Popen[bytes]"]
Settled = Callable[..., list[list[int]]]

TALKS = "import os, sys, threading, time\ndef say(*words): print(*words, flush=True)\n"
WAITS = TALKS + (
    "def wait_for_work(): threading.Event().wait()\n"
    "def worker_busy_loop():\n"
    "    say(threading.get_native_id())\n"
    "    wait_for_work()\n"
)
THREAD_WAITS = WAITS + (
    "thread = threading.Thread(target=worker_busy_loop); thread.start()\n"
    "while sys._current_frames()[thread.ident].f_code.co_name != 'wait': time.sleep(0.001)\n"
)
TWO_WAIT = THREAD_WAITS + "worker_busy_loop()"


@pytest.fixture
def started(spawned: Spawn) -> Start:
    """`started(code)`: a hooked Python that runs it, and has printed what comes before its first pause."""

    def start(code: str, *arguments: str, python: str = sys.executable, hook: bool = True) -> "subprocess.Popen[bytes]":
        argv = [python, "-c", code, *arguments]
        return spawned(argv, env=environment(hook=hook, PYTHONFAULTHANDLER="1"), stdout=subprocess.PIPE)

    return start


def said(process: "subprocess.Popen[bytes]") -> list[int]:
    """The numbers in the next line of it."""
    assert process.stdout
    return [int(word) for word in process.stdout.readline().split()]


@pytest.fixture
def settled(wait_for: WaitFor) -> Settled:
    """`settled(process, resting)` waits for two lines of it, and until so many threads have come to rest."""

    def wait(process: "subprocess.Popen[bytes]", resting: int = 2) -> list[list[int]]:
        lines = [said(process), said(process)]
        last: dict[int, str] = {}

        def have_come_to_rest() -> bool:
            now = {thread: dumps._turns(process.pid, thread) for thread in dumps._threads(process.pid)}
            unchanged = [thread for thread, turns in now.items() if last.get(thread) == turns]
            last.update(now)
            return len(unchanged) >= resting

        wait_for(have_come_to_rest)
        return lines

    return wait


def dumped(pid: int, **options: float | bool) -> list[ThreadStack]:
    return asyncio.run(dump(pid, **options))  # type: ignore[arg-type]


def functions(stack: ThreadStack) -> list[str]:
    return [frame.function for frame in stack.frames]


def size_bytes(pid: int) -> int:
    """Of the memory that its stacks take."""
    return os.stat(f"/proc/{pid}/fd/500").st_size


def refused(pid: int, **options: float | bool) -> str:
    with pytest.raises(DumpError) as caught:
        dumped(pid, **options)
    return str(caught.value)


# --- what is read ---------------------------------------------------------------------------------------------------


@every_python
def test_every_thread_with_its_kernel_id(started: Start, settled: Settled, python: str) -> None:
    process = started(TWO_WAIT, python=python)
    second, first = settled(process)
    found = dumped(process.pid)
    assert [[stack.thread_id] for stack in found] == [first, second]
    assert first == [process.pid]
    for stack in found:
        assert functions(stack)[-1] in ("<module>", "_bootstrap")
        assert {"wait", "wait_for_work", "worker_busy_loop"} <= set(functions(stack))
        assert stack.frames[0].file == "threading.py"
        assert stack.state == "S"
    sizes = [size_bytes(process.pid)]
    assert dumped(process.pid) == found
    assert [size_bytes(process.pid)] == sizes, "what was written before is not kept"
    assert process.poll() is None


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children(started: Start, method: str, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(
        "import os, time\ndef nap():\n    print(os.getpid(), flush=True)\n    time.sleep(1000)\n"
    )
    code = (
        "import multiprocessing, sys; sys.path.insert(0, sys.argv[1]); import target\n"
        f"one = multiprocessing.get_context({method!r}).Process(target=target.nap); one.start(); one.join()"
    )
    process = started(code, str(tmp_path))
    [child] = said(process)
    assert functions(dumped(child)[0])[0] == "nap"
    assert "join" in functions(dumped(process.pid)[0])


NATIVE = """
#include <unistd.h>
void rest(void) { for (;;) pause(); }
void spin(void) { for (;;) ; }
void wait_in_kernel(void) { if (vfork() == 0) for (;;) pause(); }
"""


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A C library whose functions never return; called by way of PyDLL they keep the interpreter to themselves."""
    folder = tmp_path_factory.mktemp("native")
    (folder / "native.c").write_text(NATIVE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "native.so", folder / "native.c"], check=True)
    return str(folder / "native.so")


CALLS = THREAD_WAITS + (
    "import ctypes\ndef call(): getattr(getattr(ctypes, sys.argv[1])(sys.argv[2]), sys.argv[3])()\nsay(); call()\n"
)


@every_python
def test_c_code_that_keeps_the_interpreter_to_itself(
    started: Start, settled: Settled, native: str, python: str
) -> None:
    process = started(CALLS, "PyDLL", native, "rest", python=python)
    settled(process)
    main, other = dumped(process.pid)
    assert functions(main)[:2] == ["call", "<module>"]
    assert "worker_busy_loop" in functions(other)


def test_c_code_that_uses_the_cpu_is_asked_only_on_request(started: Start, settled: Settled, native: str) -> None:
    process = started(CALLS, "PyDLL", native, "spin")
    settled(process, resting=1)
    main, other = dumped(process.pid)
    assert main == ThreadStack(thread_id=process.pid, state="R")
    assert "worker_busy_loop" in functions(other)
    main, other = dumped(process.pid, running_too=True)
    assert functions(main)[:2] == ["call", "<module>"]
    assert process.poll() is None


def test_a_program_that_computes_is_not_asked(started: Start) -> None:
    process = started(TALKS + "say()\nwhile True: sum(range(1000))")
    said(process)
    assert "is busy: a thread that runs Python cannot be asked safely" in refused(process.pid)
    [main] = dumped(process.pid, running_too=True)
    assert functions(main) == ["<module>"]


def test_those_at_rest_are_asked_beside_one_that_computes(started: Start, settled: Settled) -> None:
    process = started(THREAD_WAITS + "say()\nwhile True: sum(range(1000))")
    [resting], _ = settled(process, resting=1)
    for _ in range(5):
        main, other = dumped(process.pid)
        assert (main.thread_id, main.frames) == (process.pid, [])
        assert other.thread_id == resting
        assert "worker_busy_loop" in functions(other)
    assert process.poll() is None


def test_threads_that_are_not_pythons_are_left_out(started: Start, settled: Settled, native: str) -> None:
    code = THREAD_WAITS + (
        "import ctypes\n"
        "thread, lib = ctypes.c_ulong(), ctypes.CDLL(sys.argv[1])\n"
        "assert ctypes.CDLL(None).pthread_create(ctypes.byref(thread), None, lib.rest, None) == 0\n"
        "say(); wait_for_work()\n"
    )
    process = started(code, native)
    settled(process)
    assert len(os.listdir(f"/proc/{process.pid}/task")) == 3
    assert ["worker_busy_loop" in functions(stack) for stack in dumped(process.pid)] == [False, True]


# --- what cannot be had, and why ------------------------------------------------------------------------------------


def test_one_that_is_stopped(started: Start, settled: Settled) -> None:
    process = started(TWO_WAIT)
    settled(process)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert "is stopped and takes no signal" in refused(process.pid)
    process.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, process.pid, os.WCONTINUED)
    assert len(dumped(process.pid)) == 2


def test_one_that_is_stopped_when_it_is_asked(
    started: Start, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = started(TWO_WAIT)
    settled(process)
    send = dumps._send

    def stop_and_send(pid: int, thread: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        send(pid, thread)

    monkeypatch.setattr(dumps, "_send", stop_and_send)
    assert "is stopped and takes no signal" in refused(process.pid, timeout_s=0.3)


def test_one_that_takes_its_time(started: Start, settled: Settled, monkeypatch: pytest.MonkeyPatch) -> None:
    process = started(TWO_WAIT)
    settled(process)
    send = dumps._send

    def stop_for_a_while_and_send(pid: int, thread: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        send(pid, thread)
        threading.Timer(0.1, os.kill, (pid, signal.SIGCONT)).start()

    monkeypatch.setattr(dumps, "_send", stop_for_a_while_and_send)
    assert ["wait_for_work" in functions(stack) for stack in dumped(process.pid, timeout_s=10)] == [True, True]


def test_one_that_waits_inside_the_kernel(started: Start, settled: Settled, native: str, wait_for: WaitFor) -> None:
    """As the parent of a vfork does."""
    process = started(CALLS, "CDLL", native, "wait_in_kernel")
    settled(process)
    stat = Path(f"/proc/{process.pid}/stat")
    wait_for(lambda: ") D " in stat.read_text())
    main, other = dumped(process.pid)
    assert main == ThreadStack(thread_id=process.pid, state="D")
    assert "worker_busy_loop" in functions(other)


def test_one_that_waits_inside_the_kernel_as_a_whole(started: Start, native: str, wait_for: WaitFor) -> None:
    process = started(TALKS + "import ctypes; ctypes.CDLL(sys.argv[1]).wait_in_kernel()", native)
    stat = Path(f"/proc/{process.pid}/stat")
    wait_for(lambda: ") D " in stat.read_text())
    assert "waits inside the kernel (state D)" in refused(process.pid)


def test_one_without_the_hook_is_left_alone(started: Start, spawned: Spawn) -> None:
    without = started(TWO_WAIT, hook=False)
    said(without), said(without)
    for process in (without, spawned(["sleep", "inf"])):
        assert "has no start-up hook" in refused(process.pid)
        assert process.poll() is None


def test_one_that_has_become_another_program_is_left_alone(started: Start, wait_for: WaitFor) -> None:
    process = started("import os; os.execvp('sleep', ['sleep', 'inf'])")
    wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
    assert "has no start-up hook" in refused(process.pid)
    assert process.poll() is None


def test_one_that_would_die_of_the_signal_is_left_alone(started: Start) -> None:
    process = started(TALKS + "import signal; signal.signal(signal.SIGUSR2, signal.SIG_DFL); say(); time.sleep(1000)")
    said(process)
    assert "has no start-up hook" in refused(process.pid)
    assert process.poll() is None


def test_one_that_has_ended(spawned: Spawn) -> None:
    process = spawned(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert refused(process.pid) == f"Process {process.pid} has ended."
    process.wait()
    assert refused(process.pid) == f"Process {process.pid} has ended."


def test_a_program_that_has_put_its_own_handler_there_is_asked_once(started: Start) -> None:
    code = WAITS + (
        "import signal\n"
        "for _ in range(3): threading.Thread(target=wait_for_work, daemon=True).start()\n"
        "reader, writer = os.pipe()\n"
        "os.set_blocking(writer, False)\n"
        "signal.set_wakeup_fd(writer)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: None)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "say(0)\n"
        "while True: say(*os.read(reader, 1))\n"
    )
    process = started(code)
    assert said(process) == [0]
    assert "it handles the signal itself" in refused(process.pid)
    process.terminate()
    assert process.stdout
    assert process.stdout.read() == b"12\n"


def test_one_that_blocks_the_signal(started: Start) -> None:
    code = TALKS + "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); say(); time.sleep(1000)"
    process = started(code)
    said(process)
    assert "did not take SIGUSR2" in refused(process.pid)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_one_of_another_user(started: Start, settled: Settled) -> None:
    process = started(TWO_WAIT)
    settled(process)
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            os.write(writer, refused(process.pid).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        error = pipe.read()
    os.wait()
    assert "belongs to another user" in error


def test_a_c_library_that_cannot_signal_a_thread(
    started: Start, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = started(TWO_WAIT)
    settled(process)
    monkeypatch.setattr(dumps, "_LIBC", object())  # of before 2019; there is none here
    assert "glibc 2.30" in refused(process.pid)


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "frame"),
    [
        ('  File "/v/lib/python3.12/site-packages/vllm/v1/core.py", line 9 in run', ("run", "vllm/v1/core.py", 9)),
        ('  File "/home/me/src/vllm/v1/worker.py", line 9 in run', ("run", "vllm/v1/worker.py", 9)),
        ('  File "/home/me/vllm/vllm/v1/worker.py", line 9 in run', ("run", "vllm/v1/worker.py", 9)),
        ('  File "/usr/lib/python3.11/threading.py", line 12 in wait', ("wait", "threading.py", 12)),
        ('  File "/usr/lib64/python3.13t/asyncio/base_events.py", line 1 in f', ("f", "asyncio/base_events.py", 1)),
        ('  File "/usr/lib/python3/dist-packages/zmq/poll.py", line 1 in f', ("f", "zmq/poll.py", 1)),
        ('  File "/home/me/run.py", line 1 in <module>', ("<module>", "/home/me/run.py", 1)),
        ('  File "<string>", line 1 in <module>', ("<module>", "<string>", 1)),
        ('  File "<frozen runpy>", line 88 in _run_code', ("_run_code", "<frozen runpy>", 88)),
        ('  File "a"b, line 3 in c", line ??? in na\\xefve', ("na\\xefve", 'a"b, line 3 in c', 0)),
    ],
)  # fmt: skip
def test_lines_of_a_stack(line: str, frame: tuple[str, str, int]) -> None:
    function, file, number = frame
    text = f"Stack (most recent call first):\n{line}\n  ...\n"
    assert parse(text) == [Frame(function=function, file=file, line=number)]


def test_what_is_no_call_is_left_out() -> None:
    text = 'Stack (most recent call first):\n  <no Python frame>\n  Garbage-collecting\n  Binary file "/x", at f+0x1\n'
    assert parse(text) == []


ASCII = st.characters(min_codepoint=32, max_codepoint=126)
CALL = st.tuples(st.text(ASCII), st.text(ASCII.filter(lambda letter: letter != '"')), st.integers(0, 10**6))


@given(st.lists(CALL))
def test_what_faulthandler_writes_is_read_back(calls: list[tuple[str, str, int]]) -> None:
    text = "".join(f'  File "{file}", line {line} in {function}\n' for file, function, line in calls)
    assert [(frame.function, frame.line) for frame in parse(text)] == [call[1:] for call in calls]


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    parse(text)
