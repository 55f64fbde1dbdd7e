"""What the descriptors stand for that a thread waits on, as /proc/PID/task/TID tells it.

A call on one descriptor has its number as first argument. One that waits on several has them elsewhere: epoll in the
kernel, which lists them (proc_pid_fdinfo(5), `tfd`), poll and select in the memory of the process.
"""

import os
import struct
from collections.abc import Iterable, Sequence

from vllm_probes.judges.doing import NO_DESCRIPTOR
from vllm_probes.judges.syscalls import Wait, numbers, wait_in
from vllm_probes.sensors import tree

MAX_POLLED = 64
"""So many of the polled descriptors are looked at."""
_MACHINE = os.uname().machine
_NAMES = {number: name for name, number in numbers(_MACHINE).items()}
_WAITS_ON_ONE: frozenset[Wait | None] = frozenset(("socket", "file", "file_lock", "driver"))
_EPOLL, _POLL, _SELECT = ("epoll_wait", "epoll_pwait", "epoll_pwait2"), ("poll", "ppoll"), ("select", "pselect6")
_COUNT_AT = {**dict.fromkeys(_SELECT, 1), **dict.fromkeys(_POLL, 2)}
"""Which argument says how many descriptors there are to look at."""
_POLLFD = struct.Struct("i4x")  # poll(2)
_SET_SIZE = 1024
"""FD_SETSIZE of select(2)."""


def call_of(folder: str) -> list[int]:
    """Number and six arguments of the system call that a thread is in, and two of its registers: the same list is the
    same call. Empty for one that runs or that we may not trace (proc_pid_syscall(5))."""
    words = tree.read(f"{folder}/syscall").split()
    return [] if words[:1] == [b"running"] else [int(word, 0) for word in words]


def named(folder: str, call: Sequence[int]) -> str | None:
    """The descriptor that a call is on by its arguments alone: `socket:[…]`, `pipe:[…]`, a path; NO_DESCRIPTOR for a
    poll or select on none. None also where it was closed meanwhile."""
    name = _name(call)
    if name in _COUNT_AT:
        return None if _low(call[_COUNT_AT[name]]) else NO_DESCRIPTOR
    is_on_one = name in _EPOLL or (call and wait_in(call[0], _MACHINE) in _WAITS_ON_ONE)
    return _link(folder, _low(call[1])) if is_on_one else None


def polled(folder: str, call: list[int], *, reads_memory: bool) -> str | None:
    """Of the descriptors that a thread waits on by epoll, poll or select the one that tells most, see `_telling`.

    None: it does not poll, its memory would have to be read or may not be, or it went on meanwhile. Whoever holds the
    lock of the memory makes the reader wait, and so does, for the list of epoll, whoever waits for that lock in
    ep_send_events(), fs/eventpoll.c: no thread of the process may be in state D.
    """
    try:
        found = _polled_numbers(folder, call, reads_memory=reads_memory)
    except (OSError, OverflowError):  # no right to read it, no address
        return None
    if found is None or call_of(folder) != call:
        return None
    return _telling(_link(folder, number) for number in found[:MAX_POLLED]) if found else NO_DESCRIPTOR


def _polled_numbers(folder: str, call: Sequence[int], *, reads_memory: bool) -> list[int] | None:
    name = _name(call)
    if name in _EPOLL:
        return _watched(folder, _low(call[1]))
    if name in _POLL and reads_memory:
        array = _memory(folder, call[1], min(_low(call[2]), MAX_POLLED) * _POLLFD.size)
        return [number for (number,) in _POLLFD.iter_unpack(array) if number >= 0]
    if name in _SELECT and reads_memory:
        return _selected(folder, min(_low(call[1]), _SET_SIZE), call[2:5])
    return None


def _watched(folder: str, epoll: int) -> list[int]:
    """What an epoll watches; one that watches nothing stands for itself."""
    lines = (line.split() for line in tree.read(f"{folder}/fdinfo/{epoll}").splitlines())
    return [int(words[1]) for words in lines if words[:1] == [b"tfd:"]] or [epoll]


def _selected(folder: str, count: int, sets: Iterable[int]) -> list[int]:
    """The numbers below `count` that are in any of the sets: to be read, written, or for exceptions; a set that is not
    given is at 0. They are bits, the lowest first on machines whose numbers we know."""
    size = -(-count // 8)
    bits = 0
    for address in sets:
        bits |= int.from_bytes(_memory(folder, address, size), "little") if address else 0
    return [number for number in range(count) if bits >> number & 1]


def _memory(folder: str, address: int, size: int) -> bytes:
    """Raises OSError and OverflowError."""
    descriptor = os.open(f"{folder}/mem", os.O_RDONLY)
    try:
        found = os.pread(descriptor, size, address)
    finally:
        os.close(descriptor)
    if len(found) < size:
        raise OSError("it ends before")
    return found


def _telling(links: Iterable[str | None]) -> str | None:
    """A socket, or what may stand for one, before anything else: the eventfd of ZMQ does; of two, the first."""
    known = [link for link in links if link]
    sockets = (link for link in known if link.startswith(("socket:", "anon_inode:")) and "[eventpoll]" not in link)
    return next(sockets, known[0] if known else None)


def _link(folder: str, number: int) -> str | None:
    try:
        return os.readlink(os.fsencode(f"{folder}/fd/{number}")).decode(errors="replace")
    except OSError:
        return None


def _name(call: Sequence[int]) -> str:
    return _NAMES.get(call[0], "") if call else ""


def _low(argument: int) -> int:
    """An argument is a whole register: an int, such as a descriptor or a count, is its lower half."""
    return argument & 0xFFFFFFFF
