"""What the control groups (cgroups) of a process allow it: memory, CPU, and how often the kernel killed for memory.

Version 1 has a tree of groups for each controller, version 2 one for all, and a host can have some of each. A limit on
any group above counts as well, so each look walks up from the process's own group to the root of what is mounted. In a
container that is usually the container's own group: what limits it from further above cannot be seen.

Sources: cgroups(7), proc_pid_mountinfo(5), and the kernel's admin-guide/cgroup-v1/memory.rst, admin-guide/cgroup-v2.rst
and scheduler/sched-bwc.rst.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_UNLIMITED_BYTES = 1 << 62
"""Version 1 says "no limit" with the largest number of pages that fits."""


class Mount(NamedTuple):
    """A line of /proc/PID/mountinfo."""

    root: str
    """What of the file system is mounted."""
    point: Path
    kind: str
    options: frozenset[str]
    """Of the file system: version 1 names the controllers there."""


class Group(NamedTuple):
    """Where the files of one controller are: the process's own group first, then each one above it."""

    folders: Sequence[Path]
    is_v2: bool


class CgroupSample(NamedTuple):
    """None: there is no such limit, or this host does not tell."""

    memory_bytes: int | None
    """Of the group with the lowest limit, or of the process's own: without file pages, which the kernel takes back
    before it kills anybody. Loading a model fills every limit with them."""
    memory_limit_bytes: int | None
    oom_kill_count: int | None
    """Processes of the group killed because the group or the host ran out of memory."""
    cpu_limit: float | None
    """Cores."""
    throttled_s: float | None
    """A counter, of the group with the lowest CPU limit: periods in which some of it had to wait for the next one. Not
    the kernel's own `throttled` time, which adds up over cores and so is no share of the time that passes."""


class Cgroup:
    """The groups of one process, which are looked up once."""

    def __init__(self, process: Path = Path("/proc/self"), viewer: Path | None = None) -> None:
        """`process` is its folder under /proc, `viewer` that of whoever reads the files: it may be in a container."""
        own, mountinfo = text_of(process / "cgroup"), mounts(text_of((viewer or process) / "mountinfo"))
        self._memory = group("memory", own, mountinfo)
        self._cpu = group("cpu", own, mountinfo)

    def sample(self) -> CgroupSample:
        """Limits and use as they are now. Nothing is raised for files that are not there."""
        memory = _memory(self._memory) if self._memory else (None, None, None)
        cpu = _cpu(self._cpu) if self._cpu else (None, None)
        return CgroupSample(*memory, *cpu)


def mounts(mountinfo: str) -> list[Mount]:
    """The lines of /proc/PID/mountinfo; where there are several for one point, the last is what one sees."""
    found = []
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        _, _, _, root, point, *_ = mount.split(" ")
        kind, _, options = source.split(" ", 2)
        found.append(Mount(_plain(root), Path(_plain(point)), kind, frozenset(options.split(","))))
    return found


def group(controller: str, own: str, mounted: Sequence[Mount]) -> Group | None:
    """Where the files of `memory` or `cpu` are for a process, from the text of its /proc/PID/cgroup.

    None where this controller is not mounted.
    """
    paths = {names: path for _, names, path in (line.split(":", 2) for line in own.splitlines())}
    path = next((path for names, path in paths.items() if controller in names.split(",")), None)
    trees = [mount for mount in mounted if mount.kind == "cgroup" and controller in mount.options]
    is_v2 = path is None or not trees
    if is_v2:
        path, trees = paths.get(""), [mount for mount in mounted if mount.kind == "cgroup2"]
    if path is None or not trees:
        return None
    return Group(_folders(path, next((tree for tree in trees if _is_below(path, tree.root)), trees[0])), is_v2)


def text_of(path: Path) -> str:
    """The text of a file of /proc or /sys; "" where it is not there or cannot be read."""
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _plain(escaped: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), escaped)


def _is_below(path: str, root: str) -> bool:
    """`/..` begins the path of a group that lies outside of our cgroup namespace."""
    return ".." not in path.split("/") and PurePosixPath(path).is_relative_to(root)


def _folders(path: str, tree: Mount) -> list[Path]:
    """Only the top of the tree where it does not show our own group: it is the nearest group that can be seen."""
    if not _is_below(path, tree.root):
        return [tree.point]
    inner = PurePosixPath(path).relative_to(tree.root)
    return [tree.point / inner, *(tree.point / above for above in inner.parents)]


def _memory(group: Group) -> tuple[int | None, int | None, int | None]:
    """Used, limit, kills."""
    limits = [(limit, folder) for folder in group.folders if (limit := _limit_bytes(folder, group.is_v2)) is not None]
    limit, folder = min(limits, key=lambda pair: pair[0]) if limits else (None, group.folders[0])
    kills_file = "memory.events" if group.is_v2 else "memory.oom_control"
    kills = (_numbers(above / kills_file).get("oom_kill") for above in group.folders)
    return _used_bytes(folder, group.is_v2), limit, next((count for count in kills if count is not None), None)


def _limit_bytes(folder: Path, is_v2: bool) -> int | None:
    limit = _number(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes"))
    return limit if limit is not None and limit < _UNLIMITED_BYTES else None


def _used_bytes(folder: Path, is_v2: bool) -> int | None:
    used = _number(folder / ("memory.current" if is_v2 else "memory.usage_in_bytes"))
    if used is None:
        return None
    parts, prefix = _numbers(folder / "memory.stat"), "" if is_v2 else "total_"
    return max(used - parts.get(f"{prefix}active_file", 0) - parts.get(f"{prefix}inactive_file", 0), 0)


def _cpu(group: Group) -> tuple[float | None, float | None]:
    """Cores, and how long some of the group had to wait so far."""
    limits = [(*limit, folder) for folder in group.folders if (limit := _cpu_limit(folder, group.is_v2)) is not None]
    if not limits:
        return None, None
    cores, period_s, folder = min(limits, key=lambda limit: limit[0])
    throttled_count = _numbers(folder / "cpu.stat").get("nr_throttled")
    return cores, None if throttled_count is None else throttled_count * period_s


def _cpu_limit(folder: Path, is_v2: bool) -> tuple[float, float] | None:
    """Cores, and the seconds of the period after which a group may go on."""
    if is_v2:
        quota, _, period = text_of(folder / "cpu.max").strip().partition(" ")
    else:
        quota, period = (text_of(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if not quota.isdecimal() or not period.isdecimal():  # `max`, -1
        return None
    return int(quota) / int(period), int(period) / 1e6


def _number(path: Path) -> int | None:
    text = text_of(path).strip()
    return int(text) if text.isdecimal() else None


def _numbers(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text_of(path), re.MULTILINE)}
