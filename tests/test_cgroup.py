"""Limits of control groups: versions 1 and 2 from folders written here, and the real kernel's where groups can be made.

No process is put into a real memory group: ours may belong to whoever runs the tests, and would be left for it. So the
counter of kills is read from real files but seen to rise only in written ones.
"""

import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from vllm_probes.sensors.cgroup import Cgroup, CgroupSample, Group, group, mounts, text_of

GIB = 1 << 30
NOTHING = CgroupSample(None, None, None, None, None)
NO_LIMIT_V1 = str(0x7FFFFFFFFFFFF000)

V1 = r"""
30 20 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory
""".strip()
V2 = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
TWICE = f"29 20 0:26 /other /mnt/part rw - cgroup2 cgroup2 rw\n{V2}"
DOCKER_V1 = V1.replace("0:29 / ", "0:29 /docker/c1 ").replace("0:28 / ", r"0:28 /docker/a\040b ")


@pytest.mark.parametrize(
    ("controller", "own", "mountinfo", "folders", "is_v2"),
    [
        ("memory", "0::/", V2, [""], True),
        ("cpu", "0::/a/b", V2, ["a/b", "a", ""], True),
        ("cpu", "0::/a", TWICE, ["a", ""], True),
        ("memory", "5:memory:/a\n0::/x", V1, ["memory/a", "memory"], False),
        ("cpu", "5:cpu,cpuacct:/a\n0::/x", V1, ["cpu,cpuacct/a", "cpu,cpuacct"], False),
        ("cpu", "5:memory:/a\n0::/x", V1, ["unified/x", "unified"], True),
        ("memory", "5:memory:/a:b\n0::/", V1, ["memory/a:b", "memory"], False),
        ("memory", "5:memory:/docker/c1", DOCKER_V1, ["memory"], False),
        ("memory", "5:memory:/docker/c1/x", DOCKER_V1, ["memory/x", "memory"], False),
        ("memory", "5:memory:/docker/other", DOCKER_V1, ["memory"], False),
        ("cpu", "5:cpu,cpuacct:/docker/a b", DOCKER_V1, ["cpu,cpuacct"], False),
        ("memory", "0::/../neighbour", V2, [""], True),
    ],
)
def test_where_a_group_is(controller: str, own: str, mountinfo: str, folders: list[str], is_v2: bool) -> None:
    expected = Group([Path("/sys/fs/cgroup", folder) for folder in folders], is_v2)
    assert group(controller, own, mounts(mountinfo)) == expected


@pytest.mark.parametrize(
    ("own", "mountinfo"), [("", V2), ("0::/", ""), ("5:memory:/a", V2), ("0::/", V1.splitlines()[0])]
)
def test_no_group(own: str, mountinfo: str) -> None:
    assert group("memory", own, mounts(mountinfo)) is None


class Tree:
    """A folder like /proc/PID, and the groups that it speaks of."""

    def __init__(self, folder: Path) -> None:
        self.process, self.groups = folder / "self", folder / "groups"
        self.process.mkdir()

    def unified(self, path: str) -> None:
        self._write(f"0::{path}", f"1 0 0:1 / {self.groups} rw - cgroup2 cgroup2 rw")

    def separate(self, path: str) -> None:
        mountinfo = [f"1 0 0:1 / {self.groups}/{name} rw - cgroup cgroup rw,{name}" for name in ("memory", "cpu")]
        self._write(f"3:memory:{path}\n2:cpu:{path}\n0::/", "\n".join(mountinfo))

    def _write(self, own: str, mountinfo: str) -> None:
        (self.process / "cgroup").write_text(own + "\n")
        (self.process / "mountinfo").write_text(mountinfo + "\n")

    def put(self, path: str, **files: str) -> None:
        """`memory_max="5"` becomes the file `memory.max`."""
        (self.groups / path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.groups / path / name.replace("_", ".", 1)).write_text(text + "\n")

    def sample(self) -> CgroupSample:
        return Cgroup(self.process).sample()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_the_lowest_limit_and_its_use_in_version_2(tree: Tree) -> None:
    tree.unified("/pod/own/leaf")
    tree.put("", cpu_stat="usage_usec 1")
    tree.put(
        "pod",
        memory_max=str(8 * GIB),
        memory_current=str(6 * GIB),
        memory_stat=f"anon {GIB}\nfile {5 * GIB}\nshmem {GIB}\ninactive_file {3 * GIB}\nactive_file {GIB}",
        memory_events="oom 2\noom_kill 2",
        cpu_max="400000 100000",
    )
    tree.put(
        "pod/own",
        memory_max=str(9 * GIB),
        memory_current="5",
        memory_events="low 0\noom 1\noom_kill 1\noom_group_kill 0",
        cpu_max="250000 100000",
        cpu_stat="usage_usec 9\nnr_periods 50\nnr_throttled 30\nthrottled_usec 90000000",
    )
    tree.put("pod/own/leaf", cpu_max="max 100000", cpu_stat="nr_throttled 0")
    assert tree.sample() == CgroupSample(2 * GIB, 8 * GIB, 1, 2.5, pytest.approx(3.0))


def test_the_lowest_limit_and_its_use_in_version_1(tree: Tree) -> None:
    tree.separate("/job/own")
    tree.put("memory", memory_limit_in_bytes=NO_LIMIT_V1, memory_usage_in_bytes="1")
    tree.put(
        "memory/job",
        memory_limit_in_bytes=str(4 * GIB),
        memory_usage_in_bytes=str(3 * GIB),
        memory_stat=f"inactive_file 7\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}",
        memory_oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 0",
    )
    tree.put(
        "memory/job/own",
        memory_limit_in_bytes=NO_LIMIT_V1,
        memory_oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3",
    )
    tree.put("cpu/job", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    tree.put(
        "cpu/job/own",
        cpu_cfs_quota_us="25000",
        cpu_cfs_period_us="50000",
        cpu_stat="nr_periods 7\nnr_throttled 4\nthrottled_time 9",
    )
    assert tree.sample() == CgroupSample(GIB, 4 * GIB, 3, 0.5, pytest.approx(0.2))


def test_without_limits_the_use_is_that_of_our_own_group(tree: Tree) -> None:
    tree.unified("/own")
    tree.put("", memory_current="9")
    tree.put("own", memory_max="max", memory_current="7", memory_events="oom_kill 0", cpu_max="max 100000")
    assert tree.sample() == CgroupSample(7, None, 0, None, None)


def test_of_equal_limits_the_inner_one_counts(tree: Tree) -> None:
    tree.unified("/pod/own")
    tree.put("pod", memory_max="9", memory_current="8")
    tree.put("pod/own", memory_max="9", memory_current="2")
    assert tree.sample().memory_bytes == 2


def test_a_limit_can_change_and_kills_are_seen(tree: Tree) -> None:
    tree.unified("/own")
    tree.put("own", memory_max="max", memory_current="7", memory_events="oom_kill 0")
    cgroup = Cgroup(tree.process)
    tree.put("own", memory_max="9", memory_events="oom_kill 1")
    assert cgroup.sample() == CgroupSample(7, 9, 1, None, None)


def test_old_kernels_do_not_count_kills(tree: Tree) -> None:
    tree.separate("/")
    tree.put(
        "memory",
        memory_limit_in_bytes=NO_LIMIT_V1,
        memory_usage_in_bytes="7",
        memory_oom_control="oom_kill_disable 0\nunder_oom 0",
    )
    assert tree.sample() == CgroupSample(7, None, None, None, None)


def test_a_group_that_is_gone_and_a_process_that_is_gone_tell_nothing(tree: Tree, tmp_path: Path) -> None:
    tree.unified("/own")
    assert tree.sample() == NOTHING
    assert Cgroup(tmp_path / "not there").sample() == NOTHING


# --- the real kernel --------------------------------------------------------------------------------------------------


def test_our_own_group() -> None:
    own = Cgroup().sample()
    assert own.memory_bytes is None or own.memory_bytes > 0
    assert own.memory_limit_bytes is None or own.memory_limit_bytes > (own.memory_bytes or 0)
    assert own.cpu_limit is None or own.cpu_limit > 0


@pytest.fixture
def made_group(wait_for: WaitFor) -> Iterator[Callable[[str, str], tuple[str, Path]]]:
    """`made_group(controller, file)` makes a real, empty group at the top of the tree: its path and folder."""
    made: list[Path] = []

    def make(controller: str, file: str) -> tuple[str, Path]:
        found = group(controller, text_of(Path("/proc/self/cgroup")), mounts(text_of(Path("/proc/self/mountinfo"))))
        if found is None:
            pytest.skip(f"the controller {controller} is not mounted")
        folder = found.folders[-1] / f"vllm-tui-test-{uuid.uuid4().hex}"
        try:
            folder.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here, which takes root and a writable /sys/fs/cgroup: {error}")
        made.append(folder)
        if found.is_v2 or not (folder / file).exists():
            pytest.skip(f"a group at the top of this host's tree has no {file}")
        return f"/{folder.name}", folder

    yield make
    for folder in reversed(made):
        wait_for(lambda folder=folder: _is_removed(folder), message=f"{folder} cannot be removed")


def _is_removed(folder: Path) -> bool:
    for inner in [path for path in folder.iterdir() if path.is_dir()]:
        inner.rmdir()
    try:
        folder.rmdir()
    except OSError:  # its last process is not quite gone
        return False
    return True


def test_a_busy_process_with_a_limit_is_throttled(
    made_group: Callable[[str, str], tuple[str, Path]], spawned: Spawn, wait_for: WaitFor
) -> None:
    _, folder = made_group("cpu", "cpu.cfs_quota_us")
    (folder / "cpu.cfs_period_us").write_text("20000")
    (folder / "cpu.cfs_quota_us").write_text("4000")
    busy = spawned([sys.executable, "-c", "while True: pass"], stdout=subprocess.DEVNULL)
    began_mono = time.monotonic()
    (folder / "cgroup.procs").write_text(str(busy.pid))
    cgroup = Cgroup(Path(f"/proc/{busy.pid}"))
    throttled_s = wait_for(lambda: cgroup.sample().throttled_s)
    assert cgroup.sample().cpu_limit == 0.2
    assert wait_for(lambda: (cgroup.sample().throttled_s or 0) > throttled_s + 0.1)
    period_s = 0.02
    assert (cgroup.sample().throttled_s or 0) <= time.monotonic() - began_mono + period_s  # a share of what has passed


def test_a_real_memory_limit_above_counts(made_group: Callable[[str, str], tuple[str, Path]], tmp_path: Path) -> None:
    path, folder = made_group("memory", "memory.limit_in_bytes")
    (folder / "memory.limit_in_bytes").write_text(str(64 << 20))
    (folder / "inner").mkdir()
    (tmp_path / "mountinfo").write_text(text_of(Path("/proc/self/mountinfo")))
    own = re.sub(r"(?<=:memory:).*", f"{path}/inner", text_of(Path("/proc/self/cgroup")))
    (tmp_path / "cgroup").write_text(own)
    sample = Cgroup(tmp_path).sample()
    assert sample.memory_limit_bytes == 64 << 20
    assert sample.memory_bytes is not None
    assert sample.oom_kill_count == 0
