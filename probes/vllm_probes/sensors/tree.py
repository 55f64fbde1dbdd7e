"""The processes below one process, read from /proc: a walk down from it, never a look at the whole host.

Processes come and go while one looks: whatever has vanished is left out, and nothing here raises for it.
"""

import os
import re
from collections.abc import Iterable
from functools import cache

_ESCAPED_BYTE = re.compile(rb"\\([0-7]{3})")
_GONE_STATES = "ZXx"


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, parents before their children, zombies included.

    A child that ends during the walk can hide its next sibling from it (Linux, filesystems/proc, "children"): to be
    sure that nobody is left, look twice.
    """
    found: list[int] = []
    seen = {pid}
    children = _children if _kernel_lists_children() else _children_by_scan
    parents = [pid]
    while parents:
        # once, though an orphan can turn up below its old and its new parent
        young = dict.fromkeys(child for parent in parents for child in children(parent) if child not in seen)
        seen.update(young)
        found += young
        parents = list(young)
    return found


def is_running(pid: int) -> bool:
    """Whether any thread of the process still lives; a zombie is gone.

    A zombie leader with other threads is not: a killed worker whose thread is stuck in a driver looks like that.
    """
    return (state := state_letter(pid)) is not None and state not in _GONE_STATES


def state_letter(pid: int) -> str | None:
    """R S D T Z … as in /proc/PID/stat, None when there is no such process; of a dead leader's thread if one lives."""
    fields = _stat_fields(f"/proc/{pid}/stat")
    if not fields or fields[0] not in _GONE_STATES or fields[17] in ("0", "1"):
        return fields[0] if fields else None
    threads = (_stat_fields(f"/proc/{pid}/task/{thread}/stat") for thread in listing(f"/proc/{pid}/task"))
    return next((thread[0] for thread in threads if thread and thread[0] not in _GONE_STATES), "Z")


def start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since boot: with the pid it names one process for ever."""
    fields = _stat_fields(f"/proc/{pid}/stat")
    return int(fields[19]) if fields else None


def major_faults(pid: int) -> int:
    """How often it had to wait for a page from a disk or its like, all its threads together; 0 when it is gone."""
    fields = _stat_fields(f"/proc/{pid}/stat")
    return int(fields[9]) if fields else 0


def is_same(pid: int, ticks: int) -> bool:
    """Whether the process that began then still runs: one that got its pid later is another one."""
    return start_ticks(pid) == ticks and is_running(pid)


def process_group(pid: int) -> int | None:
    """The id of its process group, None when it is gone."""
    fields = _stat_fields(f"/proc/{pid}/stat")
    return int(fields[2]) if fields else None


def descends(pid: int, ancestor: int) -> bool:
    """Whether `ancestor` is above `pid`, by a walk up."""
    while pid > 1:
        pid = parent(pid)
        if pid == ancestor:
            return True
    return False


def command_line(pid: int) -> list[str]:
    """Its arguments, or its title in one piece where it has set one; empty for zombies and the vanished.

    Empty in state D, too: /proc/PID/cmdline waits for a lock that such a process may hold.
    """
    if state_letter(pid) == "D":
        return []
    text = read(f"/proc/{pid}/cmdline").rstrip(b"\0 ")
    return [os.fsdecode(part) for part in text.split(b"\0")] if text else []


def title(pid: int) -> str:
    """A name for people, as in the process table; the kernel's short one where there is no command line."""
    from vllm_probes.judges.titles import identify  # a launch reads this module before anybody needs names

    if own := command_line(pid):
        return identify(own, command_line(parent(pid))).process
    return os.fsdecode(read(f"/proc/{pid}/comm")).strip() or f"pid {pid}"


def shm_files(pids: Iterable[int]) -> set[str]:
    """The files under /dev/shm that these processes have mapped and that have not been deleted.

    A process in state D is left out: /proc/PID/maps would wait for its lock.
    """
    lines = (line for pid in pids if state_letter(pid) != "D" for line in read(f"/proc/{pid}/maps").splitlines())
    paths = {line[line.index(b"/dev/shm/") :] for line in lines if b" /dev/shm/" in line}
    return {os.fsdecode(_ESCAPED_BYTE.sub(_byte, path)) for path in paths if not path.endswith(b" (deleted)")}


def parent(pid: int) -> int:
    """The pid of its parent; 0 where it has none here, and when it is gone."""
    fields = _stat_fields(f"/proc/{pid}/stat")
    return int(fields[1]) if fields else 0


def _byte(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 8)])


@cache
def _kernel_lists_children() -> bool:
    return os.path.exists("/proc/thread-self/children")  # only with CONFIG_PROC_CHILDREN


def _children(pid: int) -> list[int]:
    """Children hang on the thread that made them."""
    threads = listing(f"/proc/{pid}/task")
    return [int(child) for thread in threads for child in read(f"/proc/{pid}/task/{thread}/children").split()]


def _children_by_scan(pid: int) -> list[int]:
    import psutil  # slow to import, and hardly any kernel needs it

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def _stat_fields(path: str) -> list[str]:
    """Field 3 and following of a `stat` file: the name before them may hold blanks and brackets."""
    return read(path).rpartition(b")")[2].decode().split()


def read(path: str) -> bytes:
    """The whole file, b"" when it is gone. Twice as fast as `open`: a walk reads one file for every thread."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return b"".join(iter(lambda: os.read(descriptor, 65536), b""))
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def listing(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
