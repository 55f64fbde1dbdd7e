"""The program that asks the driver hangs, dies or says nonsense, and how the sensor lives with it."""

import itertools
import os
import shlex
import signal
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Spawn, WaitFor
from tests.fake_nvml.driver import FakeDriver
from tests.fake_nvml.watched import Watched
from tests.test_architecture import loaded_by
from vllm_probes.rows import GpuRow
from vllm_probes.sensors import nvml
from vllm_probes.sensors.gpu import COMMAND, GpuSample
from vllm_probes.sensors.gpu_lines import Looked, Opened, encode
from vllm_probes.sensors.tree import is_running, state_letter

pytest_plugins = ["tests.fake_nvml.fixtures"]

ANSWER = (Opened(driver="570", cuda="12.8"), Looked(rows=[GpuRow(index=0, busy_percent=5)]))


def test_a_silent_program_is_told_and_ended_after_five_seconds(
    watch_gpus: Callable[..., Watched], wait_for: WaitFor
) -> None:
    lines = shlex.quote(b"".join(map(encode, ANSWER)).decode())
    watched = watch_gpus("sh", "-c", f"printf %s {lines}; exec sleep inf")
    sensor = watched.sensor
    first: list[Any] = wait_for(lambda: sensor.sample(100.0))
    assert [sample.status for sample in first] == ["ok"]
    (pid,) = watched.programs()
    assert sensor.sample(104.9) == []
    assert is_running(pid)
    (silent,) = sensor.sample(105.0)
    assert isinstance(silent, GpuSample)
    assert (silent.status, silent.answered_mono, silent.rows) == ("silent", 100.0, first[0].rows)
    wait_for(lambda: not is_running(pid))


@pytest.mark.parametrize("lines", [(), ANSWER[:1], ANSWER + ANSWER[:1]], ids=["first", "opened", "opened anew"])
def test_a_driver_gets_a_minute_to_open(
    watch_gpus: Callable[..., Watched], wait_for: WaitFor, tmp_path: Path, lines: tuple[Opened | Looked, ...]
) -> None:
    text = shlex.quote(b"".join(map(encode, lines)).decode())
    watched = watch_gpus("sh", "-c", f"printf %s {text}; touch {tmp_path}/said; exec sleep inf")
    sensor = watched.sensor
    wait_for((tmp_path / "said").exists)
    sensor.sample(100.0)
    (pid,) = watched.programs()
    (silent,) = sensor.sample(106.0)
    assert isinstance(silent, GpuSample)
    assert (silent.status, silent.answered_mono) == ("silent", 100.0 if lines else None)
    assert sensor.sample(159.9) == []
    assert is_running(pid)
    sensor.sample(160.0)
    wait_for(lambda: not is_running(pid))


@pytest.mark.parametrize("function", ["nvmlDeviceGetPowerUsage", "nvmlEventSetWait_v2"])
def test_after_a_call_that_never_returned_a_new_program_answers(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched], function: str
) -> None:
    watched = watch_gpus()
    watched.until(lambda sample: sample.status == "ok")
    fake_driver.write(f"hang {function}")
    watched.until(lambda sample: sample.status == "silent", step_s=0.2)
    fake_driver.write("gpu 0 busy 77")
    watched.until(lambda sample: sample.status == "ok" and sample.rows[0].busy_percent == 77, step_s=0.1)
    assert len(watched.pids) == 2


def test_a_program_that_cannot_be_killed_has_no_successor_until_it_is_gone(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched], wait_for: WaitFor
) -> None:
    watched = watch_gpus()
    watched.until(lambda sample: sample.status == "ok")
    (stuck,) = watched.pids
    fake_driver.write("hang_unkillable nvmlDeviceGetPowerUsage")
    wait_for(lambda: state_letter(stuck) == "D")
    tracer = next(child.pid for child in psutil.Process(stuck).children() if tracer_pid(stuck) == child.pid)
    sample = watched.until(lambda sample: "cannot be killed" in (sample.reason or ""), step_s=0.5)
    assert sample.status == "silent"
    assert f"pid {stuck}" in (sample.reason or "")
    fake_driver.write("gpu 0 busy 50")
    for _ in range(20):
        watched.ahead_s += 60
        watched.look()
    assert (watched.pids, is_running(stuck), watched.latest.status) == ([stuck], True, "silent")
    os.kill(tracer, signal.SIGKILL)
    watched.until(lambda sample: sample.status == "ok", step_s=0.1)
    assert len(watched.pids) == 2
    assert watched.latest.rows[0].busy_percent == 50


def tracer_pid(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("TracerPid:")[2].split()[0])


def test_closing_does_not_wait_for_a_program_that_cannot_be_killed(
    fake_driver: FakeDriver, watch_gpus: Callable[..., Watched], wait_for: WaitFor
) -> None:
    fake_driver.write("hang_unkillable nvmlDeviceGetPowerUsage")
    watched = watch_gpus()
    watched.look()
    (stuck,) = watched.pids
    wait_for(lambda: state_letter(stuck) == "D")
    watched.sensor.close()
    assert is_running(stuck)
    assert watched.sensor.sample(time.monotonic() + 3600) == []


def test_a_program_that_dies_is_started_again_with_growing_pauses(
    watch_gpus: Callable[..., Watched], wait_for: WaitFor, tmp_path: Path
) -> None:
    (tmp_path / "starts").touch()
    watched = watch_gpus("sh", "-c", f"echo >> {tmp_path}/starts; kill -SEGV $$")
    starts: dict[int, float] = {}
    for tick in range(300):
        mono = tick / 2
        watched.sensor.sample(mono)
        wait_for(lambda: not watched.programs())
        starts.setdefault(len((tmp_path / "starts").read_text()), mono)
    times = list(starts.values())
    pauses = [after - before - 0.5 for before, after in itertools.pairwise(times)]  # seen dead at next tick
    assert pauses[1:] == [2, 4, 8, 16, 32, 60]  # the first one may have been dead before the first tick


def test_a_program_that_has_answered_for_long_is_started_again_at_once(
    watch_gpus: Callable[..., Watched], wait_for: WaitFor, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "lines")
    watched = watch_gpus("cat", str(tmp_path / "lines"))
    sensor = watched.sensor

    def end(mono: float) -> None:
        os.kill(watched.programs()[0], signal.SIGSEGV)
        wait_for(lambda: not watched.programs())
        sensor.sample(mono)

    end(mono=10.0)
    sensor.sample(11.0)
    with open(tmp_path / "lines", "wb", buffering=0) as lines:
        for mono in range(12, 73, 4):  # never silent for too long
            lines.write(encode(ANSWER[1]))
            wait_for(lambda mono=mono: sensor.sample(mono))
        end(mono=80.0)
    sensor.sample(80.9)
    assert watched.programs() == []
    sensor.sample(81.0)
    assert len(watched.programs()) == 1


def test_a_crash_is_told_with_its_signal(fake_driver: FakeDriver, watch_gpus: Callable[..., Watched]) -> None:
    watched = watch_gpus()
    watched.until(lambda sample: sample.status == "ok")
    fake_driver.write("crash nvmlDeviceGetName")
    sample = watched.until(lambda sample: sample.status == "failed")
    assert "died (Aborted)" in (sample.reason or "")
    fake_driver.write("gpus 2")
    watched.until(lambda sample: sample.status == "ok" and len(sample.rows) == 2, step_s=0.1)


def test_a_program_that_cannot_be_started_is_told(watch_gpus: Callable[..., Watched], tmp_path: Path) -> None:
    sample = watch_gpus(str(tmp_path / "nothing")).look()
    assert sample.status == "failed"
    assert "cannot be started" in (sample.reason or "")


def test_torn_and_foreign_lines_are_skipped(watch_gpus: Callable[..., Watched]) -> None:
    text = encode(ANSWER[1]).decode()
    torn = f"printf '%s' {shlex.quote(text[:20])}; sleep 0.2; printf '%s' {shlex.quote(text[20:])}"
    noise = r"""printf 'hello\n{"line":"looked"}\n{"line":"who"}\n\377\376\n[]\n{"line":"looked","rows":[{"i\n'"""
    sample = watch_gpus("sh", "-c", f"{noise}; {torn}; sleep inf").until(lambda sample: sample.status == "ok")
    assert sample.rows == ANSWER[1].rows


def test_a_line_without_end_is_not_kept(watch_gpus: Callable[..., Watched], wait_for: WaitFor) -> None:
    text = shlex.quote(encode(ANSWER[1]).decode())
    sensor = watch_gpus("sh", "-c", f"head -c 12000000 /dev/zero; echo; printf %s {text}; sleep inf").sensor
    tracemalloc.start()
    wait_for(lambda: sensor.sample(0.0))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10e6


# --- the program itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["gpus 1", "hang nvmlDeviceGetName", "hang nvmlInitWithFlags"])
def test_the_program_ends_when_nobody_reads_it(
    fake_driver: FakeDriver, spawned: Spawn, wait_for: WaitFor, scenario: str
) -> None:
    fake_driver.write(scenario, f"calls {fake_driver.calls_path}")
    reader, writer = os.pipe()
    program = spawned(COMMAND, stdout=writer)
    os.close(writer)
    wait_for(fake_driver.calls_path.exists, 30)
    os.close(reader)
    assert program.wait(30) == 0


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("nvml", {"asyncio", "psutil", "httpx", "textual", "watchdog", "prometheus_client"}),
        ("gpu", {"pynvml", "ctypes"}),
        ("gpu_lines", {"pynvml", "ctypes", "asyncio"}),
    ],
)
def test_only_the_program_loads_the_binding_and_little_else(module: str, unwanted: set[str]) -> None:
    assert not loaded_by(f"import vllm_probes.sensors.{module}") & unwanted


@pytest.mark.parametrize(("now", "due"), [(10.0, 11.0), (10.9, 11.0), (11.0, 12.0), (14.5, 15.5)])
def test_ticks_do_not_drift_and_never_follow_at_once(now: float, due: float) -> None:
    assert nvml.next_tick(10.0, now) == due
