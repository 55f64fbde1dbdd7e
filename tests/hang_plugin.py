"""A plugin of vLLM that makes one process hang: entry point `vllm.general_plugins`, loaded by every process of vLLM.

Runs under the Python of real vLLM. As soon as the file that HANG_FILE names is there, the process that it speaks of
stops where it says: `PLACE RANK FAULT`, such as `collective 1 lock`. PLACE is `collective` (just before an all-reduce),
`step` (before anything of a step) or `schedule` (in the engine, RANK is then not looked at).
"""

import ctypes
import functools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def register() -> None:
    """Wrap the places at which a process can be made to hang."""
    from vllm.distributed.parallel_state import GroupCoordinator
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu_worker import Worker

    GroupCoordinator.all_reduce = _wrapped(GroupCoordinator.all_reduce, "collective", lambda self: self.rank)
    Worker.execute_model = _wrapped(Worker.execute_model, "step", lambda self: self.rank)
    Scheduler.schedule = _wrapped(Scheduler.schedule, "schedule", lambda self: 0)


def _wrapped(function: Any, place: str, rank_of: Callable[[Any], int]) -> Any:
    order = Path(os.environ["HANG_FILE"])

    @functools.wraps(function)
    def hanging(self: Any, *arguments: Any, **options: Any) -> Any:
        if order.exists():
            wanted, rank, fault = order.read_text().split()
            if (wanted, int(rank)) == (place, rank_of(self)):
                FAULTS[fault]()
        return function(self, *arguments, **options)

    return hanging


def take_a_lock_twice() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


def loop_in_python() -> None:
    number = 0
    while True:
        number += 1
        number -= 1


def loop_in_native_code() -> None:
    ctypes.PyDLL(None).usleep  # noqa: B018 - loads the library
    pow(3, 10**9)


def read_a_pipe() -> None:
    path = Path(f"{os.environ['HANG_FILE']}.{os.getpid()}")
    os.mkfifo(path)
    path.read_bytes()


def wait_for_a_child() -> None:
    subprocess.run(["sleep", "1000"], check=False)


def wait_on_a_socket() -> None:
    ours, _theirs = socket.socketpair()
    ours.recv(1)


FAULTS: dict[str, Callable[[], object]] = {
    "sleep": lambda: time.sleep(1000),
    "lock": take_a_lock_twice,
    "python_loop": loop_in_python,
    "native_loop": loop_in_native_code,
    "read": read_a_pipe,
    "subprocess": wait_for_a_child,
    "socket": wait_on_a_socket,
}


def install(folder: Path) -> None:
    """Make an importable folder of it, for PYTHONPATH: this module and what tells vLLM of it."""
    facts = folder / "hang_plugin-1.dist-info"
    facts.mkdir(parents=True)
    (folder / "hang_plugin.py").write_text(Path(__file__).read_text())
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: hang-plugin\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[vllm.general_plugins]\nhang = hang_plugin:register\n")


if __name__ == "__main__":
    install(Path(sys.argv[1]))
