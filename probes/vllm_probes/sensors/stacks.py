"""Stacks of running processes, by py-spy, without stopping them."""

import asyncio
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vllm_probes.rows import ProcessRef, StackFile

DIE_S = 1.0
"""How long a killed py-spy may take to go. One that hangs in the kernel cannot be killed and is left behind."""
_UNSAFE = re.compile(r"[^\w.+-]")
_NO_PERMISSION = re.compile(r"permission denied|operation not permitted", re.IGNORECASE)
_NO_PYTHON = re.compile(r"find (?:a )?python (?:version|interpreter)", re.IGNORECASE)
_GONE = re.compile(r"No such (?:file or directory|process)|process is running")


async def capture(targets: Sequence[ProcessRef], folder: Path, *, timeout_s: float = 5.0) -> list[StackFile]:
    """One sample of every process at the same time, each into a JSON file; also of a process that is stopped.

    `file` is the name inside `folder`, which is made where missing. A process that has no Python stacks, or does not
    give them within `timeout_s`, has an `error` instead: what is the matter and what to do.
    """
    return list(await asyncio.gather(*(_capture_one(target, folder, timeout_s) for target in targets)))


def find_py_spy() -> str | None:
    """The py-spy that came with this program: beside its Python, among the user's own scripts, or on PATH."""
    user_scripts = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    folders = [os.path.dirname(sys.executable), sysconfig.get_path("scripts"), user_scripts, os.environ.get("PATH", "")]
    return shutil.which("py-spy", path=os.pathsep.join(folders))


def explain(stderr: str, target: ProcessRef, py_spy: str, ptrace_scope: int | None) -> str:
    """What py-spy's complaint about a process means, in one sentence that says what to do.

    `ptrace_scope` is Yama's setting (Documentation/admin-guide/LSM/Yama.rst), None on kernels without it.
    """
    name = f"{target.process} (pid {target.pid})"
    if _NO_PERMISSION.search(stderr):
        yama = f" (kernel.yama.ptrace_scope is {ptrace_scope})" if ptrace_scope else ""
        remedy = "`sudo sysctl -w kernel.yama.ptrace_scope=0`, or " if ptrace_scope and ptrace_scope < 3 else ""
        return (
            f"{name} may not be read{yama}: run {remedy}`sudo {py_spy} dump --nonblocking --pid {target.pid}`; "
            "in a container start it with `--cap-add SYS_PTRACE`."
        )
    if _NO_PYTHON.search(stderr):
        return f"{name} is not a Python process: it has no Python stacks."
    if _GONE.search(stderr):
        return f"{name} has ended."
    said = " ".join(stderr.partition("Stack backtrace:")[0].split())
    return f"py-spy cannot read {name}: {said or 'it does not say why'}"


async def _capture_one(target: ProcessRef, folder: Path, timeout_s: float) -> StackFile:
    def failed(error: str) -> StackFile:
        return StackFile(pid=target.pid, process=target.process, error=error)

    py_spy = find_py_spy()
    if py_spy is None:
        return failed("py-spy is missing: `pip install py-spy` into the Python that runs this program.")
    file = f"{target.pid}-{_UNSAFE.sub('_', target.process)[:80]}.json"
    try:
        code, stdout, stderr = await _dump(py_spy, target.pid, timeout_s)
        if code != 0:
            return failed(explain(stderr, target, py_spy, ptrace_scope()))
        _save(folder / file, stdout)
    except TimeoutError:
        return failed(f"{target.process} (pid {target.pid}) gave no stacks within {timeout_s:g} s: see its state.")
    except OSError as error:
        return failed(f"The stacks of {target.process} (pid {target.pid}) cannot be taken or written: {error}.")
    return StackFile(pid=target.pid, process=target.process, file=file)


async def _dump(py_spy: str, pid: int, timeout_s: float) -> tuple[int, bytes, str]:
    """Exit code, JSON and complaint. Never with --subprocesses: that drops children (py-spy 0.4.3)."""
    process = await asyncio.create_subprocess_exec(
        *(py_spy, "dump", "--nonblocking", "--json", "--pid", str(pid)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
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


def _save(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(content)


def ptrace_scope() -> int | None:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return None
