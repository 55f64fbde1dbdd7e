"""Programs for tests that ask a Python with the start-up hook, and what the fixtures for them are called."""

import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

Process = subprocess.Popen[bytes]
Start = Callable[..., Process]
Settle = Callable[[Process, Collection[int]], None]
Two = Callable[..., tuple[Process, int]]
Fake = Callable[[str], None]

TALKS = "import os, sys, threading, time\ndef say(*words): print(*words, flush=True)\n"
WAITS = TALKS + "def wait_for_work(): threading.Event().wait()\n"
THREAD_WAITS = WAITS + "threading.Thread(target=wait_for_work).start()\nsay(threading.enumerate()[1].native_id)\n"
TWO_WAIT = THREAD_WAITS + "wait_for_work()"


def said(process: Process) -> list[int]:
    """The numbers in the next line of it."""
    assert process.stdout
    return [int(word) for word in process.stdout.readline().split()]


def page(pid: int) -> bytes:
    """What is in the file that a process writes its stacks to."""
    return Path(f"/proc/{pid}/fd/500").read_bytes()
