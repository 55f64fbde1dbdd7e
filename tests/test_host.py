"""The host: against the real one, and against /proc and /sys written here for kernels that cannot be had."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import WaitFor
from vllm_probes.events import HostSampled, Stamp, decode, encode
from vllm_probes.sensors.host import HostSensor, Rates, follow, physical_disks, physical_interfaces

MIB = 1 << 20
DISKSTATS = """\
 259 0 nvme0n1 10 0 {sectors} 0 5 0 400 0 0 0 0
 259 1 nvme0n1p1 10 0 {sectors} 0 5 0 400 0 0 0 0
 253 0 dm-0 10 0 {sectors} 0 5 0 400 0 0 0 0
   7 0 loop0 10 0 {sectors} 0 5 0 400 0 0 0 0
   8 0 sda 10 0 100 0 5 0 {sectors} 0 0 0 0
"""
MEMINFO = "".join(f"{name}: 0 kB\n" for name in ("MemFree", "Buffers", "Cached", "Shmem", "Active", "Inactive"))
NET = "Inter-|   Receive |  Transmit\n face |bytes |bytes\n"


def stamp(mono: float) -> Stamp:
    return Stamp(time=0.0, mono=mono, node="n", attempt=1)


class Host:
    """Folders like /proc and /sys, and a sensor that looks at them."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.sysfs = folder / "proc", folder / "sys"
        self.sysfs.mkdir()
        self.put("stat", "cpu  100 0 100 800 0 0 0 0 0 0\n")
        self.put("meminfo", f"MemTotal: 1000 kB\nMemAvailable: 400 kB\n{MEMINFO}")

    def put(self, name: str, text: str) -> None:
        (self.proc / name).parent.mkdir(parents=True, exist_ok=True)
        (self.proc / name).write_text(text)

    def network(self, **received_bytes: int) -> None:
        lines = [f"{name}: {count} {'0 ' * 7}{2 * count} {'0 ' * 7}\n" for name, count in received_bytes.items()]
        self.put("net/dev", NET + "".join(lines))

    def device(self, path: str, master: str | None = None) -> None:
        folder = self.sysfs / path
        (folder / "device").mkdir(parents=True)
        if master:
            (folder / "master").symlink_to(f"../{master}")

    def sensor(self) -> HostSensor:
        return HostSensor(self.proc, self.sysfs, shm=self.proc / "no shm")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    return Host(tmp_path)


def look(sensor: HostSensor, mono: float, read_bytes: int | None = None, pid: int | None = None) -> HostSampled:
    return sensor.sample(stamp(mono), None, None, read_bytes, pid=pid)


# --- kernels that cannot be had ---------------------------------------------------------------------------------------


def test_what_a_host_does_not_tell_is_none(host: Host) -> None:
    sensor = host.sensor()
    look(sensor, 0)
    sample = look(sensor, 5)
    told = {name for name, value in msgspec.structs.asdict(sample).items() if value is not None}
    assert told - set(stamp(0)) == {"core_count", "memory_used_bytes", "memory_total_bytes", "model_is_remote"}
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (600 << 10, 1000 << 10)


def test_waiting_for_a_disk_is_idle(host: Host) -> None:
    sensor = host.sensor()
    assert look(sensor, 0).cpu_percent is None
    host.put("stat", "cpu  130 10 150 860 40 4 6 0 20 0\n")
    assert look(sensor, 5).cpu_percent == pytest.approx(50)
    assert look(sensor, 10).cpu_percent is None


def test_swap_is_counted_in_pages_of_this_host(host: Host) -> None:
    host.put("meminfo", f"MemTotal: 9 kB\nMemAvailable: 4 kB\n{MEMINFO}SwapTotal:       8 kB\nSwapFree:        5 kB\n")
    host.put("vmstat", "nr_free_pages 4\npswpin 10\npswpout 20\n")
    sensor = host.sensor()
    look(sensor, 0)
    host.put("vmstat", "nr_free_pages 4\npswpin 20\npswpout 60\n")
    sample = look(sensor, 5)
    assert (sample.swap_used_bytes, sample.swap_total_bytes) == (3 << 10, 8 << 10)
    assert sample.swap_bytes_per_s == 10 * resource.getpagesize()


def test_pressure(host: Host) -> None:
    for name, value in (("cpu", "1.25"), ("memory", "0.00"), ("io", "99.10")):
        host.put(f"pressure/{name}", f"some avg10={value} avg60=7.00 avg300=8.00 total=9\nfull avg10=5.00 avg60=5.00\n")
    sample = look(host.sensor(), 0)
    found = (sample.cpu_pressure_percent, sample.memory_pressure_percent, sample.io_pressure_percent)
    assert found == (1.25, 0.0, 99.1)


def test_partitions_and_what_is_made_of_disks_are_not_counted_twice(host: Host) -> None:
    for name in ("nvme0n1", "sda"):
        host.device(f"block/{name}")
    for name in ("dm-0", "loop0"):
        (host.sysfs / "block" / name).mkdir()
    host.put("diskstats", DISKSTATS.format(sectors=0))
    sensor = host.sensor()
    look(sensor, 0)
    host.put("diskstats", DISKSTATS.format(sectors=1000))
    sample = look(sensor, 5)
    assert sample.disk_read_bytes_per_s == 1000 * 512 / 5
    assert sample.disk_write_bytes_per_s == 1000 * 512 / 5


@pytest.mark.parametrize(
    ("served", "masters", "counted"),
    [
        ([], {}, {"eth0", "docker0", "veth1"}),
        (["eth0"], {}, {"eth0"}),
        (["eth0", "veth1"], {"eth0": "bond0", "veth1": "bond0"}, {"eth0", "veth1"}),
        (["eth0", "veth1"], {"veth1": "eth0"}, {"eth0"}),
    ],
)
def test_interfaces_that_count(host: Host, served: list[str], masters: dict[str, str], counted: set[str]) -> None:
    for name in served:
        host.device(f"class/net/{name}", masters.get(name))
    assert physical_interfaces(["lo", "eth0", "docker0", "veth1"], host.sysfs) == counted


def test_a_disk_with_a_slash_in_its_name(host: Host) -> None:
    host.device("block/cciss!c0d0")
    assert physical_disks(["cciss/c0d0", "cciss/c0d0p1"], host.sysfs) == {"cciss/c0d0"}


def test_network_traffic_and_an_interface_that_comes_later(host: Host) -> None:
    host.device("class/net/eth0")
    host.network(lo=10**9, eth0=1000)
    sensor = host.sensor()
    look(sensor, 0)
    host.network(lo=10**10, eth0=2000)
    sample = look(sensor, 5)
    assert (sample.network_receive_bytes_per_s, sample.network_send_bytes_per_s) == (200, 400)
    host.device("class/net/eth1")
    host.network(lo=0, eth0=2000, eth1=500)
    assert look(sensor, 10).network_receive_bytes_per_s == 100
    host.network(lo=0, eth1=500)
    assert look(sensor, 15).network_receive_bytes_per_s is None


def test_limits_of_the_control_group(host: Host) -> None:
    groups = host.sysfs / "groups"
    host.put("self/cgroup", "0::/own\n")
    host.put("self/mountinfo", f"1 0 0:1 / {groups} rw - cgroup2 cgroup2 rw\n")
    (groups / "own").mkdir(parents=True)
    files = {"memory.max": "9", "memory.current": "8", "memory.events": "oom_kill 1", "cpu.max": "50000 100000"}
    for name, text in files.items():
        (groups / "own" / name).write_text(text)
    (groups / "own" / "cpu.stat").write_text("nr_throttled 100\n")
    sensor = host.sensor()
    first = look(sensor, 0)
    assert (first.cgroup_memory_bytes, first.cgroup_memory_limit_bytes, first.oom_kill_count) == (8, 9, 1)
    assert (first.cgroup_cpu_limit, first.cgroup_throttled_percent) == (0.5, None)
    (groups / "own" / "cpu.stat").write_text("nr_throttled 120\n")
    assert look(sensor, 5).cgroup_throttled_percent == pytest.approx(40)
    (groups / "own" / "cpu.stat").write_text("nr_throttled 999\n")
    assert look(sensor, 10).cgroup_throttled_percent == 100


def test_the_control_group_is_that_of_the_run_once_it_has_another(host: Host) -> None:
    """Its count of kills goes on where that of the first group was; an ended process leaves the last group."""
    groups = host.sysfs / "groups"
    host.put("self/mountinfo", f"1 0 0:1 / {groups} rw - cgroup2 cgroup2 rw\n")
    host.put("self/cgroup", "0::/own\n")
    host.put("7/cgroup", "0::/job\n")

    def put(group: str, limit: int, kills: int) -> None:
        (groups / group).mkdir(parents=True, exist_ok=True)
        for name, text in {"memory.max": str(limit), "memory.events": f"oom_kill {kills}"}.items():
            (groups / group / name).write_text(text)

    put("own", 9, 1)
    put("job", 5, 40)
    sensor = host.sensor()
    seen = [look(sensor, 0), look(sensor, 5, pid=7)]
    put("job", 5, 42)
    seen += [look(sensor, 10, pid=7), look(sensor, 15, pid=8), look(sensor, 20)]
    assert [(one.cgroup_memory_limit_bytes, one.oom_kill_count) for one in seen] == [(9, 1), (5, 1), *[(5, 3)] * 3]


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ([5], [None]),
        ([5, 15, 15], [None, 2, 0]),
        ([5, 4, 9], [None, None, 1]),
        ([5, None, 15, 20], [None, None, None, 1]),
        ([None, 5], [None, None]),
    ],
)
def test_rates(values: list[float | None], rates: list[float | None]) -> None:
    found = Rates()
    assert [found.per_s("x", 5 * number, value) for number, value in enumerate(values)] == rates


def test_two_looks_at_the_same_time_tell_no_rate() -> None:
    rates = Rates()
    assert [rates.per_s("x", mono, value) for mono, value in ((0, 1), (0, 2), (1, 3))] == [None, None, 1]


@given(st.lists(st.integers(0, 100)))
def test_a_rate_is_never_negative(values: list[int]) -> None:
    rates = Rates()
    assert all((rates.per_s("x", mono, value) or 0) >= 0 for mono, value in enumerate(values))


def test_what_the_processes_of_the_run_read() -> None:
    sensor = HostSensor()
    assert look(sensor, 0, 1000).model_read_bytes_per_s is None
    assert look(sensor, 5, 6000).model_read_bytes_per_s == 1000
    assert look(sensor, 10, 100).model_read_bytes_per_s is None


# --- where the model lies ---------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """`nfs` stands for a mount that does not answer: whoever follows the links in it ends up in `touched`."""
    for folder in ("local/cache", "local/inner", "nfs", "touched", "auto"):
        (tmp_path / folder).mkdir(parents=True)
    for link, target in {
        "to_nfs": tmp_path / "nfs" / "hub",
        "nfs/hub": tmp_path / "touched",
        "local/up": "../nfs/hub",
        "local/chain": "up",
        "local/absolute": tmp_path / "local" / "inner",
        "local/loop": "loop",
        "auto/hub": tmp_path / "touched",
    }.items():
        (tmp_path / link).symlink_to(target)
    return tmp_path


def mountinfo(places: Path) -> str:
    kinds = {"/": "ext4", f"{places}/nfs": "nfs4", f"{places}/local/cache": "xfs", f"{places}/auto": "autofs"}
    return "\n".join(f"1 0 0:1 / {point} rw - {kind} source rw" for point, kind in kinds.items())


@pytest.mark.parametrize(
    ("path", "leads_to"),
    [
        ("local/inner", "local/inner"),
        ("local/not/there", "local/not/there"),
        ("local/absolute/m", "local/inner/m"),
        ("local/absolute/../cache", "local/cache"),
        ("nfs/hub/m", "nfs/hub/m"),
        ("to_nfs/m", "nfs/hub/m"),
        ("local/up/m/../n", "nfs/hub/n"),
        ("local/chain", "nfs/hub"),
        ("auto/hub/m", "auto/hub/m"),
        ("local/loop/m", "local/loop/m"),
    ],
)
def test_links_are_followed_only_as_far_as_they_are_local(places: Path, path: str, leads_to: str) -> None:
    assert follow(places / path, mountinfo(places)) == places / leads_to


@given(st.lists(st.sampled_from(["local", "chain", "to_nfs", "nfs", "hub", "..", "absolute", "loop", "auto", "x"])))
def test_nothing_that_may_not_answer_is_touched(parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        places = Path(name).resolve()
        for folder in ("local/inner", "nfs", "touched"):
            (places / folder).mkdir(parents=True)
        (places / "nfs" / "hub").symlink_to(places / "touched")
        (places / "to_nfs").symlink_to("nfs/hub")
        (places / "local" / "chain").symlink_to("../to_nfs")
        assert not follow(places.joinpath(*parts), mountinfo(places)).is_relative_to(places / "touched")


def test_a_model_behind_a_link_into_a_network_file_system(host: Host, places: Path) -> None:
    host.put("self/mountinfo", mountinfo(places))
    sensor = host.sensor()
    sample = sensor.sample(stamp(0), places / "to_nfs" / "models--org--m", None, None)
    assert sample.model_path == f"{places}/to_nfs/models--org--m"
    assert (sample.model_filesystem, sample.model_is_remote) == ("nfs4", True)
    sample = sensor.sample(stamp(5), places / "local" / "cache", None, None)
    assert (sample.model_filesystem, sample.model_is_remote) == ("xfs", False)


def test_what_is_mounted_later_is_seen(host: Host, places: Path) -> None:
    host.put("self/mountinfo", mountinfo(places))
    sensor = host.sensor()
    assert sensor.sample(stamp(0), places / "auto" / "m", None, None).model_filesystem == "autofs"
    host.put("self/mountinfo", mountinfo(places) + f"\n1 0 0:1 / {places}/auto/m rw - lustre source rw")
    assert sensor.sample(stamp(5), places / "auto" / "m", None, None).model_is_remote


# --- the real host ----------------------------------------------------------------------------------------------------


def test_this_host() -> None:
    sensor = HostSensor()
    look(sensor, 0)
    sample = look(sensor, 5)
    assert 0 < (sample.memory_used_bytes or 0) <= (sample.memory_total_bytes or 0)
    assert 0 <= (sample.swap_used_bytes or 0) <= (sample.swap_total_bytes or 0)
    assert sample.core_count == len(os.sched_getaffinity(0))
    percents = (sample.cpu_pressure_percent, sample.memory_pressure_percent, sample.io_pressure_percent)
    assert all(percent is None or 0 <= percent <= 100 for percent in percents)
    assert all(value is None or value >= 0 for value in rates_of(sample).values())
    assert decode(encode(sample)) == sample


def test_no_rate_in_the_first_sample() -> None:
    assert set(rates_of(look(HostSensor(), 0, 5)).values()) == {None}


def rates_of(sample: HostSampled) -> dict[str, Any]:
    names = [name for name in sample.__struct_fields__ if name.endswith("_per_s")]
    return {name: getattr(sample, name) for name in [*names, "cpu_percent", "cgroup_throttled_percent"]}


def test_a_busy_core_is_seen() -> None:
    sensor = HostSensor()
    look(sensor, 0)
    began_s = sum(os.times()[:2])
    while sum(os.times()[:2]) < began_s + 0.1:
        pass
    assert 0 < (look(sensor, 5).cpu_percent or 0) <= 100


def test_what_is_written_to_a_disk_is_seen(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    if not Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").exists():
        pytest.skip(f"{tmp_path} lies on no block device, such as in a container or on tmpfs")
    sensor = HostSensor()
    look(sensor, 0)
    with (tmp_path / "file").open("wb") as file:
        file.write(os.urandom(8 * MIB))
        file.flush()
        os.fsync(file.fileno())
    assert (look(sensor, 1).disk_write_bytes_per_s or 0) >= 8 * MIB


@pytest.fixture
def shm_file() -> Iterator[Any]:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        yield file


def test_shared_memory_is_seen(shm_file: Any, wait_for: WaitFor) -> None:
    shm_file.write(bytes(4 * MIB))
    shm_file.flush()
    sample = look(HostSensor(), 0)
    assert 4 * MIB <= (sample.shm_used_bytes or 0) <= (sample.shm_total_bytes or 0)
    # others write there, too
    wait_for(lambda: look(HostSensor(), 0).shm_used_bytes == shutil.disk_usage("/dev/shm").used)


def test_a_download_is_seen(tmp_path: Path, wait_for: WaitFor) -> None:
    (tmp_path / "models--org--m" / "blobs").mkdir(parents=True)
    file = tmp_path / "models--org--m" / "blobs" / "etag.1a2b3c4d.incomplete"
    file.write_bytes(bytes(MIB))
    sensor, samples = HostSensor(), []

    def sample() -> HostSampled:
        samples.append(sensor.sample(stamp(len(samples)), None, tmp_path, None, "org/m"))
        return samples[-1]

    wait_for(lambda: sample().download_bytes == MIB)
    file.write_bytes(bytes(3 * MIB))
    wait_for(lambda: sample().download_bytes == 3 * MIB)
    assert (samples[-1].download_bytes_per_s or 0) > 0
    assert samples[0].download_bytes is None
