"""Stacks with native frames or local variables, for who asks for them: the only look that may pause a process.

py-spy 0.4.3 takes native frames only of what it has paused ("Can't get native stack traces with the --nonblocking
option"), by ptrace(2). It cannot pause what is stopped, and what waits inside the kernel (D) would get its SIGSTOP when
py-spy is gone: neither is tried.
"""

import asyncio
import os
from collections.abc import Sequence

import msgspec

from vllm_probes.launch.redact import redact_value
from vllm_probes.rows import Frame, ProcessRef, StackFile, ThreadStack
from vllm_probes.sensors import tree
from vllm_probes.sensors.py_spy import NoStacksError, PySpyFrame, PySpyThread, decode, find_py_spy, named, read_stacks
from vllm_probes.sensors.stacks import shorten
from vllm_probes.sensors.threads import facts

NATIVE_S, PYTHON_S = 60.0, 5.0
"""For native frames py-spy reads the symbols of every library: 1.1 s with PyTorch for the CPU on a slow core, half of
it in the pause (measured); libraries for GPUs are many times as large."""


class Call(msgspec.Struct, frozen=True):
    """One frame, of Python or of a library."""

    function: str
    file: str
    line: int
    """0: of a library."""
    variables: dict[str, str]
    """What py-spy prints of each, shortened, without secrets."""


class CloseThread(msgspec.Struct, frozen=True):
    thread_id: int
    name: str | None
    calls: list[Call]
    """Innermost first."""


class CloseStack(msgspec.Struct, frozen=True):
    """One process, its main thread first."""

    process: str
    pid: int
    threads: list[CloseThread]
    error: str | None
    """Why there is less than was asked for: a sentence."""


async def look_closely(targets: Sequence[ProcessRef], *, native: bool, variables: bool) -> list[CloseStack]:
    """Everybody once; with `native` each is paused while it is read."""
    py_spy = find_py_spy()
    turns = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def look(target: ProcessRef) -> CloseStack:
        async with turns:
            return await _look_at(target, py_spy, native=native, variables=variables)

    return list(await asyncio.gather(*map(look, targets)))


def as_stack(close: CloseStack) -> StackFile:
    """The same without variables, to be merged."""
    threads = [
        ThreadStack(
            thread_id=thread.thread_id,
            name=thread.name,
            frames=[Frame(function=call.function, file=call.file, line=call.line) for call in thread.calls],
        )
        for thread in close.threads
    ]
    return StackFile(pid=close.pid, process=close.process, threads=threads)


async def _look_at(target: ProcessRef, py_spy: str | None, *, native: bool, variables: bool) -> CloseStack:
    """With native frames, else without them and why."""
    error = _hindrance(target) if native else None
    if native and error is None:
        try:
            return await _read(target, py_spy, "--native", NATIVE_S, variables, None)
        except NoStacksError as reason:
            error = f"No native frames: {reason}{_left_stopped(target.pid)}"
    try:
        return await _read(target, py_spy, "--nonblocking", PYTHON_S, variables, error)
    except NoStacksError as reason:
        return CloseStack(target.process, target.pid, [], error or str(reason))


async def _read(
    target: ProcessRef, py_spy: str | None, how: str, timeout_s: float, variables: bool, error: str | None
) -> CloseStack:
    printed = await read_stacks(py_spy, target, timeout_s, [how, *(["--locals"] if variables else [])])
    threads = [_thread(thread) for thread in decode(printed, target)]
    main_first = sorted(threads, key=lambda one: one.name != "MainThread" and one.thread_id != target.pid)
    return CloseStack(target.process, target.pid, main_first, error)


def _hindrance(target: ProcessRef) -> str | None:
    held = sorted({one.state for one in facts(target.pid).values()} & {"D", "T", "t"})
    return f"No native frames: {named(target)} is in state {held[0]} and cannot be paused." if held else None


def _left_stopped(pid: int) -> str:
    """A py-spy that had to be killed may leave it so."""
    return f" It was left stopped: `kill -CONT {pid}` lets it go on." if tree.state_letter(pid) == "T" else ""


def _thread(read: PySpyThread) -> CloseThread:
    return CloseThread(read.os_thread_id or read.thread_id, read.thread_name, list(map(_call, read.frames)))


def _call(frame: PySpyFrame) -> Call:
    """Of Python by its last name and place, as everywhere; of a library whole, by the name of its file."""
    variables = {one.name: redact_value(one.name, one.repr or "?") for one in frame.locals or ()}
    if frame.module is not None:
        return Call(frame.name, os.path.basename(frame.filename), 0, variables)
    return Call(frame.name.rpartition(".")[2], shorten(frame.filename), frame.line, variables)
