"""Ending whole trees, and what their shims write down: real shims, real processes that will not go."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_probes.keeper import child
from vllm_probes.keeper.child import StopResult, StopWaits
from vllm_probes.launch.attempt import read_exit, read_pids, start_attempt
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.rows import ProcessRef
from vllm_probes.sensors import tree
from vllm_probes.sensors.shims import shim_alive

SHORT = StopWaits(interrupt_s=0.3, terminate_s=0.3, kill_s=3, tracker_s=0.3)
STUBBORN = "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
WAIT = "print('ready', flush=True); import time; time.sleep(60)"


class Attempt:
    """One running attempt and the signals that it got."""

    def __init__(self, until: Callable[..., Any], folder: Path, *argv: str) -> None:
        self.until = until
        self.prefix = folder / "attempt-1"
        self.shim = start_attempt(LaunchSpec(list(argv), dict(os.environ), str(folder)), self.prefix)
        self.signals: list[tuple[str, list[ProcessRef]]] = []

    @property
    def command(self) -> int:
        pids = read_pids(self.prefix)
        assert pids
        return pids.command

    @property
    def lines(self) -> list[str]:
        log = Path(f"{self.prefix}.log")
        return log.read_text().splitlines() if log.exists() else []

    async def ready(self, count: int = 1) -> None:
        """The command has said so, and its shim has written down who it is: in either order."""
        await self.until(lambda: self.lines.count("ready") >= count and read_pids(self.prefix))

    async def stop(self, *, kill: bool = False, waits: StopWaits = SHORT) -> StopResult:
        return await child.stop_tree(
            self.shim.pid,
            kill=lambda: kill,
            waits=waits,
            on_signal=lambda name, refs: self.signals.append((name, refs)),
        )

    def signals_of(self, pid: int) -> list[str]:
        return [name for name, refs in self.signals if any(ref.pid == pid for ref in refs)]


def kernel_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that no shim has started, with a prefix in its command line."""
    command = ["tail", "-f", "/dev/null", "--", str(tmp_path / "attempt-1")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        yield process
        process.kill()


@pytest.fixture
async def attempts(async_wait_for: Callable[..., Any], tmp_path: Path) -> AsyncIterator[Callable[..., Attempt]]:
    """Starts attempts; whatever a test leaves behind is killed."""
    started: list[Attempt] = []

    def start(*argv: str) -> Attempt:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Attempt(async_wait_for, folder, *argv))
        return started[-1]

    yield start
    for attempt in started:
        await attempt.stop(kill=True)
        attempt.shim.wait(timeout=10)


async def test_a_command_that_ends_politely(attempts: Callable[..., Attempt]) -> None:
    code = f"import signal, sys\nsignal.signal(2, lambda *a: sys.exit(7))\n{WAIT}"
    attempt = attempts(sys.executable, "-c", code)
    await attempt.ready()
    assert shim_alive(attempt.prefix) == attempt.shim.pid
    assert read_exit(attempt.prefix) is None
    assert await attempt.stop(waits=StopWaits()) == StopResult([], [])
    assert [name for name, _ in attempt.signals] == ["SIGINT"]
    ending = read_exit(attempt.prefix)
    assert ending
    assert (ending.code, ending.signal, ending.error) == (7, None, None)
    assert shim_alive(attempt.prefix) is None


async def test_the_ladder_for_a_command_that_ignores_it(attempts: Callable[..., Attempt]) -> None:
    attempt = attempts(sys.executable, "-c", STUBBORN + WAIT)
    await attempt.ready()
    assert await attempt.stop() == StopResult([], [])
    assert attempt.signals_of(attempt.command) == ["SIGINT", "SIGTERM", "SIGKILL"]
    ending = read_exit(attempt.prefix)
    assert ending
    assert ending.signal == signal.SIGKILL


async def test_kill_skips_the_polite_signals(attempts: Callable[..., Attempt]) -> None:
    attempt = attempts("sh", "-c", "sleep 60 & echo ready; wait")
    await attempt.ready()
    await attempt.stop(kill=True)
    assert {name for name, _ in attempt.signals} == {"SIGKILL"}


async def test_ctrl_c_reaches_the_group_only_and_children_of_other_sessions_get_sigterm(
    attempts: Callable[..., Attempt], tmp_path: Path
) -> None:
    loner = tmp_path / "loner.py"
    loner.write_text(WAIT)
    trap = "trap 'echo got int; exit 0' INT; echo ready; while :; do sleep 0.05; done"
    attempt = attempts("sh", "-c", f"setsid {sys.executable} {loner} & {trap}")
    await attempt.ready(2)
    loners = [pid for pid in tree.descendants(attempt.shim.pid) if tree.process_group(pid) == pid != attempt.command]
    assert len(loners) == 1
    assert await attempt.stop(waits=StopWaits(interrupt_s=0.5)) == StopResult([], [])
    assert "got int" in attempt.lines
    assert attempt.signals_of(loners[0]) == ["SIGTERM"]


async def test_double_forked_daemons_go_too(attempts: Callable[..., Attempt]) -> None:
    attempt = attempts("sh", "-c", "(setsid sleep 60 &); (sleep 60 &); echo ready")
    await attempt.until(lambda: read_exit(attempt.prefix))
    assert len(tree.descendants(attempt.shim.pid)) == 2
    assert shim_alive(attempt.prefix) == attempt.shim.pid
    assert await attempt.stop() == StopResult([], [])
    assert attempt.shim.wait(timeout=10) == 0


async def test_a_stopped_process_is_killed_and_never_continued(attempts: Callable[..., Attempt]) -> None:
    attempt = attempts("sh", "-c", "trap 'echo trapped' TERM INT CONT; echo ready; sleep 60")
    await attempt.ready()
    os.kill(attempt.command, signal.SIGSTOP)
    await attempt.until(lambda: tree.state_letter(attempt.command) == "T")
    assert await attempt.stop() == StopResult([], [])
    assert "trapped" not in attempt.lines
    states = {ref.state for _, refs in attempt.signals for ref in refs if ref.pid == attempt.command}
    assert states == {"T"}


async def test_a_process_in_state_d_is_named_without_waiting_for_it(attempts: Callable[..., Attempt]) -> None:
    """The parent of a vfork is in state D until its child runs something else."""
    vfork = "print('ready', flush=True)\nimport ctypes, time\nif ctypes.PyDLL(None).vfork() == 0: time.sleep(60)"
    attempt = attempts(sys.executable, "-c", STUBBORN + vfork)
    await attempt.ready()
    await attempt.until(lambda: tree.state_letter(attempt.command) == "D")
    short_name = kernel_name(attempt.command)
    assert await attempt.stop() == StopResult([], [])
    refs = {(ref.process, ref.state) for _, refs in attempt.signals for ref in refs if ref.pid == attempt.command}
    assert refs == {(short_name, "D")}


async def test_what_outlives_every_signal_is_named(attempts: Callable[..., Attempt]) -> None:
    """No time at all stands for a process that cannot be killed."""
    attempt = attempts(sys.executable, "-c", STUBBORN + WAIT)
    await attempt.ready()
    result = await attempt.stop(waits=StopWaits(0, 0, 0, 0))
    assert [(ref.pid, ref.state) for ref in result.survivors] == [(attempt.command, "S")]


async def test_a_child_that_forks_while_it_is_stopped(attempts: Callable[..., Attempt]) -> None:
    code = (
        "import os, signal, time\n"
        "def again(*_):\n"
        "    if os.fork() == 0: os.setsid()\n"
        "for n in (2, 15): signal.signal(n, again)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(60)"
    )
    attempt = attempts(sys.executable, "-c", code)
    await attempt.ready()
    assert await attempt.stop() == StopResult([], [])
    assert len({ref.pid for name, refs in attempt.signals if name == "SIGKILL" for ref in refs}) >= 3
    assert not tree.is_running(attempt.shim.pid)


async def test_a_process_that_runs_away_from_pid_to_pid(attempts: Callable[..., Attempt]) -> None:
    code = f"{STUBBORN}import os, time\nprint('ready', flush=True)\nwhile os.fork() == 0: time.sleep(0.02)"
    attempt = attempts(sys.executable, "-c", code)
    await attempt.ready()
    assert await attempt.stop() == StopResult([], [])
    assert not tree.is_running(attempt.shim.pid)


async def test_zombies_count_as_gone(attempts: Callable[..., Attempt]) -> None:
    code = f"import os, signal, sys\nif os.fork() == 0: os._exit(0)\nsignal.signal(2, lambda *a: sys.exit())\n{WAIT}"
    attempt = attempts(sys.executable, "-c", code)
    await attempt.ready()
    (zombie,) = tree.descendants(attempt.command)
    await attempt.until(lambda: tree.state_letter(zombie) == "Z")
    assert await attempt.stop(waits=StopWaits()) == StopResult([], [])
    assert attempt.signals_of(zombie) == []
    assert [name for name, _ in attempt.signals] == ["SIGINT"]


async def test_shared_memory_that_is_left_behind_is_named(attempts: Callable[..., Attempt], tmp_path: Path) -> None:
    """A ring that its maker had no time to remove; the resource tracker is off, as for a killed worker."""
    name = f"vtui-{os.getpid()}-ring"
    code = (
        f"import mmap, os, signal\npath = '/dev/shm/{name}'\n"
        "fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600); os.ftruncate(fd, 4096); ring = mmap.mmap(fd, 4096)\n"
        "if os.fork() == 0: os.setsid()\n" + WAIT
    )
    attempt = attempts(sys.executable, "-c", code)
    await attempt.ready(2)
    try:
        assert await attempt.stop() == StopResult([], [f"/dev/shm/{name}"])
    finally:
        os.unlink(f"/dev/shm/{name}")


@pytest.mark.parametrize("kill", [False, True])
async def test_the_resource_tracker_cleans_up_after_the_others(attempts: Callable[..., Attempt], kill: bool) -> None:
    code = (
        f"{STUBBORN}from multiprocessing.shared_memory import SharedMemory\n"
        "ring = SharedMemory(create=True, size=4096); print(ring.name, flush=True)\n" + WAIT
    )
    attempt = attempts(sys.executable, "-c", code)
    await attempt.ready()
    (tracker,) = tree.descendants(attempt.command)
    assert attempt.lines[0] in os.listdir("/dev/shm")
    assert await attempt.stop(kill=kill, waits=StopWaits(0.3, 0.3, 3, 3)) == StopResult([], [])
    assert attempt.signals_of(tracker) == []
    assert attempt.lines[0] not in os.listdir("/dev/shm")


async def test_a_resource_tracker_that_does_not_end_is_killed_last(
    attempts: Callable[..., Attempt], tmp_path: Path
) -> None:
    tracker_script, script = tmp_path / "tracker.py", tmp_path / "main.py"
    tracker_script.write_text(STUBBORN + WAIT)
    command = [sys.executable, str(tracker_script), "multiprocessing.resource_tracker"]
    script.write_text(f"import subprocess\nsubprocess.Popen({command})\n{WAIT}")
    attempt = attempts(sys.executable, str(script))
    await attempt.ready(2)
    (tracker,) = tree.descendants(attempt.command)
    assert await attempt.stop() == StopResult([], [])
    assert attempt.signals_of(tracker) == ["SIGKILL"]
    assert [ref.pid for ref in attempt.signals[-1][1]] == [tracker]


async def test_a_stop_right_after_the_start_is_not_lost(attempts: Callable[..., Attempt]) -> None:
    attempt = attempts("sleep", "60")
    assert await attempt.stop() == StopResult([], [])
    assert attempt.shim.wait(timeout=10) == 0
    assert read_exit(attempt.prefix)


async def test_a_tree_that_has_ended_gets_no_signal(attempts: Callable[..., Attempt]) -> None:
    attempt = attempts("true")
    attempt.shim.wait(timeout=10)
    assert await attempt.stop() == StopResult([], [])
    assert attempt.signals == []


async def test_nothing_that_we_did_not_start_is_signalled(
    attempts: Callable[..., Attempt], bystander: subprocess.Popen[bytes]
) -> None:
    """A pid that is no descendant of the shim is refused, even when it is one of ours."""
    attempt = attempts("sleep", "60")
    await attempt.until(lambda: read_pids(attempt.prefix))
    assert not child._send(bystander.pid, signal.SIGKILL, attempt.shim.pid)
    assert not child._send(attempt.shim.pid, signal.SIGKILL, attempt.shim.pid)
    await attempt.stop()
    assert bystander.poll() is None


async def test_without_handles_on_processes_it_works_too(
    attempts: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    attempt = attempts("sleep", "60")
    assert await attempt.stop() == StopResult([], [])
    assert attempt.signals_of(attempt.command) == ["SIGINT"]


async def test_names_of_signalled_processes(attempts: Callable[..., Attempt]) -> None:
    attempt = attempts("bash", "-c", "echo ready; exec -a VLLM::Worker_TP0 sleep 60")
    await attempt.ready()
    await attempt.until(lambda: tree.title(attempt.command) == "Worker_TP0")
    await attempt.stop()
    assert [ref.process for _, refs in attempt.signals for ref in refs] == ["Worker_TP0"]


def test_a_pid_that_now_belongs_to_somebody_else_is_no_shim(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    Path(tmp_path / "attempt-1.pid").write_text(f'{{"shim": {bystander.pid}, "command": 1}}')
    assert shim_alive(tmp_path / "attempt-1") is None


async def test_a_command_that_never_started(attempts: Callable[..., Attempt]) -> None:
    attempt = attempts(os.fsdecode(b"no-such-\xff"))
    attempt.shim.wait(timeout=10)
    ending = read_exit(attempt.prefix)
    assert ending
    assert (ending.code, ending.signal) == (127, None)
    assert ending.error == "'no-such-?' cannot be started: No such file or directory."
    assert read_pids(attempt.prefix) is None
    assert await attempt.stop() == StopResult([], [])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"code": "x"}'])
def test_damaged_records_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "attempt-1.exit").write_text(text)
    (tmp_path / "attempt-1.pid").write_text(text)
    assert read_exit(tmp_path / "attempt-1") is None
    assert read_pids(tmp_path / "attempt-1") is None
    assert shim_alive(tmp_path / "attempt-1") is None


def test_all_waits_together_are_bounded() -> None:
    waits = StopWaits()
    of_a_started_command_s = waits.interrupt_s + waits.terminate_s + waits.kill_s + 2 * waits.tracker_s + child._END_S
    assert of_a_started_command_s <= 15
    assert child._BEGIN_S + of_a_started_command_s <= 20  # one that has just been launched: its start is awaited first
