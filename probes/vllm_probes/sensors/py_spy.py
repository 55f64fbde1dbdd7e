"""Runs py-spy on a process, without pausing it unless asked to: its stacks as JSON, or what is the matter."""

import asyncio
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from vllm_probes.rows import ProcessRef

ATTEMPTS = 6
"""A stack that changes while it is read cannot be read: of a busy worker about one attempt in five (measured)."""
DIE_S = 1.0
"""How long a killed py-spy may take to go. One that hangs in the kernel cannot be killed and is left behind."""
TRY_S = 2.0
UNPAUSED = ("--nonblocking",)
_NO_PERMISSION = re.compile(r"permission denied|operation not permitted", re.IGNORECASE)
_UNKNOWN_PYTHON = re.compile(r"Unsupported version of Python: ([\d.]+)")
_NO_PYTHON = re.compile(r"find (?:a )?python (?:version|interpreter)", re.IGNORECASE)
_GONE = re.compile(r"No such (?:file or directory|process)|process is running")
_MOVED = "Failed to get stack traces"


class NoStacksError(Exception):
    """One way to the stacks of a process gave none: a sentence that says what is the matter and what to do."""


class ObstacleError(NoStacksError):
    """It is py-spy or the rights it has: other processes give none, either."""


class PySpyLocal(msgspec.Struct, frozen=True):
    name: str
    repr: str | None = None


class PySpyFrame(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    filename: str
    short_filename: str | None = None
    line: int = 0
    module: str | None = None
    """Of a native frame: its library."""
    locals: list[PySpyLocal] | None = None


class PySpyThread(msgspec.Struct, frozen=True):
    """As py-spy 0.4 writes it, the innermost call first."""

    thread_id: int
    """Python's: an address, and so never an id of the kernel."""
    thread_name: str | None = None
    os_thread_id: int | None = None
    """As the process itself sees it. None for Python 3.10, where only a pause would tell."""
    active: bool | None = None
    owns_gil: bool | None = None
    frames: list[PySpyFrame] = []


_DECODER = msgspec.json.Decoder(list[PySpyThread])


async def try_on(target: ProcessRef) -> None:
    """See whether py-spy can read a process.

    Raises:
        ObstacleError: it cannot, and no other either.
        NoStacksError: this process does not tell.
    """
    await read_stacks(find_py_spy(), target, TRY_S)


def find_py_spy() -> str | None:
    """The py-spy that came with this program: beside its Python, among the user's own scripts, or on PATH."""
    user_scripts = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    folders = [os.path.dirname(sys.executable), sysconfig.get_path("scripts"), user_scripts, os.environ.get("PATH", "")]
    return shutil.which("py-spy", path=os.pathsep.join(folders))


def explain(stderr: str, target: ProcessRef, py_spy: str, ptrace_scope: int | None) -> str:
    """What py-spy's complaint about a process means, in one sentence that says what to do.

    `ptrace_scope` is Yama's setting (Documentation/admin-guide/LSM/Yama.rst), None on kernels without it.
    """
    name = named(target)
    if _NO_PERMISSION.search(stderr):
        yama = f" (kernel.yama.ptrace_scope is {ptrace_scope})" if ptrace_scope else ""
        remedy = "`sudo sysctl -w kernel.yama.ptrace_scope=0`, or " if ptrace_scope and ptrace_scope < 3 else ""
        return (
            f"{name} may not be read{yama}: run {remedy}`sudo {py_spy} dump --nonblocking --pid {target.pid}`; "
            "in a container start it with `--cap-add SYS_PTRACE`."
        )
    if unknown := _UNKNOWN_PYTHON.search(stderr):
        return f"{name} runs Python {unknown[1]}, which this py-spy does not know: `pip install --upgrade py-spy`."
    if _NO_PYTHON.search(stderr):
        return f"{name} is not a Python process: it has no Python stacks."
    if _GONE.search(stderr):
        return f"{name} has ended."
    if _MOVED in stderr:
        return f"{name} ran on while it was looked at, and is not paused: capture again."
    said = " ".join(stderr.partition("Stack backtrace:")[0].split())
    return f"py-spy cannot read {name}: {said or 'it does not say why'}"


def ptrace_scope() -> int | None:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return None


async def read_stacks(
    py_spy: str | None, target: ProcessRef, timeout_s: float, options: Sequence[str] = UNPAUSED
) -> bytes:
    """The stacks as JSON. Raises NoStacksError."""
    if py_spy is None:
        raise ObstacleError("py-spy is missing: `pip install py-spy` into the Python that runs this program.")
    try:
        deadline = asyncio.get_running_loop().time() + timeout_s
        for _ in range(ATTEMPTS):
            code, stdout, stderr = await _dump(py_spy, target.pid, deadline, options)
            if code == 0 or _MOVED not in stderr:
                break
    except TimeoutError:
        raise NoStacksError(silence(target, timeout_s)) from None
    except OSError as error:
        raise NoStacksError(f"The stacks of {named(target)} cannot be taken: {error}.") from error
    if code != 0:
        is_obstacle = _NO_PERMISSION.search(stderr) or _UNKNOWN_PYTHON.search(stderr)
        raise (ObstacleError if is_obstacle else NoStacksError)(explain(stderr, target, py_spy, ptrace_scope()))
    return stdout


async def _dump(py_spy: str, pid: int, deadline: float, options: Sequence[str]) -> tuple[int, bytes, str]:
    """Exit code, JSON and complaint. Never with --subprocesses: that drops children (py-spy 0.4.3)."""
    process = await asyncio.create_subprocess_exec(
        *(py_spy, "dump", *options, "--json", "--pid", str(pid)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout_at(deadline):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            await _kill(process)
    return process.returncode or 0, stdout, stderr.decode(errors="replace")


async def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(DIE_S):
            await process.wait()


def decode(printed: bytes, target: ProcessRef) -> list[PySpyThread]:
    """Raises NoStacksError where it is not what py-spy writes."""
    try:
        return _DECODER.decode(printed)
    except msgspec.DecodeError as error:
        raise NoStacksError(
            f"What py-spy wrote of {named(target)} is not understood: install py-spy 0.4. {error}"
        ) from error


def silence(target: ProcessRef, waited_s: float) -> str:
    return f"{named(target)} gave no stacks within {waited_s:g} s: see its state."


def named(target: ProcessRef) -> str:
    return f"{target.process} (pid {target.pid})"
