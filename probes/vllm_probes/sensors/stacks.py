"""Stacks of running processes without stopping them: by py-spy, else from the process itself, which is asked for them,
and always what the kernel says of the threads."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from vllm_probes.judges.frame_names import called_operator
from vllm_probes.rows import Frame, ProcessRef, ProcessRow, StackFile, ThreadStack
from vllm_probes.sensors.dumps import Call, DumpError, dump
from vllm_probes.sensors.py_spy import (
    NoStacksError,
    PySpyFrame,
    PySpyThread,
    decode,
    find_py_spy,
    named,
    read_stacks,
    silence,
)
from vllm_probes.sensors.source_line import source_line
from vllm_probes.sensors.threads import ThreadFacts, facts, ids_inside, is_frozen, switch_count

MAX_THREADS = 24
INNER_FRAMES, OUTER_FRAMES = 28, 12
"""Both ends of a deep stack: the innermost calls tell what a thread waits in, the outermost what it is there for. They
become a part of a recording; the JSON file has everything."""
DUMPS_PER_CORE = 2
MORE_LOOKS, MORE_LOOKS_S = 5, 0.5
"""At whoever runs: the lines of a loop in Python change all the time, of a call of native code they do not."""
ASK_S = 2.0
TURN_S = 1.0
"""How long a process waits for its turn: those that have one hang then, and nobody waits for them."""
_UNSAFE = re.compile(r"[^\w.+-]")
_MADE_UP_NAME = re.compile(r"(?:Thread|Dummy)-\d+(?: \(.*\))?|(?:ThreadPoolExecutor-\d+|asyncio)_\d+", re.DOTALL)
"""What Python calls a thread that nobody named."""
_INSTALLED = re.compile(r"(?:.*/)?(?:site-packages|dist-packages|lib(?:64)?/python3\.\d+t?)/", re.DOTALL)
_SOURCES = re.compile(r"(?:.*/)?(?=(?:vllm|torch)/)", re.DOTALL)
"""Of a package that runs where it was checked out."""


async def capture(
    targets: Sequence[ProcessRef],
    folder: Path,
    *,
    timeout_s: float = 5.0,
    own_pids: Collection[int] = (),
    closely: bool = True,
) -> list[StackFile]:
    """One sample of every process at the same time, each into a JSON file; also of a process that is stopped.

    `file` is the name inside `folder`, which is made where missing. A process that has no Python stacks, or does not
    give them within `timeout_s`, has an `error` instead: what is the matter and what to do. What py-spy cannot read is
    asked for its stacks by a signal (`dumps`) if it is one of `own_pids`, which this user has started. After twice
    `timeout_s` nobody is waited for: not for a py-spy in state D, which no signal ends, either.

    `threads` are those that tell something (see `join`), with what the kernel said of them right after the dump (before
    it, where they were asked); where there are no stacks, that alone. A thread of Python 3.10 has Python's id and
    nothing of the kernel, but for the main thread.

    `closely`: threads that run are looked at again, which takes up to a second more on a busy host.
    """
    py_spy = find_py_spy()
    turns = asyncio.Semaphore(DUMPS_PER_CORE * len(os.sched_getaffinity(0)))
    looks = {
        target: asyncio.ensure_future(
            _capture_one(target, folder, py_spy, turns, timeout_s, may_ask=target.pid in own_pids, closely=closely)
        )
        for target in targets
    }
    return await _within(2 * timeout_s, looks)


def targets(rows: Iterable[ProcessRow]) -> list[ProcessRef]:
    """The processes of a run whose stacks tell anything."""
    return [
        ProcessRef(pid=row.pid, process=row.process, state=row.state) for row in rows if row.role != "resource_tracker"
    ]


def join(pid: int, python: Sequence[ThreadStack], kernel: Mapping[int, ThreadFacts]) -> list[ThreadStack]:
    """At most MAX_THREADS threads of a process, each with its calls and what the kernel says of it, in this order: the
    main thread, those that the program has named, others with Python calls, others in state D.

    Any other that only the kernel knows (pools of OpenMP, gloo, NCCL) is left out. State D is not: a killed process
    whose thread is stuck in a driver shows nothing else. A thread that has ended since the dump keeps its calls.
    """
    ids = {thread.thread_id for thread in python}
    native = (ThreadStack(thread_id=thread_id) for thread_id in kernel if thread_id not in ids)
    everybody = (_with_facts(thread, kernel.get(thread.thread_id)) for thread in (*python, *native))
    ranked = [(rank, thread) for thread in everybody if (rank := _rank(pid, thread)) is not None]
    return [thread for _, thread in sorted(ranked, key=lambda pair: (pair[0], pair[1].thread_id))][:MAX_THREADS]


def shorten(file: str) -> str:
    """A source file from its package's own folder on; the last three parts where that is not known."""
    above = _INSTALLED.match(file) or _SOURCES.match(file)
    return file[above.end() :] if above else "/".join(file.split("/")[-3:])


async def _within(limit_s: float, looks: Mapping[ProcessRef, "asyncio.Task[StackFile]"]) -> list[StackFile]:
    """What they have found by then; of the others what the kernel says."""
    try:
        if looks:
            await asyncio.wait(looks.values(), timeout=limit_s)
        return [look.result() if look.done() else _too_late(target, limit_s) for target, look in looks.items()]
    finally:
        for look in looks.values():
            look.cancel()


def _too_late(target: ProcessRef, limit_s: float) -> StackFile:
    found = StackFile(pid=target.pid, process=target.process, frozen=is_frozen(target.pid))
    return _by_kernel(found, silence(target, limit_s), facts(target.pid))


def _by_kernel(found: StackFile, reason: str, kernel: Mapping[int, ThreadFacts]) -> StackFile:
    return replace(found, rung="proc", error=reason, threads=_counted(found.pid, join(found.pid, [], kernel)))


async def _capture_one(
    target: ProcessRef,
    folder: Path,
    py_spy: str | None,
    turns: asyncio.Semaphore,
    timeout_s: float,
    *,
    may_ask: bool,
    closely: bool,
) -> StackFile:
    found = StackFile(pid=target.pid, process=target.process, frozen=is_frozen(target.pid))
    try:
        async with _turn(turns):
            printed = await read_stacks(py_spy, target, timeout_s)
            read = decode(printed, target)
            kernel = facts(target.pid, reads_memory=True)
            python = _thread_stacks(read, target.pid)
            if closely:
                python = await _closer(read, python, kernel, target, py_spy)
            found = replace(found, threads=_counted(target.pid, join(target.pid, python, kernel)))
    except NoStacksError as reason:
        ask_s = min(timeout_s, ASK_S) if may_ask else 0
        found, printed = await _without_py_spy(found, str(reason), ask_s)
    try:
        return replace(found, file=_save(printed, folder, target)) if printed else found
    except OSError as error:
        return replace(found, error=f"The stacks of {named(target)} cannot be written: {error}.")


async def _without_py_spy(found: StackFile, reason: str, ask_s: float) -> tuple[StackFile, bytes]:
    """By the rungs below: what it tells of itself, also as JSON; else what the kernel says of it, and no JSON.

    `ask_s`: for how long it may be asked; 0: it may not.
    """
    pid, asked = found.pid, {}
    kernel = facts(pid)  # before it is asked: who answers runs, and has been off a CPU once more
    try:
        asked = await dump(pid, timeout_s=ask_s) if ask_s else {}
    except DumpError as why:
        reason = f"{reason} Nor can it be asked for them: {why}."
    if not asked:
        return _by_kernel(found, reason, kernel), b""
    inside = {outside: id_inside for id_inside, outside in ids_inside(pid).items()}
    threads = [_told(thread, calls, pid, inside) for thread, calls in asked.items()]
    joined = join(pid, _thread_stacks(threads, pid), kernel)
    return replace(found, rung="faulthandler", threads=joined), msgspec.json.encode(threads)


def _told(thread: int, calls: Sequence[Call], pid: int, inside: Mapping[int, int]) -> PySpyThread:
    """What a thread at rest has told of itself, as py-spy would have written it."""
    return PySpyThread(
        thread_id=thread,
        thread_name="MainThread" if thread == pid else None,
        os_thread_id=inside.get(thread, thread),
        active=False,
        frames=[PySpyFrame(call.function, call.file, shorten(call.file), call.line) for call in calls],
    )


@asynccontextmanager
async def _turn(turns: asyncio.Semaphore) -> AsyncIterator[None]:
    has_one = False
    with suppress(TimeoutError):
        async with asyncio.timeout(TURN_S):
            has_one = await turns.acquire()
    try:
        yield
    finally:
        if has_one:
            turns.release()


def _thread_stacks(threads: Sequence[PySpyThread], pid: int) -> list[ThreadStack]:
    inside = ids_inside(pid)
    return [_thread_stack(thread, pid, inside) for thread in threads]


def _thread_stack(thread: PySpyThread, pid: int, inside: Mapping[int, int]) -> ThreadStack:
    if thread.os_thread_id is not None:
        thread_id = inside.get(thread.os_thread_id, thread.os_thread_id)
    else:
        thread_id = pid if thread.thread_name == "MainThread" else thread.thread_id
    frames = [
        Frame(function=frame.name.rpartition(".")[2], file=shorten(frame.filename), line=frame.line)
        for frame in (*thread.frames[:INNER_FRAMES], *thread.frames[INNER_FRAMES:][-OUTER_FRAMES:])
    ]
    return ThreadStack(
        thread_id=thread_id,
        name=thread.thread_name,
        frames=frames,
        active=thread.active,
        owns_gil=thread.owns_gil,
    )


async def _closer(
    read: Sequence[PySpyThread],
    stacks: Sequence[ThreadStack],
    kernel: Mapping[int, ThreadFacts],
    target: ProcessRef,
    py_spy: str | None,
) -> list[ThreadStack]:
    """The same stacks, with what one dump does not tell: whether whoever runs moves, and which operator is called."""
    runs = [stack.thread_id in kernel and kernel[stack.thread_id].state == "R" for stack in stacks]
    moved: set[int] | None = None
    if any(is_running and not _in_operator(stack) for stack, is_running in zip(stacks, runs, strict=True)):
        moved = await _moved(read, target, py_spy)
    found = []
    for thread, stack, is_running in zip(read, stacks, runs, strict=True):
        if _in_operator(stack):
            found.append(await _with_operator(thread, stack, target.pid))
        elif is_running and thread.frames:
            source = await source_line(target.pid, thread.frames[0].filename, thread.frames[0].line)
            moves = None if moved is None else thread.thread_id in moved
            found.append(replace(stack, moves=moves, source=source))
        else:
            found.append(stack)
    return found


async def _moved(read: Sequence[PySpyThread], target: ProcessRef, py_spy: str | None) -> set[int] | None:
    """Threads (Python's ids) whose innermost call is at another line a moment later; None: nobody could look again."""
    leaves = {thread.thread_id: thread.frames[:1] for thread in read}
    moved: set[int] | None = None
    clock = asyncio.get_running_loop().time
    end = clock() + MORE_LOOKS_S
    for _ in range(MORE_LOOKS):
        if moved or clock() >= end:
            break
        with suppress(NoStacksError):
            again = decode(await read_stacks(py_spy, target, end - clock()), target)
            moved = {one.thread_id for one in again if leaves.get(one.thread_id, one.frames[:1]) != one.frames[:1]}
    return moved


def _in_operator(stack: ThreadStack) -> bool:
    return bool(stack.frames[1:]) and stack.frames[0].file == "torch/_ops.py"


async def _with_operator(thread: PySpyThread, stack: ThreadStack, pid: int) -> ThreadStack:
    """A compiled model calls operators by name: only the line of its source tells which one this is."""
    source = await source_line(pid, thread.frames[1].filename, thread.frames[1].line)
    operator = called_operator(source or "")
    return replace(stack, frames=[operator, *stack.frames]) if operator else stack


def _with_facts(thread: ThreadStack, kernel: ThreadFacts | None) -> ThreadStack:
    return replace(thread, **kernel._asdict()) if kernel else thread


def _counted(pid: int, threads: Iterable[ThreadStack]) -> list[ThreadStack]:
    return [replace(thread, switch_count=switch_count(pid, thread.thread_id)) for thread in threads]


def _rank(pid: int, thread: ThreadStack) -> int | None:
    """How much it tells, the lower the more; None: nothing."""
    tells = (
        thread.thread_id == pid,
        thread.name is not None and not _MADE_UP_NAME.fullmatch(thread.name),
        bool(thread.frames),
        thread.state == "D",
    )
    return tells.index(True) if any(tells) else None


def _save(printed: bytes, folder: Path, target: ProcessRef) -> str:
    """The name of the file. Raises OSError."""
    file = f"{target.pid}-{_UNSAFE.sub('_', target.process)[:80]}.json"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / file).write_bytes(printed)
    return file
