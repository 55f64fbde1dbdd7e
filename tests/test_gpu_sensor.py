"""What is read of a driver, by the real program and the real binding on a fake driver library."""

from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from tests.fake_nvml.driver import LIBRARY, FakeDriver
from tests.fake_nvml.watched import Watched, quick
from vllm_probes.rows import GpuCard, GpuProcess, GpuRow
from vllm_probes.sensors import nvml
from vllm_probes.sensors.gpu import COMMAND, GpuXid, xid_meanings

pytest_plugins = ["tests.fake_nvml.fixtures"]

GIB = 1 << 30


# --- what is read of the driver ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 8, 16])
def test_every_gpu_is_told_with_its_card(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched], count: int
) -> None:
    last = count - 1
    fake_driver.write(
        *(f"gpus {count}", "gpu * reserved 600000000", "gpu * busy 7", f"gpu {last} used {71 * GIB}"),
        *(f"gpu {last} busy 99", f"gpu {last} memory_busy 45", f"gpu {last} milliwatts 612345"),
        *(f"gpu {last} celsius 71", f"gpu {last} megahertz 1755", f"gpu {last} reasons 4", f"gpu {last} mig 1"),
        *("driver 570.86.10", "cuda 12080", f"gpu {last} process compute 4711 {70 * GIB}"),
    )
    sample = watch_gpus().until(lambda sample: sample.status == "ok")
    assert (sample.driver, sample.cuda) == ("570.86.10", "12.8")
    assert [row.index for row in sample.rows] == [card.index for card in sample.cards] == list(range(count))
    assert [row.busy_percent for row in sample.rows] == [7] * last + [99]
    assert sample.rows[last] == GpuRow(
        index=last,
        used_bytes=71 * GIB,
        busy_percent=99,
        memory_busy_percent=45,
        power_w=612.345,
        temperature_c=71,
        sm_clock_mhz=1755,
        throttle=["power cap"],
        processes=[GpuProcess(pid=4711, used_bytes=70 * GIB)],
    )
    assert sample.cards[last] == GpuCard(
        index=last,
        uuid=f"GPU-{last:08x}-0000-0000-0000-000000000000",
        name="NVIDIA H100 80GB HBM3",
        bus_id=f"00000000:{16 + last:02X}:00.0",
        total_bytes=80 * GIB,
        power_limit_w=700,
        mig=True,
    )


def test_an_old_driver_answers_by_its_older_functions(
    fake_driver: FakeDriver,
    nvml_libraries: dict[str, Path],
    watch_gpus: Callable[..., Watched],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It counts what the driver keeps for itself as used."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_libraries["old"]))
    fake_driver.write(
        *("gpu 0 used 5000", "gpu 0 reserved 300", "gpu 0 celsius 55", "gpu 0 reasons 128"),
        *("gpu 0 process compute 10 5000", "gpu 0 process mps 11 6000"),
    )
    (row,) = watch_gpus().rows(lambda rows: rows)
    assert (row.used_bytes, row.temperature_c, row.throttle) == (5300, 55, ["power brake"])
    assert row.processes == [GpuProcess(pid=10, used_bytes=5000), GpuProcess(pid=11, used_bytes=6000)]


@pytest.mark.parametrize(
    ("functions", "field"),
    [
        (["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"], "used_bytes"),
        (["nvmlDeviceGetUtilizationRates"], "busy_percent"),
        (["nvmlDeviceGetPowerUsage"], "power_w"),
        (["nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"], "temperature_c"),
        (["nvmlDeviceGetClockInfo"], "sm_clock_mhz"),
        (
            [
                f"nvmlDeviceGet{kind}RunningProcesses_v{version}"
                for kind in ("Compute", "Graphics", "MPSCompute")
                for version in (2, 3)
            ],
            "processes",
        ),
    ],
)
def test_what_a_gpu_does_not_support_is_unknown_and_not_asked_again(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched], functions: list[str], field: str
) -> None:
    fake_driver.write(
        *("gpus 2", f"calls {fake_driver.calls_path}"),
        *(f"gpu 0 refuse {function} {pynvml.NVML_ERROR_NOT_SUPPORTED}" for function in functions),
    )
    watched = watch_gpus()
    without, other = watched.rows(lambda rows: rows)
    assert getattr(without, field) is None
    assert getattr(other, field) is not None
    assert without.error is None
    watched.until(lambda _: fake_driver.calls("nvmlDeviceGetUUID", 1) >= 4)
    assert [fake_driver.calls(function, 0) for function in functions] == [1] * len(functions)


def test_what_was_not_supported_is_asked_again_after_a_while(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]
) -> None:
    fake_driver.write(f"refuse nvmlDeviceGetUtilizationRates {pynvml.NVML_ERROR_NOT_SUPPORTED}")
    watched = watch_gpus(*quick(forget_every=10))
    watched.rows(lambda rows: rows[0].busy_percent is None)
    fake_driver.write("gpu 0 busy 9")
    watched.rows(lambda rows: rows[0].busy_percent == 9)


def test_a_call_that_fails_once_takes_nothing_along_and_is_made_again(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]
) -> None:
    fake_driver.write(f"refuse nvmlDeviceGetPowerUsage {pynvml.NVML_ERROR_UNKNOWN}", "gpu 0 busy 3")
    watched = watch_gpus()
    (row,) = watched.rows(lambda rows: rows)
    assert (row.power_w, row.busy_percent, row.error) == (None, 3, None)
    fake_driver.write("gpu 0 milliwatts 90000")
    watched.rows(lambda rows: rows[0].power_w == 90)


def test_a_name_of_broken_bytes_is_unknown(fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]) -> None:
    fake_driver.write("gpu 0 name \udcff\udcfe", "gpu 0 celsius 40")
    sample = watch_gpus().until(lambda sample: sample.status == "ok")
    assert (sample.cards[0].name, sample.rows[0].temperature_c) == (None, 40)


def test_a_process_in_several_lists_is_one(fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]) -> None:
    fake_driver.write(
        *("gpu 0 process compute 20 na", "gpu 0 process compute 21 7000", "gpu 0 process compute 22 na"),
        *("gpu 0 process graphics 21 7000", "gpu 0 process graphics 20 9000", "gpu 0 process mps 21 na"),
    )
    (row,) = watch_gpus().rows(lambda rows: rows)
    assert row.processes == [
        GpuProcess(pid=20, used_bytes=9000),
        GpuProcess(pid=21, used_bytes=7000),
        GpuProcess(pid=22),
    ]


# --- lost GPUs --------------------------------------------------------------------------------------------------------

HEALTHY = ("gpus 3", "gpu * used 4096")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, "GPU is lost"),
        (pynvml.NVML_ERROR_RESET_REQUIRED, "GPU requires restart"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
    ],
)
def test_a_gpu_is_lost_and_comes_back_while_the_others_go_on(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched], code: int, words: str
) -> None:
    fake_driver.write(*HEALTHY)
    watched = watch_gpus()
    cards = watched.until(lambda sample: sample.status == "ok").cards
    fake_driver.write(*HEALTHY, f"gpu 1 lost {code}", "gpu 2 busy 12")
    rows = watched.rows(lambda rows: rows[1].error and rows[2].busy_percent == 12)
    assert rows[1] == GpuRow(index=1, error=words)
    fake_driver.write(*HEALTHY, "gpu 2 busy 13")
    rows = watched.rows(lambda rows: rows[1].error is None and rows[2].busy_percent == 13)
    assert rows[1].used_bytes == 4096
    assert watched.latest.cards == cards


def test_a_gpu_that_is_lost_from_the_start_has_no_card_until_it_answers(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]
) -> None:
    fake_driver.write(*HEALTHY, "gpu 0 lost 15")
    watched = watch_gpus()
    watched.rows(lambda rows: [row.error for row in rows] == ["GPU is lost", None, None])
    assert [card.index for card in watched.latest.cards] == [1, 2]
    fake_driver.write(*HEALTHY)
    watched.rows(lambda rows: [row.error for row in rows] == [None] * 3)
    assert [card.index for card in watched.latest.cards] == [0, 1, 2]


def test_the_driver_is_opened_anew_for_a_gpu_that_was_reset(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]
) -> None:
    fake_driver.write(*HEALTHY, "gpu 1 stale")
    watched = watch_gpus(*quick(reopen_after=20))
    watched.rows(lambda rows: rows[1].error)
    fake_driver.write(*HEALTHY)
    watched.rows(lambda rows: rows[1].error is None)
    assert len(watched.pids) == 1


# --- Xids -------------------------------------------------------------------------------------------------------------


def test_an_xid_is_told_with_its_meaning_and_once_a_second(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]
) -> None:
    fake_driver.write(*HEALTHY, "xid 0 31")
    watched = watch_gpus(*COMMAND)
    watched.until(lambda sample: sample.status == "ok")
    fake_driver.write(*HEALTHY, "xid 0 31", "xid 2 79", *["xid 2 79"] * 30, "xid 1 99999")
    watched.until(lambda _: len(watched.xids) >= 2)
    assert watched.xids == [
        GpuXid(index=2, xid=79, meaning="GPU has fallen off the bus"),
        GpuXid(index=1, xid=99999),
    ]


def test_xids_of_the_other_gpus_come_while_one_is_lost(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]
) -> None:
    calls = f"calls {fake_driver.calls_path}"
    fake_driver.write(*HEALTHY)
    watched = watch_gpus()
    watched.until(lambda sample: sample.status == "ok")
    fake_driver.write(*HEALTHY, calls, "gpu 1 lost 15", "xid 1 79")
    watched.until(lambda sample: sample.rows[1].error and watched.xids)
    watched.until(lambda _: fake_driver.calls("nvmlDeviceRegisterEvents", 2))
    assert fake_driver.calls("nvmlDeviceRegisterEvents", 1) == 0
    fake_driver.write(*HEALTHY, calls, "gpu 1 lost 15", "xid 1 79", "xid 2 48")
    watched.until(lambda _: len(watched.xids) == 2)
    assert [(xid.index, xid.xid) for xid in watched.xids] == [(1, 79), (2, 48)]


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2"])
def test_without_event_sets_it_only_sleeps(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched], function: str
) -> None:
    fake_driver.write(f"refuse {function} {pynvml.NVML_ERROR_NOT_SUPPORTED}", f"calls {fake_driver.calls_path}")
    watched = watch_gpus()
    watched.until(lambda _: fake_driver.calls("nvmlDeviceGetPowerUsage", 0) >= 20)
    assert fake_driver.calls(function, -2) <= 8


def test_every_known_xid_has_a_few_words() -> None:
    assert {13, 31, 43, 45, 48, 63, 74, 79, 94, 95, 119} <= set(xid_meanings())
    assert all(xid > 0 and 0 < len(words) <= 100 and words[-1] != "." for xid, words in xid_meanings().items())


# --- no driver --------------------------------------------------------------------------------------------------------


def test_a_host_without_the_library_has_no_driver_and_is_not_asked_again(
    watch_gpus: Callable[..., Watched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LIBRARY).touch()  # the loader takes it before one that the host may have, and cannot load it
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    watched = watch_gpus()
    sample = watched.until(lambda sample: sample.status == "absent" and not watched.programs())
    assert sample.reason is not None
    assert sample.reason.startswith(nvml.NO_LIBRARY)
    before = list(watched.pids)
    watched.ahead_s += 3600
    watched.look()
    assert watched.pids == before


@pytest.mark.parametrize(
    ("scenario", "status", "words"),
    [
        ("gpus 0", "absent", "no NVIDIA GPU"),
        ("init 6", "absent", "no NVIDIA GPU"),
        ("init 18", "failed", "updated"),
        ("init 4", "failed", "ls -l /dev/nvidia"),
        ("init 999", "failed", "restart it"),
        ("init 17", "failed", "operating system has blocked"),
        ("refuse nvmlDeviceGetCount_v2 29", "failed", "error 29 of the fake driver"),
    ],
)
def test_a_driver_that_cannot_be_used_says_why_and_what_to_do(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched], scenario: str, status: str, words: str
) -> None:
    fake_driver.write(scenario)
    sample = watch_gpus().until(lambda sample: sample.status == status)
    assert words in (sample.reason or "")
    assert (sample.reason or "").endswith(".")


def test_a_driver_that_was_mended_is_found(fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]) -> None:
    fake_driver.write("init 18")
    watched = watch_gpus()
    watched.until(lambda sample: sample.status == "failed")
    fake_driver.write("gpus 1")
    watched.until(lambda sample: sample.status == "ok", step_s=0.1)
    assert watched.latest.reason is None


@pytest.mark.parametrize(("has_gpu", "status"), [(False, "absent"), (True, "failed")])
def test_a_driver_that_is_not_loaded_fails_only_where_there_is_a_gpu(has_gpu: bool, status: str) -> None:
    ended = nvml.explain(pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED), has_gpu=has_gpu)
    assert ended.status == status


def test_a_container_without_its_gpu_is_told_how_to_get_it() -> None:
    ended = nvml.explain(pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), has_gpu=True)
    assert (ended.status, "--gpus all" in ended.reason) == ("absent", True)


@pytest.mark.parametrize(
    ("devices", "has_gpu"),
    [
        ({}, False),
        ({"0000:17:00.0": ("0x10de", "0x030200")}, True),
        ({"0000:17:00.0": ("0x8086", "0x030000")}, False),
        ({"0000:06:00.0": ("0x10de", "0x068000")}, False),  # an NVSwitch
        ({"0000:06:00.0": ("0x8086", "0x060000"), "0000:17:00.0": ("0x10de", "0x030000")}, True),
    ],
)
def test_a_gpu_is_found_without_a_driver(tmp_path: Path, devices: dict[str, tuple[str, str]], has_gpu: bool) -> None:
    for address, (vendor, device_class) in devices.items():
        (tmp_path / address).mkdir()
        (tmp_path / address / "vendor").write_text(vendor + "\n")
        (tmp_path / address / "class").write_text(device_class + "\n")
    assert nvml.host_has_gpu(tmp_path) == has_gpu
