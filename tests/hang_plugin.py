"""A plugin of vLLM that makes one process hang: entry point `vllm.general_plugins`, loaded by every process of vLLM.

Runs under the Python of real vLLM. As soon as the file that HANG_FILE names is there, the process that it speaks of
stops where it says, and writes its pid into `HANG_FILE.struck`: `PLACE RANK FAULT`, such as `collective 1 lock`. With
HANG_DISGUISE (`FILE:FUNCTION`, relative to vLLM's package) every function of this module on the stack bears that name.
"""

import functools
import importlib.util
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any


def register() -> None:
    """Wrap the places at which a process can be made to hang."""
    from vllm.distributed.parallel_state import GroupCoordinator
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu_worker import Worker

    for owner, name, place in (
        (GroupCoordinator, "all_reduce", "collective"),
        (Worker, "execute_model", "step"),
        (CPUWorker, "init_device", "device"),
        (DefaultModelLoader, "load_weights", "load"),
        (Scheduler, "schedule", "schedule"),
        (AsyncLLM, "add_request", "front"),
    ):
        setattr(owner, name, _wrapped(getattr(owner, name), place))


def _wrapped(function: Any, place: str) -> Any:
    order = Path(os.environ["HANG_FILE"])

    def hanging(self: Any, *arguments: Any, **options: Any) -> Any:
        if order.exists():
            wanted, rank, fault = order.read_text().split()
            if wanted == place and int(rank) == _rank(self):
                Path(f"{order}.struck").write_text(str(os.getpid()))
                _disguised(FAULTS[fault])()
                if fault == "once_more" and not getattr(self, "hung", False):
                    self.hung = True
                    function(self, *arguments, **options)
        return function(self, *arguments, **options)

    return functools.wraps(function)(_disguised(hanging))


def _rank(owner: Any) -> int:
    """Of the worker; a loader has to ask; 0 in the engine and in front of it."""
    if type(owner).__name__ == "DefaultModelLoader":
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        return int(get_tensor_model_parallel_rank())
    return int(getattr(owner, "rank", 0))


def _disguised(function: Any) -> Any:
    file, _, name = os.environ.get("HANG_DISGUISE", "").partition(":")
    spec = importlib.util.find_spec("vllm")
    if not name or spec is None or spec.origin is None:
        return function
    path = str(Path(spec.origin).parent / file)
    code = function.__code__.replace(co_filename=path, co_name=name, co_qualname=name)
    return FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)


def sleep() -> None:
    time.sleep(1000)


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
    """Holds the GIL for minutes."""
    pow(3, 10**9)


def wait_for_the_clock() -> None:
    end = time.monotonic() + 1000
    while time.monotonic() < end:
        pass


def hold_the_interpreter() -> None:
    """In another thread, so that this one stops wherever it is."""
    threading.Thread(target=loop_in_native_code, daemon=True).start()
    loop_in_python()


def read_a_pipe() -> None:
    path = Path(f"{os.environ['HANG_FILE']}.{os.getpid()}")
    os.mkfifo(path)
    path.read_bytes()


def wait_for_a_child() -> None:
    subprocess.run(["sleep", "1000"], check=False)


def wait_on_a_socket() -> None:
    ours, _theirs = socket.socketpair()
    ours.recv(1)


def fail() -> None:
    raise RuntimeError("a rank that fails")


def go_on() -> None:
    pass


FAULTS: dict[str, Callable[[], object]] = {
    "sleep": sleep,
    "lock": take_a_lock_twice,
    "python_loop": loop_in_python,
    "native_loop": loop_in_native_code,
    "read": read_a_pipe,
    "subprocess": wait_for_a_child,
    "socket": wait_on_a_socket,
    "raise": fail,
    "once_more": go_on,
    "clock": wait_for_the_clock,
    "gil": hold_the_interpreter,
}
"""By what the process then does, but for: `once_more`, the wrapped call is made twice, once; `clock`, a loop in Python
that calls native code; `gil`, native code in another thread."""


class Order:
    """The plugin in a folder of its own, and the file that tells it what to do."""

    def __init__(self, folder: Path) -> None:
        self._plugin, self._file = folder / "plugin", folder / "order"
        self.struck = folder / "order.struck"
        """Where the process that meets the fault writes its pid."""
        facts = self._plugin / "hang_plugin-1.dist-info"
        facts.mkdir(parents=True)
        (self._plugin / "hang_plugin.py").write_text(Path(__file__).read_text())
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: hang-plugin\nVersion: 1\n")
        (facts / "entry_points.txt").write_text("[vllm.general_plugins]\nhang = hang_plugin:register\n")

    @property
    def environment(self) -> dict[str, str]:
        """What the run needs to find both."""
        return {"PYTHONPATH": str(self._plugin), "HANG_FILE": str(self._file)}

    def give(self, what: str) -> None:
        """From now on, at once and whole: `PLACE RANK FAULT`."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(what)
        draft.rename(self._file)

    @property
    def struck_at(self) -> float | None:
        """Unix seconds of the moment at which a process met it."""
        return self.struck.stat().st_mtime if self.struck.exists() else None

    @property
    def struck_pid(self) -> int | None:
        """The process that met it."""
        return int(self.struck.read_text()) if self.struck.exists() else None
