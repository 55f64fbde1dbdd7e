"""What the kernel says of the threads of a process, read from /proc: state, CPU, system call, descriptor.

Only files that the kernel fills in without the lock of the process's memory (proc_pid_cmdline(5), environ and maps take
it): a process in state D may hold that lock, and whoever reads those waits with it. Threads and processes come and go
while one looks: whatever has vanished is left out, and nothing here raises for it.
"""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vllm_probes.judges.doing import NO_DESCRIPTOR
from vllm_probes.judges.syscalls import Wait, numbers, wait_in
from vllm_probes.sensors import tree
from vllm_probes.sensors.cgroup import Mount, group, mounts, text_of

_MACHINE = os.uname().machine
_WAITS_ON_ONE: frozenset[Wait | None] = frozenset(("socket", "file", "file_lock", "driver"))
_ON_DESCRIPTOR = frozenset(
    number
    for name, number in numbers(_MACHINE).items()
    if wait_in(number, _MACHINE) in _WAITS_ON_ONE or name.startswith("epoll_")
)
"""Calls whose first argument is a descriptor. That of poll and open is none: it is in the memory of the process."""
_ON_COUNT = frozenset(number for name, number in numbers(_MACHINE).items() if name in ("select", "pselect6"))
"""Calls whose first argument says how many descriptors to look at."""


class ThreadFacts(NamedTuple):
    """One thread. None: not known."""

    state: str
    """R S D T t Z …, as in /proc/PID/task/TID/stat."""
    cpu_ticks: int
    """User and system time in clock ticks, since its start."""
    syscall: int | None
    """Number of the system call that it is in, as this machine counts them; -1: blocked outside of one. None: it runs,
    or we have no right to trace it."""
    descriptor: str | None
    """What the first argument of a call on a descriptor stands for: `socket:[…]`, `pipe:[…]`, a path; NO_DESCRIPTOR for
    a `select` on none."""


class SignalState(NamedTuple):
    """How a thread stands to one signal."""

    state: str
    """R S D T t Z …"""
    is_caught: bool
    """The process has a handler for it; sent to one that has none, most signals end it."""
    is_blocked: bool
    """It would have to wait. Inside a handler its own signal is blocked as a rule (sigaction(2), SA_NODEFER)."""
    is_pending: bool
    """It was sent to this thread, which has not taken it yet."""

    @property
    def is_held(self) -> bool:
        return self.is_blocked or self.is_pending


def facts(pid: int) -> dict[int, ThreadFacts]:
    """Every thread of a process by its id; a zombie has one, in state Z, and what is gone has none."""
    threads = ((int(thread), _facts_of(f"/proc/{pid}/task/{thread}")) for thread in tree.listing(f"/proc/{pid}/task"))
    return {thread: found for thread, found in threads if found is not None}


def switch_count(pid: int, thread_id: int) -> int | None:
    """How often the thread has gone off a CPU, by its own will or not: one that stays in the same wait does not.

    None: it is gone. Anybody may read it (proc_pid_status(5)), unlike what it waits in.
    """
    status = _status(f"/proc/{pid}/task/{thread_id}")
    lines = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    counts = [int(word) for line in lines for word in status.get(line, [])]
    return sum(counts) if counts else None


def ids_inside(pid: int) -> dict[int, int]:
    """The id of each thread as the process itself sees it -> as we see it (NSpid in /proc/PID/status).

    They differ for a process of a container that is looked at from outside; empty where they do not.
    """
    if len(_status(f"/proc/{pid}").get("NSpid", [])) < 2:
        return {}
    threads = tree.listing(f"/proc/{pid}/task")
    ids = ((int(thread), _status(f"/proc/{pid}/task/{thread}").get("NSpid")) for thread in threads)
    return {int(inside[-1]): outside for outside, inside in ids if inside}


def is_frozen(pid: int) -> bool:
    """Whether a control group (cgroup) keeps the process from running, as `docker pause` does: not with SIGSTOP.

    In version 1 its state is D then, in version 2 S: neither tells. A group that is not yet frozen as a whole is not
    frozen (admin-guide/cgroup-v1/freezer-subsystem.rst; admin-guide/cgroup-v2.rst, cgroup.events).
    """
    own = text_of(Path(f"/proc/{pid}/cgroup"))
    v1, v2 = (group(controller, own, _mounted()) for controller in ("freezer", ""))
    return bool(
        (v1 and text_of(v1.folders[0] / "freezer.state") == "FROZEN\n")
        or (v2 and "frozen 1" in text_of(v2.folders[0] / "cgroup.events").splitlines())
    )


def signal_state(pid: int, thread: int, signal_number: int) -> SignalState:
    """All of it of one moment (proc_pid_status(5)); X, dead, of a thread that is gone."""
    status = _status(f"/proc/{pid}/task/{thread}")
    if not status:
        return SignalState("X", is_caught=False, is_blocked=False, is_pending=False)
    sets = (int(status[name][0], 16) for name in ("SigCgt", "SigBlk", "SigPnd"))
    return SignalState(status["State"][0], *(bool(one >> (signal_number - 1) & 1) for one in sets))


def _facts_of(folder: str) -> ThreadFacts | None:
    # The name before field 3 may hold blanks and brackets.
    fields = tree.read(f"{folder}/stat").rpartition(b")")[2].decode().split()
    if not fields:
        return None
    call = tree.read(f"{folder}/syscall").split()
    number = int(call[0]) if call and call[0] != b"running" else None
    descriptor = _descriptor(folder, number, int(call[1], 16)) if number is not None and number >= 0 else None
    return ThreadFacts(fields[0], int(fields[11]) + int(fields[12]), number, descriptor)


def _descriptor(folder: str, call: int, argument: int) -> str | None:
    """None also where it was closed meanwhile. The argument is a whole register: a descriptor is its lower half."""
    if call in _ON_COUNT:
        return None if argument & 0xFFFFFFFF else NO_DESCRIPTOR
    if call not in _ON_DESCRIPTOR:
        return None
    try:
        return os.readlink(os.fsencode(f"{folder}/fd/{argument & 0xFFFFFFFF}")).decode(errors="replace")
    except OSError:
        return None


def _status(folder: str) -> dict[str, list[str]]:
    """The words of each line of a `status` file, {} where there is none."""
    lines = (line.partition(":") for line in text_of(Path(folder, "status")).splitlines())
    return {name: value.split() for name, _, value in lines}


@cache
def _mounted() -> list[Mount]:
    return mounts(text_of(Path("/proc/self/mountinfo")))
