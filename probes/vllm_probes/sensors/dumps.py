"""Stacks that the threads of a process write down when they are asked: the start-up hook makes them answer SIGUSR2.

Needs no right to trace, pauses nobody, and works while C code keeps the interpreter to itself. What is safe was
measured on CPython 3.9 to 3.13. Where one thread wrote down all of them, or one that ran Python its own, it read what
was being changed: that ended processes with a segmentation fault, once in ten to a few thousand times. Threads at rest
that wrote down their own beside threads that ran Python without a pause did so 140,000 times without harm.

So each thread is asked by itself, and only while it is at rest. C code that the signal finds waiting goes on waiting,
but for the calls that never do (signal(7)): a thread that gives no answer is no Python's, and is not asked again.
"""

import asyncio
import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from vllm_probes.hook.sitecustomize import DESCRIPTORS, SIGUSR2, STACKS
from vllm_probes.sensors import tree
from vllm_probes.sensors.threads import ids_inside, is_frozen, signal_state, switch_count

LOOK_S, LOOKS = 0.02, 3
"""For how long a thread must not have run before it is asked, and how often that is tried. One that waits for its turn
to run Python tries every 5 ms (sys.setswitchinterval), so it is never taken for one at rest."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.0005, 0.05
"""Between two looks whether a thread has answered, each twice as long as the one before."""
PATIENCE = 8
"""Looks, 0.1 s altogether, at a thread that has taken the signal and goes on running without a word."""
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)')
_TGKILL = {"x86_64": 234, "aarch64": 131, "ppc64le": 250, "s390x": 241}.get(os.uname().machine, -1)
"""Its number: the C library knows its name only since glibc 2.30."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class DumpError(Exception):
    """A process that has the hook gives no stacks: the end of a sentence, which says why."""


class Call(NamedTuple):
    """One frame. Characters that are no printable ASCII stay as faulthandler writes them, such as `\\xef`."""

    function: str
    file: str
    line: int
    """0: not known."""


async def dump(pid: int, *, timeout_s: float = 2.0) -> dict[int, list[Call]]:
    """The Python calls of each thread that is at rest, by its id, the main thread first; 100 calls, innermost first.

    Nothing of a process without the hook, of another user, or that has ended. Threads that run, or wait inside the
    kernel (D), are left out.

    Raises:
        DumpError: its main thread does not answer. No other is asked then: the handler may be somebody else's.
    """
    answers: dict[int, str] = {}
    try:
        with _page_of(pid) as page:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await _ask_all(pid, page, answers)
            if pid not in answers and signal_state(pid, pid, SIGUSR2).state not in "ZX":
                raise DumpError(_why_silent(pid, page))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    except OSError as error:
        raise DumpError(f"{error.strerror}, as the system says") from error
    return {thread: parse(text) for thread, text in answers.items()}


def has_hook(pid: int) -> bool:
    """Whether it can be asked at all: a Python of this user that was started with the hook."""
    with suppress(PermissionError):
        return bool(_path(pid))
    return False


def parse(text: str) -> list[Call]:
    """The calls in what faulthandler writes of one thread (CPython 3.8 to 3.14, Python/traceback.c)."""
    return [
        Call(found["function"], found["file"], int(found["line"]) if found["line"].isdecimal() else 0)
        for line in text.splitlines()
        if (found := _FRAME.fullmatch(line))
    ]


class _Page:
    """The file of a process: a line of ours with the threads that were asked and have not answered, the latest last;
    below it what that one has written.

    The file lasts as long as the process, so that whoever asks next knows of those too.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.silent: list[int] = []

    async def take(self) -> None:
        """Read it as soon as nobody else asks the same process (flock(2))."""
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LONGEST_PAUSE_S)
        self.silent = [int(word) for word in self._text().partition("\n")[0].split() if word.isdecimal()]

    def turn(self, silent: list[int]) -> None:
        """Drop what was written."""
        self.silent = silent
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{' '.join(map(str, silent))}\n".encode(), 0)

    def answer(self) -> str:
        return self._text().partition("\n")[2]

    def _text(self) -> str:
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0).decode("ascii", "replace")


@contextmanager
def _page_of(pid: int) -> Iterator[_Page]:
    """Raises OSError; FileNotFoundError: it has none."""
    descriptor = os.open(_path(pid), os.O_RDWR)
    try:
        yield _Page(descriptor)
    finally:
        os.close(descriptor)


def _path(pid: int) -> str:
    """Of the file of its own; "" where it has none: a fork that knew nothing of the hook has that of its parent.

    Raises PermissionError.
    """
    own_id = next((inside for inside, outside in ids_inside(pid).items() if outside == pid), pid)
    links = (f"/proc/{pid}/fd/{number}" for number in DESCRIPTORS)
    return next((link for link in links if _leads_to(link) == f"{STACKS}{own_id} (deleted)"), "")


def _leads_to(link: str) -> str:
    with suppress(FileNotFoundError):
        return os.readlink(link)
    return ""


async def _ask_all(pid: int, page: _Page, answers: dict[int, str]) -> None:
    """Fill in the answers, one after the other: the main thread shows whether the handler is that of the hook."""
    await page.take()
    before = {thread: signal_state(pid, thread, SIGUSR2) for thread in page.silent}
    if is_frozen(pid) or any(one.is_held for one in before.values()):
        return  # whatever is asked now, or was asked before, is answered at any time later
    if page.answer():
        page.turn(page.silent[:-1])
    page.silent = [thread for thread in page.silent if before[thread].state != "X"]
    for _ in range(LOOKS):
        threads = {int(thread) for thread in tree.listing(f"/proc/{pid}/task")} - {*page.silent, *answers}
        main_first = sorted(threads, key=lambda thread: (thread != pid, thread))
        switches = {thread: switch_count(pid, thread) for thread in main_first}
        await asyncio.sleep(LOOK_S if switches else 0)
        for thread in main_first:
            if pid not in (thread, *answers):
                break
            if _is_at_rest(pid, thread, switches[thread]) and (text := await _ask(pid, thread, page)):
                answers[thread] = text


def _is_at_rest(pid: int, thread: int, switches: int | None) -> bool:
    """It has not run since it had gone off a CPU so often, and would take the signal at once."""
    now = signal_state(pid, thread, SIGUSR2)
    takes_it = now.state == "S" and now.is_caught and not now.is_held
    return takes_it and switches is not None and switch_count(pid, thread) == switches


async def _ask(pid: int, thread: int, page: _Page) -> str:
    """What it has written when it has left the handler, inside which the signal is blocked for it.

    Between taking the signal and being inside the handler it runs: once it sleeps without a word there is none to come.
    """
    page.turn([*page.silent, thread])
    _send(pid, thread)
    pause_s, patience = SHORTEST_PAUSE_S, PATIENCE
    while patience > 0:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        now = signal_state(pid, thread, SIGUSR2)
        if not now.is_held:
            if text := page.answer():
                page.turn(page.silent[:-1])
                return text
            patience -= 1 if now.state == "R" else PATIENCE
    return ""


def _send(pid: int, thread: int) -> None:
    """Raises OSError."""
    if _LIBC.syscall(_TGKILL, pid, thread, SIGUSR2) and (code := ctypes.get_errno()) != errno.ESRCH:  # it may be gone
        raise OSError(code, os.strerror(code))


def _why_silent(pid: int, page: _Page) -> str:
    now = signal_state(pid, pid, SIGUSR2)
    if now.state in "Tt":
        return "it is stopped"
    if now.state == "D":
        return "it waits inside the kernel"
    if is_frozen(pid):
        return "it is frozen"
    if not now.is_caught:
        return "it has no handler for SIGUSR2 any more"
    if now.is_held:
        return "it does not take SIGUSR2"
    if pid in page.silent:
        return "it has a use of its own for SIGUSR2"
    return "it runs, and answers safely only while it stands still"
