"""Resource limits and capabilities that a vLLM started from this shell would inherit."""

import os
import re
import resource
from collections.abc import Iterable
from pathlib import Path

import psutil

from vllm_probes.doctor.facts import LimitFacts
from vllm_probes.sensors.cgroup import group, mounts, text_of

_CAP_IPC_LOCK, _CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 14, 21, 24  # <linux/capability.h>


def look() -> LimitFacts:
    files_soft, files_hard = map(_limit, resource.getrlimit(resource.RLIMIT_NOFILE))
    room, limit = min(_rooms(), default=(None, ""), key=lambda room: room[0])
    return LimitFacts(
        files_soft=files_soft,
        files_hard=files_hard,
        locked_bytes=_limit(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]),
        can_lock=_has_capability(_CAP_IPC_LOCK),
        rdma_devices=sorted(device.name for device in Path("/sys/class/infiniband").glob("*")),
        core_bytes=_limit(resource.getrlimit(resource.RLIMIT_CORE)[0]),
        task_room=room,
        task_limit=limit,
    )


def _limit(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value


def _has_capability(number: int) -> bool:
    """In the effective set (proc_pid_status(5))."""
    found = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> number & 1)


def _rooms() -> list[tuple[int, str]]:
    """How many processes and threads each limit leaves, and who sets it.

    RLIMIT_NPROC counts the threads of the real user and does not bind root, nor who has CAP_SYS_ADMIN or
    CAP_SYS_RESOURCE (getrlimit(2)).
    """
    pids = group("pids", text_of(Path("/proc/self/cgroup")), mounts(text_of(Path("/proc/self/mountinfo"))))
    rooms = cgroup_rooms(pids.folders) if pids else []
    own = _limit(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    is_bound = os.getuid() != 0 and not any(map(_has_capability, (_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE)))
    return [*rooms, (own - _own_threads(), "ulimit -u")] if own is not None and is_bound else rooms


def cgroup_rooms(folders: Iterable[Path]) -> list[tuple[int, str]]:
    """What groups leave that have a limit (admin-guide/cgroup-v2.rst, "PID"; version 1 has the same files)."""
    found = []
    for folder in folders:
        most, current = text_of(folder / "pids.max").strip(), text_of(folder / "pids.current").strip()
        if most.isdecimal() and current.isdecimal():
            found.append((int(most) - int(current), str(folder / "pids.max")))
    return found


def _own_threads() -> int:
    uid, count = os.getuid(), 0
    for process in psutil.process_iter():
        try:
            count += process.num_threads() if process.uids().real == uid else 0
        except psutil.Error:
            continue
    return count
