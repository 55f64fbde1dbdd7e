"""Process titles as setproctitle sets them: by writing over the memory of the command line."""

import ctypes
import multiprocessing
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_LIBC = ctypes.CDLL(None)


def take_name(name: str) -> None:
    """Title, thread name and log name of this process from now on, e.g. `Worker_TP3` for `VLLM::Worker_TP3`."""
    multiprocessing.current_process().name = name
    title = f"VLLM::{name}".encode()
    start, end = _argv_memory()
    room = end - start
    ctypes.memmove(start, title[: room - 1].ljust(room, b"\0"), room)
    _LIBC.prctl(_PR_SET_NAME, title)


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent is gone: a demo never outlives its API server."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(1)


def _argv_memory() -> tuple[int, int]:
    """Begin and end of the command line in memory: fields 48 and 49 of /proc/PID/stat (proc(5))."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[45]), int(fields[46])
