"""Stacks of running processes, by py-spy, without stopping them, and what the kernel says of their threads."""

import asyncio
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from vllm_probes.judges.frames import called_operator
from vllm_probes.rows import Frame, ProcessRef, ProcessRow, StackFile, ThreadStack
from vllm_probes.sensors.source_line import source_line
from vllm_probes.sensors.threads import ThreadFacts, facts, ids_inside, is_frozen, switch_count

MAX_THREADS = 24
INNER_FRAMES, OUTER_FRAMES = 28, 12
"""Both ends of a deep stack: the innermost calls tell what a thread waits in, the outermost what it is there for. They
become a part of a recording; the JSON file has everything."""
DUMPS_PER_CORE = 2
ATTEMPTS = 6
"""A stack that changes while it is read cannot be read: of a busy worker about one attempt in five (measured)."""
MORE_LOOKS, MORE_LOOKS_S = 5, 1.0
"""At whoever runs: the lines of a loop in Python change all the time, of a call of native code they do not."""
TURN_S = 1.0
"""How long a process waits for its turn: those that have one hang then, and nobody waits for them."""
DIE_S = 1.0
"""How long a killed py-spy may take to go. One that hangs in the kernel cannot be killed and is left behind."""
_UNSAFE = re.compile(r"[^\w.+-]")
_NO_PERMISSION = re.compile(r"permission denied|operation not permitted", re.IGNORECASE)
_NO_PYTHON = re.compile(r"find (?:a )?python (?:version|interpreter)", re.IGNORECASE)
_GONE = re.compile(r"No such (?:file or directory|process)|process is running")
_MOVED = "Failed to get stack traces"
_MADE_UP_NAME = re.compile(r"(?:Thread|Dummy)-\d+(?: \(.*\))?|(?:ThreadPoolExecutor-\d+|asyncio)_\d+", re.DOTALL)
"""What Python calls a thread that nobody named."""
_INSTALLED = re.compile(r"(?:.*/)?(?:site-packages|dist-packages|lib(?:64)?/python3\.\d+t?)/", re.DOTALL)
_SOURCES = re.compile(r"(?:.*/)?(?=(?:vllm|torch)/)", re.DOTALL)
"""Of a package that runs where it was checked out."""


class NoStacksError(Exception):
    """One way to the stacks of a process gave none: a sentence that says what is the matter and what to do."""


class _PySpyFrame(msgspec.Struct, frozen=True):
    name: str
    filename: str
    line: int = 0


class _PySpyThread(msgspec.Struct, frozen=True):
    """As py-spy 0.4 writes it, the innermost call first."""

    thread_id: int
    """Python's: an address, and so never an id of the kernel."""
    thread_name: str | None = None
    os_thread_id: int | None = None
    """As the process itself sees it. None for Python 3.10, where only a pause would tell."""
    active: bool | None = None
    frames: list[_PySpyFrame] = []


_DECODER = msgspec.json.Decoder(list[_PySpyThread])


async def capture(
    targets: Sequence[ProcessRef], folder: Path, *, timeout_s: float = 5.0, closely: bool = True
) -> list[StackFile]:
    """One sample of every process at the same time, each into a JSON file; also of a process that is stopped.

    `file` is the name inside `folder`, which is made where missing. A process that has no Python stacks, or does not
    give them within `timeout_s`, has an `error` instead: what is the matter and what to do.

    `threads` are those that tell something (see `join`), with what the kernel said of them right after the dump; where
    there are no stacks, that alone. A thread of Python 3.10 has Python's id and nothing of the kernel, but for the main
    thread.

    `closely`: threads that run are looked at again, which takes up to a second more on a busy host.
    """
    py_spy = find_py_spy()
    turns = asyncio.Semaphore(DUMPS_PER_CORE * len(os.sched_getaffinity(0)))
    return list(
        await asyncio.gather(
            *(_capture_one(target, folder, py_spy, turns, timeout_s, closely=closely) for target in targets)
        )
    )


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


def find_py_spy() -> str | None:
    """The py-spy that came with this program: beside its Python, among the user's own scripts, or on PATH."""
    user_scripts = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    folders = [os.path.dirname(sys.executable), sysconfig.get_path("scripts"), user_scripts, os.environ.get("PATH", "")]
    return shutil.which("py-spy", path=os.pathsep.join(folders))


def explain(stderr: str, target: ProcessRef, py_spy: str, ptrace_scope: int | None) -> str:
    """What py-spy's complaint about a process means, in one sentence that says what to do.

    `ptrace_scope` is Yama's setting (Documentation/admin-guide/LSM/Yama.rst), None on kernels without it.
    """
    name = _name(target)
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
    if _MOVED in stderr:
        return f"{name} ran on while it was looked at, and is not paused: capture again."
    said = " ".join(stderr.partition("Stack backtrace:")[0].split())
    return f"py-spy cannot read {name}: {said or 'it does not say why'}"


def ptrace_scope() -> int | None:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return None


async def _capture_one(
    target: ProcessRef,
    folder: Path,
    py_spy: str | None,
    turns: asyncio.Semaphore,
    timeout_s: float,
    *,
    closely: bool,
) -> StackFile:
    found = StackFile(pid=target.pid, process=target.process, frozen=is_frozen(target.pid))
    try:
        async with _turn(turns):
            printed = await _by_py_spy(py_spy, target, timeout_s)
            read = _decode(printed, target)
            kernel = facts(target.pid)
            python = _thread_stacks(read, target.pid)
            if closely:
                python = await _closer(read, python, kernel, target, py_spy)
    except NoStacksError as reason:
        return replace(found, error=str(reason), threads=_counted(target.pid, join(target.pid, [], facts(target.pid))))
    found = replace(found, threads=_counted(target.pid, join(target.pid, python, kernel)))
    try:
        return replace(found, file=_save(printed, folder, target))
    except OSError as error:
        return replace(found, error=f"The stacks of {_name(target)} cannot be written: {error}.")


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


async def _by_py_spy(py_spy: str | None, target: ProcessRef, timeout_s: float) -> bytes:
    """The stacks as JSON. Raises NoStacksError."""
    if py_spy is None:
        raise NoStacksError("py-spy is missing: `pip install py-spy` into the Python that runs this program.")
    try:
        deadline = asyncio.get_running_loop().time() + timeout_s
        for _ in range(ATTEMPTS):
            code, stdout, stderr = await _dump(py_spy, target.pid, deadline)
            if code == 0 or _MOVED not in stderr:
                break
    except TimeoutError:
        raise NoStacksError(f"{_name(target)} gave no stacks within {timeout_s:g} s: see its state.") from None
    except OSError as error:
        raise NoStacksError(f"The stacks of {_name(target)} cannot be taken: {error}.") from error
    if code != 0:
        raise NoStacksError(explain(stderr, target, py_spy, ptrace_scope()))
    return stdout


async def _dump(py_spy: str, pid: int, deadline: float) -> tuple[int, bytes, str]:
    """Exit code, JSON and complaint. Never with --subprocesses: that drops children (py-spy 0.4.3)."""
    process = await asyncio.create_subprocess_exec(
        *(py_spy, "dump", "--nonblocking", "--json", "--pid", str(pid)),
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


def _decode(printed: bytes, target: ProcessRef) -> list[_PySpyThread]:
    """Raises NoStacksError where it is not what py-spy writes."""
    try:
        return _DECODER.decode(printed)
    except msgspec.DecodeError as error:
        raise NoStacksError(
            f"What py-spy wrote of {_name(target)} is not understood: install py-spy 0.4. {error}"
        ) from error


def _thread_stacks(threads: Sequence[_PySpyThread], pid: int) -> list[ThreadStack]:
    inside = ids_inside(pid)
    return [_thread_stack(thread, pid, inside) for thread in threads]


def _thread_stack(thread: _PySpyThread, pid: int, inside: Mapping[int, int]) -> ThreadStack:
    if thread.os_thread_id is not None:
        thread_id = inside.get(thread.os_thread_id, thread.os_thread_id)
    else:
        thread_id = pid if thread.thread_name == "MainThread" else thread.thread_id
    frames = [
        Frame(function=frame.name.rpartition(".")[2], file=shorten(frame.filename), line=frame.line)
        for frame in (*thread.frames[:INNER_FRAMES], *thread.frames[INNER_FRAMES:][-OUTER_FRAMES:])
    ]
    return ThreadStack(thread_id=thread_id, name=thread.thread_name, frames=frames, active=thread.active)


async def _closer(
    read: Sequence[_PySpyThread],
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


async def _moved(read: Sequence[_PySpyThread], target: ProcessRef, py_spy: str | None) -> set[int] | None:
    """Threads (Python's ids) whose innermost call is at another line a moment later; None: nobody could look again."""
    leaves = {thread.thread_id: thread.frames[:1] for thread in read}
    moved: set[int] | None = None
    for _ in range(MORE_LOOKS):
        with suppress(NoStacksError):
            again = _decode(await _by_py_spy(py_spy, target, MORE_LOOKS_S), target)
            new = {one.thread_id for one in again if leaves.get(one.thread_id, one.frames[:1]) != one.frames[:1]}
            moved = new | (moved or set())
    return moved


def _in_operator(stack: ThreadStack) -> bool:
    return bool(stack.frames[1:]) and stack.frames[0].file == "torch/_ops.py"


async def _with_operator(thread: _PySpyThread, stack: ThreadStack, pid: int) -> ThreadStack:
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


def _name(target: ProcessRef) -> str:
    return f"{target.process} (pid {target.pid})"
