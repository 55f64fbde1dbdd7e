"""Ends the whole tree below a shim."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vllm_probes.launch.attempt import Pids, read_exit, read_pids
from vllm_probes.rows import ProcessRef
from vllm_probes.sensors import tree
from vllm_probes.sensors.shims import prefix_of

_POLL_S = 0.02
_WALK_S = 0.2  # a walk reads a file for every thread; in between, only the processes that it found are looked at
_LAUNCH_S = 10.0
_BEGIN_S = 5.0
_END_S = 1.0


@dataclass(frozen=True)
class StopWaits:
    """How long each step of a stop may take before the next one, in seconds."""

    interrupt_s: float = 5
    terminate_s: float = 4
    kill_s: float = 3
    tracker_s: float = 1


@dataclass(frozen=True)
class StopResult:
    """What is left of a tree: processes that not even SIGKILL ended, files under /dev/shm."""

    survivors: list[ProcessRef]
    left_shm: list[str]


async def launched_shim(prefix: Path) -> int | None:
    """The shim of an attempt that somebody else has just launched; None where the command could not be started."""
    await _until(lambda: bool(read_pids(prefix) or read_exit(prefix)), _LAUNCH_S)
    pids = read_pids(prefix)
    return pids.shim if pids else None


def leftovers(shim_pid: int | None) -> list[ProcessRef]:
    """What runs below a shim; nothing below one that is gone."""
    return _refs(pid for pid in tree.descendants(shim_pid) if tree.is_running(pid)) if shim_pid is not None else []


async def stop_tree(
    shim_pid: int,
    *,
    kill: Callable[[], bool],
    waits: StopWaits = StopWaits(),
    on_signal: Callable[[str, list[ProcessRef]], None],
) -> StopResult:
    """End everything below the shim, politely until `kill` says not to; returns as soon as nothing of it runs.

    SIGINT goes to the process group of the command, as Ctrl+C would send it, SIGTERM to all, then SIGKILL. The resource
    tracker of multiprocessing comes last: it is what cleans up after the others. The shim is never signalled.

    Args:
        on_signal: told the name of each signal and the processes that have just got it.
    """
    family = _Family(shim_pid, on_signal)
    command_group = await _command_group(shim_pid)
    if not kill() and family.send(signal.SIGINT, family.group(command_group)):
        await family.ended(waits.interrupt_s, unless=kill)
    if not kill() and family.send(signal.SIGTERM, family.others()):
        await family.ended(waits.terminate_s, unless=kill)
    deadline = time.monotonic() + waits.kill_s
    while time.monotonic() < deadline:
        family.send(signal.SIGKILL, family.others())
        if await family.ended(_POLL_S):
            await family.ended(waits.tracker_s, trackers=True)
            family.send(signal.SIGKILL, family.running())
            break
    if await family.ended(waits.tracker_s, trackers=True):
        await _until(lambda: not tree.is_running(shim_pid), _END_S)  # by then PREFIX.exit is written
    return family.result()


class _Family:
    """The processes below a shim, those seen earlier included; a pid counts only together with its start."""

    def __init__(self, shim_pid: int, on_signal: Callable[[str, list[ProcessRef]], None]) -> None:
        self._shim_pid = shim_pid
        self._on_signal = on_signal
        self._start_ticks: dict[int, int | None] = {}
        self._trackers: set[tuple[int, int | None]] = set()
        self._signalled: set[tuple[int, int | None, int]] = set()
        self._shm: set[str] = set()
        self._walked = 0.0

    def running(self) -> list[int]:
        """What runs below the shim now."""
        self._walked = time.monotonic()
        pids = [pid for pid in tree.descendants(self._shim_pid) if tree.is_running(pid)]
        self._start_ticks |= {pid: tree.start_ticks(pid) for pid in pids}
        self._trackers |= {(pid, self._start_ticks[pid]) for pid in pids if _is_resource_tracker(pid)}
        return pids

    def others(self) -> list[int]:
        """What runs, without resource trackers."""
        return [pid for pid in self.running() if not self._is_tracker(pid)]

    def group(self, group: int | None) -> list[int]:
        return [pid for pid in self.others() if tree.process_group(pid) == group]

    def send(self, number: signal.Signals, pids: Iterable[int]) -> bool:
        """The signal, once to each process; tells whether anybody got it now."""
        new = [pid for pid in pids if (pid, self._start_ticks[pid], number) not in self._signalled]
        if new:
            self._shm |= tree.shm_files(self._start_ticks)
        refs = [ref for pid, ref in zip(new, _refs(new), strict=True) if _send(pid, number, self._shim_pid)]
        self._signalled |= {(ref.pid, self._start_ticks[ref.pid], number) for ref in refs}
        if refs:
            self._on_signal(number.name, refs)
        return bool(refs)

    async def ended(
        self, within_s: float, *, trackers: bool = False, unless: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until nothing runs, or nothing but resource trackers; False: something still does after that time.

        `unless` ends the waiting early.
        """
        return await _until(lambda: unless() or self._gone(trackers), within_s)

    def result(self) -> StopResult:
        survivors = self._seen_and_running()
        left = {path for path in self._shm if os.path.exists(path)} - tree.shm_files(survivors)
        return StopResult(_refs(survivors), sorted(left))

    def _gone(self, trackers: bool) -> bool:
        look = self.running if trackers else self.others
        seen = self._seen_and_running() if time.monotonic() < self._walked + _WALK_S else []
        if any(trackers or not self._is_tracker(pid) for pid in seen):
            return False
        return not look() and not look()  # one walk can miss somebody

    def _is_tracker(self, pid: int) -> bool:
        """Remembered: one that is just ending has no command line any more."""
        return (pid, self._start_ticks[pid]) in self._trackers

    def _seen_and_running(self) -> list[int]:
        seen = self._start_ticks.items()
        return [pid for pid, ticks in seen if tree.is_running(pid) and tree.start_ticks(pid) == ticks]


async def _command_group(shim_pid: int) -> int | None:
    """The id of the command's process group; a shim that has just been made is given time to start it."""
    await _until(lambda: bool(_pids_of(shim_pid)) or not tree.is_running(shim_pid), _BEGIN_S)
    pids = _pids_of(shim_pid)
    return pids.command if pids else None


def _pids_of(shim_pid: int) -> Pids | None:
    prefix = prefix_of(shim_pid)
    return read_pids(Path(prefix)) if prefix else None


async def _until(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _send(pid: int, number: int, shim_pid: int) -> bool:
    """Signal a process if it is below the shim; False when it is not, has ended, or belongs to somebody else."""
    handle = _process_handle(pid)
    try:
        # behind the handle, which stays with its process: a pid that is given away in between harms nobody
        if not tree.descends(pid, shim_pid):
            return False
        if handle is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _process_handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # Linux before 5.3, or a Python that was built for one
        return None


def _is_resource_tracker(pid: int) -> bool:
    return any("multiprocessing.resource_tracker" in argument for argument in tree.command_line(pid))


def _refs(pids: Iterable[int]) -> list[ProcessRef]:
    return [ProcessRef(pid=pid, process=tree.title(pid), state=tree.state_letter(pid) or "?") for pid in pids]
