"""What the kernel says of the threads of a process, read from /proc: state, CPU, system call, descriptor.

Only files that the kernel fills in without the lock of the process's memory (proc_pid_cmdline(5), environ, maps and mem
take it): a process in state D may hold that lock, and whoever reads those waits with it. What a thread polls is in such
a file, which is read only where asked for and while no thread is in that state. Threads and processes come and go while
one looks: whatever has vanished is left out, and nothing here raises for it.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from vllm_probes.sensors import tree
from vllm_probes.sensors.cgroup import Mount, group, mounts, text_of
from vllm_probes.sensors.descriptors import call_of, named, polled


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
    """What it waits on: `socket:[…]`, `pipe:[…]`, a path; of several that it polls the one that tells most
    (`descriptors.polled`); NO_DESCRIPTOR for a poll or select on none."""


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


def facts(pid: int, *, reads_memory: bool = False) -> dict[int, ThreadFacts]:
    """Every thread of a process by its id; a zombie has one, in state Z, and what is gone has none.

    `reads_memory`: what is waited on by poll and select is looked for, too. Only for a process whose memory could just
    be read: it may hang whoever tries.
    """
    folders = {int(thread): f"/proc/{pid}/task/{thread}" for thread in tree.listing(f"/proc/{pid}/task")}
    looks = {thread: look for thread, folder in folders.items() if (look := _look(folder))}
    found = {thread: one for thread, (one, _) in looks.items()}
    if any(one.state == "D" for one in found.values()):
        return found
    for thread, (one, call) in looks.items():
        is_readable = reads_memory and one.state == "S"
        if descriptor := polled(folders[thread], call, reads_memory=is_readable):
            found[thread] = one._replace(descriptor=descriptor)
    return found


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


def _look(folder: str) -> tuple[ThreadFacts, list[int]] | None:
    """What is known of a thread without what it polls, and the call that it is in."""
    # The name before field 3 may hold blanks and brackets.
    fields = tree.read(f"{folder}/stat").rpartition(b")")[2].decode().split()
    if not fields:
        return None
    call = call_of(folder)
    number = call[0] if call else None
    return ThreadFacts(fields[0], int(fields[11]) + int(fields[12]), number, named(folder, call)), call


def _status(folder: str) -> dict[str, list[str]]:
    """The words of each line of a `status` file, {} where there is none."""
    lines = (line.partition(":") for line in text_of(Path(folder, "status")).splitlines())
    return {name: value.split() for name, _, value in lines}


@cache
def _mounted() -> list[Mount]:
    return mounts(text_of(Path("/proc/self/mountinfo")))
