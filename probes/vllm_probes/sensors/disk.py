"""Room on the disk of a session, and how a log that outgrows its limit gives room back."""

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

NETWORK_FILESYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|lustre|ceph|9p|gpfs|beegfs\w*|afs|glusterfs|pvfs2|orangefs|wekafs|panfs|ocfs2|gfs2|coda"
    r"|fuse\.(?!(?:fuse-overlayfs|lxcfs|portal|gvfsd-fuse|ntfs.*|exfat.*|ext\d)$).*"
)
"""File-system types of /proc/self/mountinfo. Most of FUSE is a network; the exceptions are local."""

FORECAST_S = 24 * 3600.0
SHORTEST_TREND_S = 10.0
BLOCK_BYTES = 64 << 20

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS)
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def free_bytes(path: Path) -> int:
    """What we may still write on the file system of an existing path.

    Raises:
        OSError: there is no such path.
    """
    return shutil.disk_usage(path).free


def is_network_filesystem(path: Path) -> bool:
    """Whether the path, existing or not, lies on a file system that other hosts see, or that a network carries."""
    kind = filesystem_type(path.resolve(), Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    return NETWORK_FILESYSTEMS.fullmatch(kind or "") is not None


def filesystem_type(path: Path, mountinfo: str) -> str | None:
    """The type of the file system that holds an absolute path, from the text of /proc/self/mountinfo (proc(5))."""
    best, kind = -1, None
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount.split(" ")[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:  # the last of several mounts on one point counts
            best, kind = len(point.parts), source.split(" ")[0]
    return kind


def full_in_s(samples: Sequence[tuple[float, int]]) -> float | None:
    """When the disk is full if it goes on like this: seconds from the last of (mono, free bytes) samples.

    None where nothing fills up, where that is more than a day away, and where the samples span too little to tell.
    """
    if len(samples) < 2:
        return None
    (start, free_before), (end, free_now) = samples[0], samples[-1]
    if end - start < SHORTEST_TREND_S or free_now >= free_before:
        return None
    left_s = free_now * (end - start) / (free_before - free_now)
    return left_s if left_s <= FORECAST_S else None


def reserve(path: Path, room_bytes: int) -> None:
    """Take room for what will be appended to a file, which is made if need be and keeps its size.

    Nothing more happens where the file system cannot.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _LIBC.fallocate(descriptor, _KEEP_SIZE, os.fstat(descriptor).st_size, room_bytes)
    finally:
        os.close(descriptor)


def hole(
    size_bytes: int, limit_bytes: int, keep_head_bytes: int, block_bytes: int = BLOCK_BYTES
) -> tuple[int, int] | None:
    """Where to cut a log so that its begin and its end stay: (start, length), None while it is within its limit.

    It grows by whole blocks, so that it is not cut at every look; the log takes up at most its limit and one block.
    """
    start = -(-keep_head_bytes // block_bytes) * block_bytes
    tail_bytes = max(limit_bytes - start, 0)
    length = (size_bytes - tail_bytes - start) // block_bytes * block_bytes
    return (start, length) if size_bytes > limit_bytes and length > 0 else None


def punch_hole(path: Path, start: int, length: int) -> bool:
    """Give these bytes back to the disk; they read as zeros and the file keeps its size.

    False where the file system cannot.

    Raises:
        OSError: the file is not there or not ours.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        if _LIBC.fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, start, length) == 0:
            return True
        code = ctypes.get_errno()
    finally:
        os.close(descriptor)
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(path))
