"""Stacks that the threads of a process write down when they are asked: the start-up hook makes them answer SIGUSR2.

Needs no right to trace, and works while C code keeps the interpreter to itself. Threads are asked one by one, so that
it is known who answers, and each reads only its own stack. Where one thread read them all, or one that was running
Python read its own, it read what was being changed: that ended processes with a segmentation fault, once in ten to a
few thousand times (measured on CPython 3.9 to 3.13). So a thread that uses the CPU is left alone unless that is wanted;
those at rest beside threads that ran Python without a pause answered 140,000 times without harm.
"""

import asyncio
import ctypes
import errno
import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO

from vllm_probes.rows import Frame, ThreadStack
from vllm_probes.sensors.tree import state_letter

LOOK_S, LOOKS = 0.02, 3
"""For how long a thread must not have run before it is asked, and how often that is tried. One that waits for its turn
to run Python tries every 5 ms (sys.setswitchinterval), so it is never taken for one at rest."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.0005, 0.05
"""Between two looks whether a thread has answered, each twice as long as the one before."""
PATIENCE = 8
"""Looks, 0.1 s altogether, at a thread that has taken the signal and goes on running without a word."""
_STACKS = re.compile(r".*/vllm-tui-stacks-\d+ \(deleted\)")  # hook/sitecustomize.py
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)')
_OUTSIDE_PACKAGE = re.compile(r".*/(?:(?:site|dist)-packages|lib\d*/python3\.\d+t?)/|.*/(?=vllm/)")
_LIBC = ctypes.CDLL(None, use_errno=True)


class DumpError(Exception):
    """A process gives no stacks; the text says why."""


async def dump(pid: int, *, running_too: bool = False, timeout_s: float = 2.0) -> list[ThreadStack]:
    """The Python stacks of a process of our own, which goes on meanwhile: the main thread first, 100 calls of each.

    Of a thread that waits inside the kernel (D) or uses the CPU there is only its `state`: it is not asked. Threads
    that are not Python's are missing, and those whose turn does not come within `timeout_s`. One call at a time for
    each process.

    Args:
        running_too: ask threads that use the CPU, too. That is safe where C code does so, as in a collective; where it
            may be Python, only for a process that is given up.

    Raises:
        DumpError: it has no start-up hook, is stopped, in state D or busy, belongs to another user, or has ended.
    """
    if reason := _cannot_answer(pid):
        raise DumpError(reason)
    stacks: dict[int, ThreadStack] = {}
    with _stacks_file(pid) as file, suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await _ask_all(pid, file, stacks, running_too)
    found = [stacks[thread] for thread in _main_first(pid, stacks)]
    if not any(stack.frames for stack in found):
        raise DumpError(_why_silent(pid, found, timeout_s))
    return found


def parse(text: str) -> list[Frame]:
    """The calls in what faulthandler writes of one thread (CPython 3.8 to 3.14, Python/traceback.c), innermost first.

    Characters that are no printable ASCII stay as they are written there, such as `\\xef`.
    """
    return [
        Frame(
            function=found["function"],
            file=_OUTSIDE_PACKAGE.sub("", found["file"], count=1),
            line=int(found["line"]) if found["line"].isdecimal() else 0,
        )
        for line in text.splitlines()
        if (found := _FRAME.fullmatch(line))
    ]


@contextmanager
def _stacks_file(pid: int) -> Iterator[BinaryIO]:
    """Where it writes its stacks to; what goes wrong while it is open becomes a DumpError."""
    try:
        with open(_find_stacks(pid), "r+b", buffering=0) as file:
            yield file
    except PermissionError:
        raise DumpError(f"Process {pid} belongs to another user: only that user, or root, can ask it.") from None
    except (FileNotFoundError, ProcessLookupError):
        raise DumpError(_cannot_answer(pid) or _without_hook(pid)) from None


def _find_stacks(pid: int) -> str:
    folder = f"/proc/{pid}/fd"
    for descriptor in os.listdir(folder):
        with suppress(FileNotFoundError):
            if _STACKS.fullmatch(os.readlink(f"{folder}/{descriptor}")):
                return f"{folder}/{descriptor}"
    raise FileNotFoundError


def _threads(pid: int) -> list[int]:
    return [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]


def _main_first(pid: int, threads: Iterable[int]) -> list[int]:
    return sorted(threads, key=lambda thread: (thread != pid, thread))


async def _ask_all(pid: int, file: BinaryIO, stacks: dict[int, ThreadStack], running_too: bool) -> None:
    """Fill in the stacks, one by one: each thread is asked once, and left out as long as it is not at rest."""
    asked: set[int] = set()
    for _ in range(LOOKS):
        turns = {thread: _turns(pid, thread) for thread in _threads(pid) if thread not in asked}
        await asyncio.sleep(LOOK_S if turns else 0)
        for thread in _main_first(pid, turns):
            stack = await _ask(pid, thread, file, None if running_too else turns[thread])
            if stack is not None:
                stacks[thread] = stack
            elif thread == pid:  # perhaps the program handles the signal itself: do not go on
                return
            if stack is None or stack.frames:
                asked.add(thread)


def _turns(pid: int, thread: int) -> str:
    """Changes whenever the thread gets a CPU (Linux, scheduler/sched-stats); empty: it has ended."""
    try:
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def _ask(pid: int, thread: int, file: BinaryIO, turns: str | None) -> ThreadStack | None:
    """Of one not at rest since it had these turns, only its state; None: it writes nothing, so it is not Python's."""
    status = _status(pid, thread)
    state = status.get("State", "?")[0]
    if not _has(status, "SigCgt") or _has(status, "SigBlk") or _has(status, "SigPnd"):
        return None
    if state == "D" or (turns is not None and (state == "R" or not turns or _turns(pid, thread) != turns)):
        return ThreadStack(thread_id=thread, state=state)
    file.truncate(0)
    _send(pid, thread)
    text = await _answer(pid, thread, file)
    return ThreadStack(thread_id=thread, state=state, frames=parse(text)) if text else None


async def _answer(pid: int, thread: int, file: BinaryIO) -> str:
    """What it has written when it has left the handler, inside which the kernel blocks the signal for it.

    Between taking the signal and being inside the handler it runs: once it sleeps without a word there is none to come.
    """
    pause_s, patience = SHORTEST_PAUSE_S, PATIENCE
    while patience > 0:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        status = _status(pid, thread)
        if not _has(status, "SigPnd") and not _has(status, "SigBlk"):
            if text := os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0):
                return text.decode("ascii", "replace")
            patience -= 1 if status.get("State", "")[:1] == "R" else PATIENCE
    return ""


def _send(pid: int, thread: int) -> None:
    try:
        failed = _LIBC.tgkill(pid, thread, signal.SIGUSR2)
    except AttributeError:
        raise DumpError("Single threads cannot be asked here: that takes glibc 2.30 (of 2019) or newer.") from None
    if failed and (code := ctypes.get_errno()) != errno.ESRCH:  # it may have just ended
        raise OSError(code, os.strerror(code))


def _status(pid: int, thread: int) -> dict[str, str]:
    """Its fields (proc_pid_status(5)); empty when the thread has ended."""
    try:
        with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8", errors="replace") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except (FileNotFoundError, ProcessLookupError):
        return {}


def _has(status: Mapping[str, str], mask: str) -> bool:
    return bool(int(status.get(mask, "0"), 16) >> (signal.SIGUSR2 - 1) & 1)


def _cannot_answer(pid: int) -> str | None:
    match state_letter(pid):
        case None | "Z" | "X" | "x":
            return f"Process {pid} has ended."
        case "T" | "t":
            return f"Process {pid} is stopped and takes no signal: let it go on (SIGCONT)."
    return None


def _without_hook(pid: int) -> str:
    return (
        f"Process {pid} has no start-up hook that would make it show its stacks: it is no Python, was started with "
        "`--bare`, with `python -I`, `-E` or `-S`, or without our PYTHONPATH, or it uses SIGUSR2 itself."
    )


def _why_silent(pid: int, stacks: Sequence[ThreadStack], timeout_s: float) -> str:
    if reason := _cannot_answer(pid):
        return reason
    status = _status(pid, pid)
    if stacks and stacks[0].state == "D":
        return f"Process {pid} waits inside the kernel (state D) and takes no signal before that is over."
    if stacks:
        return f"Process {pid} is busy: a thread that runs Python cannot be asked safely. Ask when it stands still."
    if not _has(status, "SigCgt"):
        return _without_hook(pid)
    if _has(status, "SigPnd") or _has(status, "SigBlk"):
        return f"Process {pid} did not take SIGUSR2 within {timeout_s:g} s: it is frozen, gets no CPU, or blocks it."
    return f"Process {pid} took SIGUSR2 and wrote no stacks: it handles the signal itself, or /dev/shm is full."
