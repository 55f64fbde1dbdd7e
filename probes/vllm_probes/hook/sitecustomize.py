"""Loaded by every Python of a run before its program: lets its stacks be read, and keeps its log lines whole.

A launch puts this folder, which holds nothing else, first on PYTHONPATH. It runs inside programs of others, from Python
3.8 on: it imports only what Python has loaded anyway, and where something cannot be had it does without and is silent.
"""

import faulthandler
import os
import sys

STACKS = "/dev/shm/vllm-tui-stacks-"
"""How the path of the file begins that stacks go to. In memory: a full disk cannot swallow them. Unlinked at once and
reached through /proc/PID/fd: hundreds of short processes leave nothing behind. Not a memfd: many builds of Python
(conda's, uv's until 2026) come without `os.memfd_create`.
"""
DESCRIPTORS = range(500, 532)
"""Where its descriptor goes: far above the numbers that are given out again first when a program closes descriptors
that it did not open, so that stacks never end up in a file of the program's own; below the usual limit of 1024."""
SIGUSR2 = 12
"""As on every processor that vLLM runs on (signal(7)); `import signal` would take a millisecond."""
PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, -1  # linux/prctl.h


def keep_lines_whole() -> None:
    """Processes that share a log write it line by line, and not whatever is in the buffer when it is full."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):  # closed, or not Python's own
            continue


def load_the_next() -> None:
    """The sitecustomize that Python would have loaded without us takes our place; its errors are Python's to show."""
    folder = os.path.dirname(__file__)
    if folder not in sys.path:
        return
    place = sys.path.index(folder)
    del sys.path[place]
    ours = sys.modules.pop(__name__)
    try:
        __import__(__name__)
    except ImportError as error:
        if error.name != __name__:
            raise
    finally:
        sys.path.insert(place, folder)
        sys.modules.setdefault(__name__, ours)


def offer_stacks() -> None:
    """At SIGUSR2 a thread writes down its own stack, unless somebody else has a use for that signal.

    Never those of all threads: reading them while one of them runs Python can end the process.
    """
    try:
        if is_default(SIGUSR2):
            descriptor = above_the_others(open_unlinked())
            faulthandler.register(SIGUSR2, file=descriptor, all_threads=False, chain=False)
            os.register_at_fork(after_in_child=lambda: offer_own_stacks(descriptor))
    except (OSError, ValueError, AttributeError, RuntimeError):
        return


def offer_own_stacks(descriptor: int) -> None:
    """In a forked child: a file of its own, where the descriptor has not become something else by now."""
    try:
        if os.readlink("/proc/self/fd/" + str(descriptor)).startswith(STACKS):
            own = open_unlinked()
            os.dup2(own, descriptor, inheritable=False)
            os.close(own)
    except OSError:
        return


def is_default(number: int) -> bool:
    """Neither caught nor ignored, be it by C code, by who started us, or by us in another interpreter of the process.

    `signal.getsignal` knows only what Python did (proc_pid_status(5)).
    """
    with open("/proc/self/status", "rb") as file:
        masks = [int(line[7:], 16) for line in file if line.startswith((b"SigIgn:", b"SigCgt:"))]
    return not any(mask >> (number - 1) & 1 for mask in masks)


def open_unlinked() -> int:
    path = STACKS + str(os.getpid())
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    return descriptor


def above_the_others(descriptor: int) -> int:
    """The same file at one of DESCRIPTORS; OSError when none is free or the limit is lower."""
    try:
        return os.dup2(descriptor, next(filter(is_closed, DESCRIPTORS), -1), inheritable=False)
    finally:
        os.close(descriptor)


def is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def let_others_trace() -> None:
    """Lets py-spy read us where Yama grants that to ancestors only (Yama.rst): the keeper is none."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", "rb") as file:
            if file.read().strip() != b"1":
                return
        allow_any_tracer()
        os.register_at_fork(after_in_child=allow_any_tracer)
    except (OSError, AttributeError, ImportError):
        return


def allow_any_tracer() -> None:
    import _ctypes  # a fraction of what `ctypes` takes

    prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
    _ctypes.call_cdeclfunction(prctl, (PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0))


if __name__ == "sitecustomize":
    keep_lines_whole()
    let_others_trace()
    try:
        load_the_next()
    finally:
        offer_stacks()
