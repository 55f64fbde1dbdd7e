"""Real processes that are asked for their stacks."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Spawn, WaitFor
from tests.hooked import TALKS, THREAD_WAITS, TWO_WAIT, WAITS, Settle, Start, Two, page, said
from tests.test_hook import environment, every_python
from tests.test_threads import ONLY_ROOT, in_vfork
from vllm_probes.sensors import dumps
from vllm_probes.sensors.dumps import Call, DumpError, dump, has_hook, parse
from vllm_probes.sensors.threads import SignalState, facts, signal_state, switch_count
from vllm_probes.sensors.tree import descendants

pytest_plugins = ["tests.stack_fixtures"]


def dumped(pid: int, timeout_s: float = 20.0) -> dict[int, list[Call]]:
    return asyncio.run(dump(pid, timeout_s=timeout_s))


def functions(calls: list[Call]) -> list[str]:
    return [call.function for call in calls]


def refused(pid: int, timeout_s: float = 20.0) -> str:
    with pytest.raises(DumpError) as caught:
        dumped(pid, timeout_s)
    return str(caught.value)


# --- what is read ---------------------------------------------------------------------------------------------------


@every_python
def test_every_thread_at_rest_the_main_one_first(two: Two, python: str) -> None:
    process, other = two(python=python)
    found = dumped(process.pid)
    assert list(found) == [process.pid, other]
    assert functions(found[process.pid])[-2:] == ["wait_for_work", "<module>"]
    assert functions(found[other])[0] == "wait"
    assert {"wait_for_work", "_bootstrap"} <= set(functions(found[other]))
    assert found[other][0].file.endswith("/threading.py")
    assert found[process.pid][-1] == Call("<module>", "<string>", TWO_WAIT.count("\n") + 1)
    assert page(process.pid) == b"\n", "what was written is not kept"
    assert dumped(process.pid) == found
    assert process.poll() is None


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children(started: Start, settle: Settle, method: str, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(
        "import os, time\ndef nap():\n    print(os.getpid(), flush=True)\n    time.sleep(1000)\n"
    )
    code = (
        "import multiprocessing, sys; sys.path.insert(0, sys.argv[1]); import target\n"
        f"one = multiprocessing.get_context({method!r}).Process(target=target.nap); one.start(); one.join()"
    )
    process = started(code, str(tmp_path))
    [child] = said(process)
    settle(process, [process.pid])
    assert "join" in functions(dumped(process.pid)[process.pid])
    for _ in range(2):
        assert functions(dumped(child)[child])[0] == "nap"


NATIVE = """
#include <unistd.h>
void rest(void) { for (;;) pause(); }
void spin(void) { for (;;) ; }
void wait_in_kernel(void) { if (vfork() == 0) for (;;) pause(); }
void rest_in_fork(void) { if (fork() == 0) rest(); rest(); }
"""


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A C library whose functions never return; called by way of PyDLL they keep the interpreter to themselves."""
    folder = tmp_path_factory.mktemp("native")
    (folder / "native.c").write_text(NATIVE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "native.so", folder / "native.c"], check=True)
    return str(folder / "native.so")


CALLS = THREAD_WAITS + "import ctypes\ngetattr(getattr(ctypes, sys.argv[1])(sys.argv[2]), sys.argv[3])()\n"


@every_python
def test_c_code_that_keeps_the_interpreter_to_itself(two: Two, native: str, python: str) -> None:
    process, other = two(CALLS, "PyDLL", native, "rest", python=python)
    found = dumped(process.pid)
    assert functions(found[process.pid]) == ["<module>"]
    assert "wait_for_work" in functions(found[other])


def test_threads_that_are_not_pythons_are_asked_once(two: Two, native: str) -> None:
    code = WAITS + (
        "import ctypes\n"
        "thread, lib = ctypes.c_ulong(), ctypes.CDLL(sys.argv[1])\n"
        "assert ctypes.CDLL(None).pthread_create(ctypes.byref(thread), None, lib.rest, None) == 0\n"
        "say(*{*map(int, os.listdir('/proc/self/task'))} - {os.getpid()}); wait_for_work()\n"
    )
    process, other = two(code, native)
    switches = switch_count(process.pid, other)
    assert list(dumped(process.pid)) == [process.pid]
    woken = switch_count(process.pid, other)
    assert woken != switches
    assert page(process.pid) == b"%d\n" % other
    assert list(dumped(process.pid)) == [process.pid]
    assert switch_count(process.pid, other) == woken


# --- what cannot be had, and why ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["say(0)\nwhile True: sum(range(1000))", "say(0)\nwhile True: pass"])
def test_whoever_runs_is_not_asked(started: Start, code: str) -> None:
    process = started(TALKS + code)
    said(process)
    assert refused(process.pid) == "it runs, and answers safely only while it stands still"
    assert page(process.pid) == b""


def test_two_who_ask_wait_for_each_other(two: Two) -> None:
    process, other = two()

    async def both() -> list[dict[int, list[Call]]]:
        return await asyncio.gather(*(dump(process.pid, timeout_s=20) for _ in range(4)))

    found = asyncio.run(both())
    assert all(list(one) == [process.pid, other] for one in found)
    assert found[1:] == found[:1] * 3


def test_nor_is_c_code_that_uses_the_cpu_or_anyone_beside_it(started: Start, settle: Settle, native: str) -> None:
    process = started(CALLS, "PyDLL", native, "spin")
    [other] = said(process)
    settle(process, [other])
    assert "it runs" in refused(process.pid)
    assert page(process.pid) == b""


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def test_one_that_is_stopped(two: Two) -> None:
    process, _ = two()
    stop(process.pid)
    assert refused(process.pid) == "it is stopped"
    assert page(process.pid) == b""
    process.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, process.pid, os.WCONTINUED)
    assert len(dumped(process.pid)) == 2


def test_an_answer_that_comes_too_late_is_nobodys(two: Two, monkeypatch: pytest.MonkeyPatch, wait_for: WaitFor) -> None:
    process, _ = two()
    send = dumps._send

    def stop_and_send(pid: int, thread: int) -> None:
        stop(pid)
        send(pid, thread)

    with monkeypatch.context() as patch:
        patch.setattr(dumps, "_send", stop_and_send)
        assert refused(process.pid, timeout_s=0.3) == "it is stopped"
    asked = page(process.pid)
    assert asked == b"%d\n" % process.pid
    assert refused(process.pid) == "it is stopped"
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: len(page(process.pid)) > len(asked) and not state(process.pid).is_held)
    assert len(dumped(process.pid)) == 2


def state(pid: int) -> SignalState:
    return signal_state(pid, pid, signal.SIGUSR2)


def test_one_that_takes_its_time(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    process, _ = two()
    send = dumps._send

    def stop_for_a_while_and_send(pid: int, thread: int) -> None:
        stop(pid)
        send(pid, thread)
        threading.Timer(0.1, os.kill, (pid, signal.SIGCONT)).start()

    monkeypatch.setattr(dumps, "_send", stop_for_a_while_and_send)
    assert ["wait_for_work" in functions(calls) for calls in dumped(process.pid).values()] == [True, True]


def test_one_that_waits_inside_the_kernel(started: Start, native: str, wait_for: WaitFor) -> None:
    """As the parent of a vfork does."""
    process = started(CALLS, "CDLL", native, "wait_in_kernel")
    wait_for(lambda: in_vfork(process.pid))
    assert refused(process.pid) == "it waits inside the kernel"
    assert page(process.pid) == b""


def test_one_without_the_hook_is_left_alone(started: Start, spawned: Spawn) -> None:
    without = started(TWO_WAIT, hook=False)
    said(without)
    for process in (without, spawned(["sleep", "inf"])):
        assert not has_hook(process.pid)
        assert dumped(process.pid) == {}
        assert process.poll() is None


def test_one_that_has_become_another_program_is_left_alone(started: Start, wait_for: WaitFor) -> None:
    process = started("import os; os.execvp('sleep', ['sleep', 'inf'])")
    wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
    assert dumped(process.pid) == {}
    assert process.poll() is None


def test_a_fork_that_the_hook_does_not_know_of_is_left_alone(two: Two, native: str, wait_for: WaitFor) -> None:
    """It writes to the file of its parent."""
    process, _ = two(CALLS, "PyDLL", native, "rest_in_fork")
    [child] = wait_for(lambda: descendants(process.pid))
    assert dumped(child) == {}
    assert len(dumped(process.pid)) == 2


def test_one_that_would_die_of_the_signal_is_left_alone(started: Start, settle: Settle) -> None:
    process = started(TALKS + "import signal; signal.signal(signal.SIGUSR2, signal.SIG_DFL); say(0); time.sleep(1000)")
    said(process)
    settle(process, [process.pid])
    assert refused(process.pid) == "it has no handler for SIGUSR2 any more"
    assert process.poll() is None


def test_one_that_has_ended(started: Start) -> None:
    process = started("")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert dumped(process.pid) == {}
    process.wait()
    assert dumped(process.pid) == {}


@pytest.mark.parametrize("is_reaped", [False, True])
def test_one_that_ends_when_it_is_asked(two: Two, monkeypatch: pytest.MonkeyPatch, is_reaped: bool) -> None:
    process, _ = two()
    send = dumps._send

    def kill_and_send(pid: int, thread: int) -> None:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | (0 if is_reaped else os.WNOWAIT))
        send(pid, thread)

    monkeypatch.setattr(dumps, "_send", kill_and_send)
    assert dumped(process.pid) == {}


def test_a_program_that_has_put_its_own_handler_there_is_asked_once(started: Start, settle: Settle) -> None:
    code = WAITS + (
        "import signal\n"
        "for _ in range(3): threading.Thread(target=wait_for_work, daemon=True).start()\n"
        "taken = []\n"
        "signal.signal(signal.SIGUSR2, lambda *_: taken.append(1))\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(say(len(taken))))\n"
        "say(*map(int, os.listdir('/proc/self/task')))\n"
        "time.sleep(1000)\n"
    )
    process = started(code)
    settle(process, said(process))
    for _ in range(3):
        assert refused(process.pid) == "it has a use of its own for SIGUSR2"
    process.terminate()
    assert said(process) == [1]


def test_one_that_blocks_the_signal(started: Start, settle: Settle) -> None:
    code = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); say(0); time.sleep(1000)"
    process = started(TALKS + code)
    said(process)
    settle(process, [process.pid])
    assert refused(process.pid) == "it does not take SIGUSR2"
    assert not state(process.pid).is_pending


@ONLY_ROOT
def test_one_of_another_user(two: Two) -> None:
    process, _ = two()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            os._exit(3 if dumped(process.pid) == {} else 4)
        finally:
            os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


@ONLY_ROOT
def test_one_in_a_container_has_an_id_of_its_own(spawned: Spawn, wait_for: WaitFor) -> None:
    outer = spawned(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", TWO_WAIT],
        env=environment(),
        stdout=subprocess.PIPE,
    )
    said(outer)
    [pid] = wait_for(lambda: [pid for pid in descendants(outer.pid) if len(facts(pid)) == 2])
    other = max(facts(pid))
    found = wait_for(lambda: dumped(pid))
    assert ["wait_for_work" in functions(found[thread]) for thread in (pid, other)] == [True, True]


def test_one_whose_file_takes_nothing(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in memory cannot be had here: its error is made."""
    process, _ = two()

    def is_full(self: object, silent: list[int]) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(dumps._Page, "turn", is_full)
    assert refused(process.pid) == "No space left on device, as the system says"


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "call"),
    [
        (
            '  File "/usr/lib/python3.11/threading.py", line 12 in wait',
            ("wait", "/usr/lib/python3.11/threading.py", 12),
        ),
        ('  File "<string>", line 1 in <module>', ("<module>", "<string>", 1)),
        ('  File "a"b, line 3 in c", line ??? in na\\xefve', ("na\\xefve", 'a"b, line 3 in c', 0)),
    ],
)
def test_lines_of_a_stack(line: str, call: tuple[str, str, int]) -> None:
    assert parse(f"Stack (most recent call first):\n{line}\n  ...\n") == [call]


def test_what_is_no_call_is_left_out() -> None:
    text = 'Stack (most recent call first):\n  <no Python frame>\n  Garbage-collecting\n  Binary file "/x", at f+0x1\n'
    assert parse(text) == []


ASCII = st.characters(min_codepoint=32, max_codepoint=126)
CALL = st.tuples(st.text(ASCII), st.text(ASCII.filter(lambda letter: letter != '"')), st.integers(0, 10**6))


@given(st.lists(CALL))
def test_what_faulthandler_writes_is_read_back(calls: list[tuple[str, str, int]]) -> None:
    text = "".join(f'  File "{file}", line {line} in {function}\n' for file, function, line in calls)
    assert [(found.function, found.line) for found in parse(text)] == [call[1:] for call in calls]


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    parse(text)
