"""The host: what it has, what is in use, and what waits; and the limits that this run has on it.

Sources: proc(5) and its parts, Linux' accounting/psi.rst and admin-guide/cgroup-v2.rst.
"""

import os
import re
import resource
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import psutil

from vllm_probes.events import HostSampled, Stamp
from vllm_probes.sensors.cgroup import Cgroup, mounts, text_of
from vllm_probes.sensors.disk import NETWORK_FILESYSTEMS, filesystem_type
from vllm_probes.sensors.hub import HubSensor

_LINK_LIMIT = 40
"""Symbolic links that one path may lead through, as in path_resolution(7)."""
_SWAP = re.compile(r"^Swap(Total|Free): +(\d+) kB$", re.MULTILINE)
_SWAPPED_PAGES = re.compile(r"^pswp(?:in|out) (\d+)$", re.MULTILINE)
_PRESSURE = re.compile(r"some avg10=([\d.]+) ")


class Kills:
    """A counter that goes on where another cgroup, with a count of its own, takes the place of the first."""

    def __init__(self) -> None:
        self._total: int | None = None
        self._latest: int | None = None

    def begin_anew(self) -> None:
        """The next count is that of another group."""
        self._latest = None

    def total(self, count: int | None) -> int | None:
        """That of the first group, and what has come to it since; None: nobody tells."""
        if count is None:
            return self._total
        more = 0 if self._latest is None else max(count - self._latest, 0)
        self._latest = count
        self._total = count if self._total is None else self._total + more
        return self._total


class HostSensor:
    """Looks at everything in less than a millisecond, and waits for nothing.

    It reads /proc, /sys and /dev/shm, and on the way to the model only links that lie on this host.
    """

    def __init__(self, proc: Path = Path("/proc"), sysfs: Path = Path("/sys"), shm: Path = Path("/dev/shm")) -> None:
        """`proc` is for what psutil does not read; that looks where `psutil.PROCFS_PATH` says."""
        self._proc, self._shm = proc, shm
        self._cgroup, self._cgroup_text = Cgroup(proc / "self"), text_of(proc / "self" / "cgroup")
        self._kills = Kills()
        self._rates = Rates()
        self._hub = HubSensor()
        self._disks = _Chosen(lambda names: physical_disks(names, sysfs))
        self._interfaces = _Chosen(lambda names: physical_interfaces(names, sysfs))
        self._placed: tuple[Path, str] | None = None
        self._filesystem: str | None = None

    def sample(
        self,
        stamp: Stamp,
        model_path: Path | None,
        hub: Path | None,
        read_bytes: int | None,
        model_id: str | None = None,
        pid: int | None = None,
    ) -> HostSampled:
        """One look; rates are since the sample before, by the stamps' `mono`.

        `model_path` is absolute, existing or not: the model's own folder. A cache of the hub is judged by it, too: the
        links in `snapshots` lead to its `blobs`. `read_bytes` is what the processes of the run have read so far.
        `hub` and `model_id` while a download may run: it is told one sample late. `pid` is the process whose cgroup
        counts; None: nobody new.
        """
        self._turn_to_cgroup(pid)
        mono = stamp["mono"]
        kind = self._model_filesystem(model_path)
        return HostSampled(
            **stamp,
            **self._cpu(mono),
            **self._memory(mono),
            **self._pressure(),
            **self._shared_memory(),
            **self._traffic(mono),
            **self._limits(mono),
            **self._download(hub, model_id),
            model_path=None if model_path is None else str(model_path),
            model_filesystem=kind,
            model_is_remote=NETWORK_FILESYSTEMS.fullmatch(kind or "") is not None,
            model_read_bytes_per_s=self._rates.per_s("model", mono, read_bytes),
        )

    def _cpu(self, mono: float) -> dict[str, Any]:
        times = psutil.cpu_times()
        busy_s = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
        busy = self._rates.per_s("busy", mono, busy_s)
        idle = self._rates.per_s("idle", mono, times.idle + times.iowait)
        return {"cpu_percent": _share_percent(busy, idle), "core_count": len(os.sched_getaffinity(0))}

    def _memory(self, mono: float) -> dict[str, Any]:
        """Page cache does not count as used. psutil takes every page for 4 KiB, so swap is counted here."""
        memory = psutil.virtual_memory()
        swap_bytes = {name: int(kib) << 10 for name, kib in _SWAP.findall(text_of(self._proc / "meminfo"))}
        total, free = swap_bytes.get("Total"), swap_bytes.get("Free")
        pages = [int(count) for count in _SWAPPED_PAGES.findall(text_of(self._proc / "vmstat"))]
        swapped_bytes = sum(pages) * resource.getpagesize() if pages else None
        return {
            "memory_used_bytes": memory.total - memory.available,
            "memory_total_bytes": memory.total,
            "swap_used_bytes": None if total is None or free is None else total - free,
            "swap_total_bytes": total,
            "swap_bytes_per_s": self._rates.per_s("swap", mono, swapped_bytes),
        }

    def _pressure(self) -> dict[str, Any]:
        """Kernels without PSI, or that were started with psi=0, have no such files or refuse to read them."""
        found = {name: _PRESSURE.match(text_of(self._proc / "pressure" / name)) for name in ("cpu", "memory", "io")}
        return {f"{name}_pressure_percent": float(line[1]) if line else None for name, line in found.items()}

    def _shared_memory(self) -> dict[str, Any]:
        try:
            usage = shutil.disk_usage(self._shm)
        except OSError:
            return {}
        return {"shm_used_bytes": usage.used, "shm_total_bytes": usage.total} if usage.total else {}  # 0: no limit

    def _traffic(self, mono: float) -> dict[str, Any]:
        disks = self._disks.of(_counters(lambda: psutil.disk_io_counters(perdisk=True, nowrap=False)))
        interfaces = self._interfaces.of(_counters(lambda: psutil.net_io_counters(pernic=True, nowrap=False)))
        rate = self._rates.per_s
        return {
            "disk_read_bytes_per_s": rate("read", mono, _sum(disks, "read_bytes")),
            "disk_write_bytes_per_s": rate("write", mono, _sum(disks, "write_bytes")),
            "network_receive_bytes_per_s": rate("receive", mono, _sum(interfaces, "bytes_recv")),
            "network_send_bytes_per_s": rate("send", mono, _sum(interfaces, "bytes_sent")),
        }

    def _turn_to_cgroup(self, pid: int | None) -> None:
        """A command may move itself into another group: a wrapper does, or the job of a scheduler."""
        text = text_of(self._proc / str(pid) / "cgroup") if pid is not None else ""
        if text and text != self._cgroup_text:
            self._cgroup_text = text
            self._cgroup = Cgroup(self._proc / str(pid), viewer=self._proc / "self")
            self._kills.begin_anew()

    def _limits(self, mono: float) -> dict[str, Any]:
        own = self._cgroup.sample()
        throttled = self._rates.per_s("throttled", mono, own.throttled_s)
        return {
            "cgroup_memory_bytes": own.memory_bytes,
            "cgroup_memory_limit_bytes": own.memory_limit_bytes,
            "cgroup_cpu_limit": own.cpu_limit,
            "cgroup_throttled_percent": None if throttled is None else min(100 * throttled, 100.0),
            "oom_kill_count": self._kills.total(own.oom_kill_count),
        }

    def _download(self, hub: Path | None, model_id: str | None) -> dict[str, Any]:
        seen = self._hub.sample(hub, model_id) if hub is not None and model_id is not None else None
        if seen is None:
            return {}
        return {
            "download_bytes": seen.bytes,
            "download_bytes_per_s": self._rates.per_s("download", seen.mono, seen.bytes),
        }

    def _model_filesystem(self, model_path: Path | None) -> str | None:
        """Looked up again when anything was mounted or unmounted, since vLLM may be what sets off an automount."""
        if model_path is None or not (mountinfo := text_of(self._proc / "self" / "mountinfo")):
            return None
        if self._placed != (model_path, mountinfo):
            self._placed = (model_path, mountinfo)
            self._filesystem = filesystem_type(follow(model_path, mountinfo), mountinfo)
        return self._filesystem


class Rates:
    """How fast counters grow. None the first time, after a time without a value, and where a counter fell."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}

    def per_s(self, name: str, mono: float, value: float | None) -> float | None:
        before = self._before.pop(name, None)
        if value is None:
            return None
        self._before[name] = (mono, value)
        if before is None or mono <= before[0] or value < before[1]:
            return None
        return (value - before[1]) / (mono - before[0])


def physical_disks(names: Collection[str], sysfs: Path) -> set[str]:
    """Whole disks that a driver serves: not their partitions, nor what is made of them (dm, md, loop, zram).

    Those have a `device` in /sys/block (the rule of sysstat's `is_device`, which iostat goes by).
    """
    return {name for name in names if (sysfs / "block" / name.replace("/", "!") / "device").exists()}


def physical_interfaces(names: Collection[str], sysfs: Path) -> set[str]:
    """Interfaces that a driver serves: not lo, nor what sends through them (bridges, bonds, VLANs, veth, tunnels).

    Those have a `device` in /sys/class/net. One whose `master` has one, too, is left out: a virtual function below the
    synthetic interface of Hyper-V is counted by that (`netvsc_get_stats64`). Where none has a `device`, in a container
    that sees its own end of a veth, all but lo count. What RDMA sends is in none of them.
    """
    folder = sysfs / "class" / "net"
    served = {name for name in names if (folder / name / "device").exists()}
    return {name for name in served if _master(folder / name) not in served} or set(names) - {"lo"}


def follow(path: Path, mountinfo: str) -> Path:
    """Where an absolute path leads: links are followed as far as that touches no file system that may not answer.

    Caches are often a link into a network file system, and a look at anything on one that is dead never comes back.
    So is the look at a mount point itself, or at one that automount is to fill: there it ends, and the rest of the path
    is taken as it is written.
    """
    points = {mount.point for mount in mounts(mountinfo)}
    here, ahead, link_count = Path("/"), list(path.parts[1:]), 0
    while ahead:
        name = ahead.pop(0)
        if name == "..":
            here = here.parent
            continue
        here /= name
        if here in points:
            if _may_not_answer(filesystem_type(here, mountinfo)):
                break
        elif link_count < _LINK_LIMIT and (target := _link(here)):
            link_count += 1
            ahead = [part for part in target.parts if part != "/"] + ahead
            here = Path("/") if target.is_absolute() else here.parent
    return Path(os.path.normpath(here.joinpath(*ahead)))


class _Chosen:
    """The counters of the devices that count; which those are is looked up when there are others."""

    def __init__(self, choose: Callable[[Collection[str]], set[str]]) -> None:
        self._choose = choose
        self._names: set[str] = set()
        self._chosen: set[str] = set()

    def of(self, counters: Mapping[str, Any]) -> list[Any]:
        if counters.keys() != self._names:
            self._names = set(counters)
            self._chosen = self._choose(self._names)
        return [counters[name] for name in self._chosen]


def _counters(read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Nothing where this host does not tell, such as in some sandboxes."""
    try:
        return read()
    except (OSError, NotImplementedError):
        return {}


def _share_percent(busy: float | None, idle: float | None) -> float | None:
    if busy is None or idle is None or busy + idle == 0:
        return None
    return 100 * busy / (busy + idle)


def _sum(counters: Collection[Any], field: str) -> int | None:
    return sum(getattr(counter, field) for counter in counters) if counters else None


def _master(interface: Path) -> str | None:
    link = _link(interface / "master")
    return None if link is None else link.name


def _link(path: Path) -> Path | None:
    """Where a symbolic link leads; None where there is none."""
    try:
        return Path(os.readlink(path))
    except OSError:
        return None


def _may_not_answer(kind: str | None) -> bool:
    return kind == "autofs" or NETWORK_FILESYSTEMS.fullmatch(kind or "") is not None
