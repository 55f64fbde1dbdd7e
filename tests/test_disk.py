"""Room on the disk, network file systems, and logs with a hole."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.sensors.disk import (
    NETWORK_FILESYSTEMS,
    filesystem_type,
    free_bytes,
    full_in_s,
    hole,
    is_network_filesystem,
    punch_hole,
)

MOUNTINFO = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /home rw shared:9 master:2 - nfs4 server:/home rw,vers=4.2
31 30 0:41 / /home/me/local\040disk rw - xfs /dev/sdb rw
32 22 0:42 / /mnt rw - ext4 /dev/sdc rw
33 22 0:43 / /mnt rw - fuse.sshfs host:/ rw
34 22 0:44 / /homes rw - tmpfs tmpfs rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/x", "ext4"),
        ("/", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/x", "nfs4"),
        ("/home/me/local disk/x", "xfs"),
        ("/mnt/x", "fuse.sshfs"),
        ("/homes/x", "tmpfs"),
    ],
)
def test_filesystem_type(path: str, kind: str) -> None:
    assert filesystem_type(Path(path), MOUNTINFO) == kind


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [
        *((kind, True) for kind in ("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "9p", "gpfs", "beegfs", "afs")),
        *((kind, True) for kind in ("fuse.sshfs", "fuse.glusterfs", "fuse.juicefs", "fuse.gcsfuse")),
        *(
            (kind, False)
            for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuse.fuse-overlayfs", "fuseblk")
        ),
    ],
)
def test_network_filesystems(kind: str, is_network: bool) -> None:
    assert (NETWORK_FILESYSTEMS.fullmatch(kind) is not None) == is_network


def test_this_host(tmp_path: Path) -> None:
    assert not is_network_filesystem(Path("/dev/shm/not/there"))
    assert is_network_filesystem(tmp_path) in (True, False)
    assert free_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    ("samples", "seconds"),
    [
        ([], None),
        ([(0, 100)], None),
        ([(0, 100), (5, 50)], None),
        ([(0, 100), (60, 100)], None),
        ([(0, 100), (60, 120)], None),
        ([(0, 120), (30, 110), (60, 60)], 60),
        ([(0, 120), (60, 0)], 0),
        ([(0, 1 << 40), (60, (1 << 40) - 4096)], None),
    ],
)
def test_full_in_s(samples: list[tuple[float, int]], seconds: float | None) -> None:
    assert full_in_s(samples) == seconds


@given(st.integers(0, 10**13), st.integers(0, 10**11), st.integers(0, 10**10), st.sampled_from([1, 4096, 1 << 26]))
def test_hole_keeps_head_and_tail_and_the_limit(size: int, limit: int, head: int, block: int) -> None:
    cut = hole(size, limit, head, block)
    left = size - (cut[1] if cut else 0)
    assert left <= max(limit, head + block) + block
    if cut:
        start, length = cut
        assert size > limit
        assert length > 0
        assert start >= head
        assert start % block == length % block == 0
        assert size - start - length >= limit - start


def test_the_hole_of_a_growing_log_grows_by_blocks() -> None:
    cuts = [hole(size, 1000, 200, 100) for size in range(1000, 1500, 50)]
    assert cuts == [None, None, *((200, length) for length in (100, 100, 200, 200, 300, 300, 400, 400))]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:  # tmpfs can do it everywhere
        file.write(b"x" * (1 << 20))
        file.flush()
        yield Path(file.name)


def test_punch_hole(log: Path) -> None:
    before = log.stat()
    assert punch_hole(log, 4096, 1 << 19)
    after = log.stat()
    assert after.st_size == before.st_size
    assert (before.st_blocks - after.st_blocks) * 512 == 1 << 19
    text = log.read_bytes()
    assert text == b"x" * 4096 + bytes(1 << 19) + b"x" * ((1 << 20) - 4096 - (1 << 19))


def test_punched_while_another_process_appends(log: Path) -> None:
    with log.open("ab", buffering=0) as writer:
        assert punch_hole(log, 0, 4096)
        writer.write(b"end")
    assert log.read_bytes().endswith(b"xend")


def test_punch_hole_where_it_cannot_be_done() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="Illegal seek") as caught:
            punch_hole(Path(f"/proc/self/fd/{writer}"), 0, 4096)
        assert caught.value.errno == errno.ESPIPE
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(FileNotFoundError):
        punch_hole(Path("/not/there"), 0, 4096)
