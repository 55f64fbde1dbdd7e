"""/dev/shm: how much of it is free, and what dead processes have left there."""

import os
import re
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import psutil

from vllm_probes.doctor.facts import ShmFacts
from vllm_probes.sensors import tree

FOLDER = Path("/dev/shm")
YOUNG_S = 60.0
"""A file may be mapped a moment after it is made."""
HOST_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of <linux/proc_ns.h>."""
_NAMES = re.compile(r"psm_|nccl-|sem\.")
"""Of Python's shared memory, of NCCL and of semaphores."""


def look() -> ShmFacts:
    if not FOLDER.is_dir():
        return ShmFacts()
    usage = shutil.disk_usage(FOLDER)
    left = leftovers(FOLDER, tree.shm_files(psutil.pids()))
    return ShmFacts(
        total_bytes=usage.total,
        free_bytes=usage.free,
        leftovers=sorted(left),
        leftover_bytes=sum(left.values()),
        sees_host=os.readlink("/proc/self/ns/pid") == HOST_PID_NAMESPACE,
    )


def leftovers(folder: Path, mapped: Collection[str]) -> dict[str, int]:
    """Files with such names that nobody has mapped, by path with their bytes, if we may remove them.

    What other users' processes have mapped cannot be read, so their files are only named to root.
    """
    found = {}
    for path in folder.iterdir():
        try:
            status = path.lstat()
        except OSError:
            continue
        is_old = time.time() - status.st_mtime > YOUNG_S
        is_ours = os.getuid() in (0, status.st_uid)
        if _NAMES.match(path.name) and is_old and is_ours and str(path) not in mapped:
            found[str(path)] = status.st_blocks * 512
    return found
