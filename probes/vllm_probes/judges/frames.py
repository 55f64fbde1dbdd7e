"""What a thread does, from its stack: waiting for work, for peers, for the GPU, for a lock; compiling, loading …

The knowledge is `frames.toml`; the rule is here. Walking from the end of the stack to its root, the first frame decides
that an entry knows. An entry with `rests_on` says "it waits here", which is only believed when the whole end of the
stack bears it out: everything nearer to the end is a known way of waiting, and the call that the kernel sees the thread
in does not contradict. So a function that is merely called `all_reduce`, and sleeps or takes a lock, is no collective:
a collective ends in a call that hands over to native code (torch.distributed, NCCL, an operator of torch), and a rank
that waits there spins, or waits for a lock, a socket or the driver; it is never in a plain sleep, in a file, in a pipe
or in a wait for a child. What this cannot see: a fault in that very native call, which is what a rank looks like that
waits for its peers.
"""

import tomllib
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import msgspec

from vllm_probes.judges.frame_names import inside_package, last_name
from vllm_probes.judges.syscalls import wait_of
from vllm_probes.rows import Frame, Role, StackFile, ThreadStack

FrameClass = Literal[
    "idle",
    "startup_wait",
    "waiting_for_worker",
    "collective",
    "gpu_sync",
    "graph_capture",
    "compile",
    "disk",
    "network",
    "file_lock",
    "tokenising",
    "grammar",
    "scheduling",
    "torch_op",
    "lock",
    "running",
]
"""`torch_op`: inside an operator of torch, which computes, or waits for the GPU or for peers. `running`: nothing known;
the thread need not be on a CPU."""

_Entry = TypeVar("_Entry")
_OWN_FILE = Path(__file__).with_name("frames.toml")
_WEAK = frozenset(("lock", "poll", "torch_op", "glue"))
_FOR_OTHERS = frozenset(("collective", "gpu_sync"))


class FrameError(ValueError):
    """A file of frames is not as it must be; the message names file and entry."""


class FrameEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of call; the keys are explained in `frames.toml`."""

    id: str
    class_: FrameClass | Literal["poll", "glue"] = msgspec.field(name="class")
    file: str | list[str]
    functions: list[str]
    rests_on: list[Literal["itself", "lock", "poll", "torch_op", "collective", "gpu_sync"]] = []
    sleeps: bool = False
    spins: bool = False
    operation: str | None = None
    why: str
    versions: str
    samples: list[str]
    not_samples: list[str]


class LoopEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function by which a thread of vLLM is known."""

    file: str | list[str]
    functions: list[str]
    main: bool = False
    role: Role | None = None


class Classified(NamedTuple):
    """What a thread does. `frame` is the one that decided it; None: nothing on the stack is known."""

    class_: FrameClass
    frame: Frame | None = None
    why: str | None = None
    operation: str | None = None
    """Of a collective: `all_reduce`, `all_gather`, `init_process_group` …"""
    site: Frame | None = None
    """Of a collective: the outermost frame of the communicator, which tells one all-reduce from another."""
    rules: tuple[str, ...] = ()
    """Ids of the entries that had a part in it, innermost first."""


class FrameTable:
    """Entries in the order of their files; the first that fits a frame wins."""

    def __init__(self, entries: Iterable[FrameEntry], loops: Iterable[LoopEntry], machine: str = "x86_64") -> None:
        """`machine`, in the words of `uname -m`, says what the numbers of system calls mean."""
        self.entries = list(entries)
        self._loops = list(loops)
        self.machine = machine
        self._entries_of = lru_cache(maxsize=8192)(self._find_entries)

    def classify(self, thread: ThreadStack) -> Classified:
        """What one thread does."""
        walk = _Walk()
        for at, frame in enumerate(thread.frames):
            entry = self._fitting(thread, at, walk.support)
            if walk.take(entry, frame):
                break
        return walk.result()

    def is_loop(self, frame: Frame, *, main: bool, role: Role | None = None) -> bool:
        """Whether the frame is a loop that gives its thread a place in vLLM; with `main`, that of the main thread."""
        loops = (loop for loop in self._loops if (loop.main or not main) and loop.role in (None, role))
        return any(_knows(loop, frame) for loop in loops)

    def _fitting(self, thread: ThreadStack, at: int, support: str) -> FrameEntry | None:
        frame = thread.frames[at]
        is_locked = at == 0 and thread.state != "R" and wait_of(thread, self.machine) == "lock"
        for entry in self._entries_of(frame.file, frame.function):
            if entry.spins and is_locked:
                is_fitting = False
            elif entry.rests_on:
                is_fitting = support in entry.rests_on and self._is_believed(entry, support, thread)
            else:
                is_fitting = bool(entry.functions) or not _is_imported(entry, thread.frames[at:])
            if is_fitting:
                return entry
        return None

    def _is_believed(self, entry: FrameEntry, support: str, thread: ThreadStack) -> bool:
        """Whether what the kernel says of the thread allows that it waits in this frame."""
        if thread.state == "R" and thread.moves and support == "itself":
            return False  # native code stands where it was called
        if thread.state == "R":
            return entry.class_ != "idle" or support != "itself"
        wait = wait_of(thread, self.machine)
        if wait == "sleep":
            return entry.sleeps
        if wait == "file":
            kind = (thread.descriptor or "").partition(":")[0]
            return kind in ("", "socket", "anon_inode") or (kind == "pipe" and entry.class_ not in _FOR_OTHERS)
        return wait not in ("child", "file_lock", "open")

    def _find_entries(self, file: str, function: str) -> tuple[FrameEntry, ...]:
        frame = Frame(function=function, file=file)
        return tuple(entry for entry in self.entries if _knows(entry, frame))


class _Walk:
    """The state of one way from the end of a stack to its root."""

    def __init__(self) -> None:
        self.support = "itself"
        """What the next frame would rest on."""
        self._way: tuple[FrameEntry, Frame] | None = None
        self._decided: list[tuple[FrameEntry, Frame]] = []
        self._rules: list[str] = []

    def take(self, entry: FrameEntry | None, frame: Frame) -> bool:
        """One frame with the entry that fits it; True: the rest of the stack cannot change anything."""
        if entry is None:
            self.support = "unknown"
            return bool(self._decided)
        is_weak = entry.class_ in _WEAK
        if not is_weak and self._decided and entry.class_ not in _FOR_OTHERS:
            return True
        if not (is_weak and self.support == "unknown"):
            self._rules.append(entry.id)
        if not is_weak:
            self._decided.append((entry, frame))
            self.support = entry.class_
        elif self.support == "itself" and entry.class_ != "glue":
            self.support, self._way = entry.class_, (entry, frame)
        return not is_weak and entry.class_ not in _FOR_OTHERS

    def result(self) -> Classified:
        rules = tuple(dict.fromkeys(self._rules))
        if not self._decided:
            return self._fallback(rules)
        entry, frame = next((one for one in self._decided if one[0].class_ == "collective"), self._decided[0])
        is_collective = entry.class_ == "collective"
        return Classified(
            cast(FrameClass, entry.class_),  # weak entries are never among them
            frame,
            entry.why,
            operation=(entry.operation or last_name(frame.function)) if is_collective else None,
            site=self._decided[-1][1] if is_collective else None,
            rules=rules,
        )

    def _fallback(self, rules: tuple[str, ...]) -> Classified:
        """Nothing but a way of waiting is known; what is polled for could be anything."""
        if self._way is None or self._way[0].class_ == "poll":
            return Classified("running", rules=rules)
        entry, frame = self._way
        return Classified(cast(FrameClass, entry.class_), frame, entry.why, rules=rules)


# --- threads of a process ---------------------------------------------------------------------------------------------


def main_thread(table: FrameTable, process: StackFile) -> ThreadStack | None:
    """The thread that does what the process is there for.

    It runs one of vLLM's main loops, in whatever thread (under Ray it is not the first one); else it is the one that
    the kernel calls the process, else `MainThread`, else the first. None: there are no stacks.
    """
    looks = (
        lambda thread: any(table.is_loop(frame, main=True) for frame in thread.frames),
        lambda thread: thread.thread_id == process.pid,
        lambda thread: thread.name == "MainThread",
        lambda thread: True,
    )
    return next((thread for look in looks for thread in process.threads if look(thread)), None)


def threads_that_matter(
    table: FrameTable, process: StackFile, role: Role | None = None
) -> list[tuple[ThreadStack, Classified]]:
    """The main thread first, then those with a place in vLLM, then whoever may hold up a main thread that waits.

    The main thread is held up by others of its process when it waits for a lock, be it Python's own. Those that only
    wait as well (idle, or for a lock) do not hold up anybody.
    """
    main = main_thread(table, process)
    if main is None:
        return []
    others = [(thread, table.classify(thread)) for thread in process.threads if thread is not main]
    known = [one for one in others if any(table.is_loop(frame, main=False, role=role) for frame in one[0].frames)]
    doing = table.classify(main)
    held = doing.class_ == "lock" or (doing.class_ == "running" and wait_of(main, table.machine) == "lock")
    holders = [one for one in others if held and one not in known and one[1].class_ not in ("idle", "lock")]
    return [(main, doing), *known, *holders]


# --- which entry knows a frame ----------------------------------------------------------------------------------------


def _knows(entry: FrameEntry | LoopEntry, frame: Frame) -> bool:
    function = last_name(frame.function)
    return (function in entry.functions or not entry.functions) and _is_file_of(entry, frame)


def _is_imported(entry: FrameEntry, frames: Iterable[Frame]) -> bool:
    """Whether the innermost frame only serves the import of the files of an entry: their `<module>` called it."""
    own = takewhile(lambda frame: _is_file_of(entry, frame), frames)
    return any(frame.function == "<module>" for frame in own)


def _is_file_of(entry: FrameEntry | LoopEntry, frame: Frame) -> bool:
    file = inside_package(frame.file)
    return any(_is_in(file, wanted) for wanted in ([entry.file] if isinstance(entry.file, str) else entry.file))


def _is_in(file: str, wanted: str) -> bool:
    """Of a file that is not installed but run from its sources there may be the last three parts alone."""
    if wanted.endswith("/"):
        return f"/{wanted}" in f"/{file}"
    is_longer = "/" in wanted and file.endswith(f"/{wanted}")
    return file == wanted or is_longer or (file.count("/") == 2 and wanted.endswith(f"/{file}"))


# --- reading ----------------------------------------------------------------------------------------------------------


def load_frames(*files: Path, machine: str = "x86_64") -> FrameTable:
    """The entries that come with the program, after those of further files, which so can correct them.

    Raises:
        FrameError: a file is no TOML, an entry lacks a key or has one too many, or two have one id.
        OSError: a file cannot be read.
    """
    entries: dict[str, FrameEntry] = {}
    loops: list[LoopEntry] = []
    for file in (*files, _OWN_FILE):
        table = _read(file)
        loops += [_converted(file, entry, LoopEntry) for entry in table.pop("thread", [])]
        for entry in (_converted(file, one, FrameEntry) for one in table.pop("frame", [])):
            if entry.id in entries:
                raise FrameError(f"{file}: two frames have the id {entry.id!r}: give one of them another.")
            if not entry.samples:
                raise FrameError(f"{file}: frame {entry.id!r}: `samples` is empty: give a stack that it must know.")
            entries[entry.id] = entry
        if table:
            raise FrameError(f"{file}: only [[frame]] and [[thread]] entries may stand here, not {', '.join(table)}.")
    return FrameTable(entries.values(), loops, machine)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"{file}: {error}") from error


def _converted(file: Path, entry: Any, wanted: type[_Entry]) -> _Entry:
    try:
        return msgspec.convert(entry, wanted)
    except msgspec.ValidationError as error:
        name = entry.get("id") if isinstance(entry, dict) else None
        raise FrameError(f"{file}: {name or 'an entry'}: {error}") from error
