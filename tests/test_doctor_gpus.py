"""`vllm-tui doctor` and the NVIDIA driver: real looks and processes, a driver that answers from a scenario."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.doctor_host import quieten
from tests.fake_nvml.driver import FakeDriver
from vllm_probes.doctor import examine
from vllm_probes.doctor.check import Check
from vllm_probes.doctor.facts import GpuFacts
from vllm_probes.doctor.judges.gpus import judge_driver
from vllm_probes.doctor.looking import Silence, look
from vllm_probes.doctor.looks.gpus import module_version

REFUSAL = "gpu 0 refuse nvmlDeviceGetEnforcedPowerLimit 999"

pytest_plugins = ["tests.fake_nvml.fixtures"]


@pytest.fixture(autouse=True)
def _quiet(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quieten(monkeypatch)


def examined(timeout_s: float = 5.0) -> dict[str, Check]:
    return {check.id: check for check in examine(timeout_s)}


def looked() -> GpuFacts | Silence:
    answer = look({"gpus": GpuFacts}, 10.0)["gpus"]
    assert isinstance(answer, GpuFacts | Silence)
    return answer


def test_a_driver_that_works(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver.write("gpus 4", "driver 570.86.15", "cuda 12080", "gpu 3 name NVIDIA T4", REFUSAL)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,4")
    checks = examined()
    assert checks["driver"].outcome == "ok"
    expected = "Driver 570.86.15, for CUDA up to 12.8, with 4 GPUs (NVIDIA H100 80GB HBM3, NVIDIA T4)."
    assert checks["driver"].what == expected
    assert checks["visible-devices"].what == "It is '0,4': '4' names no GPU; CUDA sees 1 of 4 GPUs."


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("init 9", "modprobe nvidia"),
        ("init 18", "sudo reboot"),
        ("init 4", "ls -l /dev/nvidia*"),
        ("init 999", "dmesg"),
        ("gpus 0", "nvidia-smi -L"),
        ("gpu 0 lost 15", "until it is reset"),
    ],
)
def test_a_driver_that_cannot_be_used(fake_driver: FakeDriver, scenario: str, said: str) -> None:
    fake_driver.write(scenario)
    found = looked()
    assert isinstance(found, GpuFacts)
    check = judge_driver(found)
    assert check.outcome == "problem"
    assert said in check.means + check.fix


def test_a_driver_that_crashes_whoever_asks(fake_driver: FakeDriver) -> None:
    fake_driver.write("crash nvmlDeviceGetName")
    assert looked() == Silence(f"The look at it was killed by signal {signal.SIGABRT:d}.")


def test_a_driver_that_never_answers(fake_driver: FakeDriver) -> None:
    fake_driver.write("hang nvmlInitWithFlags", "gpus 2")
    checks = examined(1.5)
    assert (checks["driver"].outcome, checks["driver"].what) == ("unknown", "It did not answer within 1.5 s.")
    assert "dmesg" in checks["driver"].fix
    assert checks["visible-devices"].outcome == "unknown"
    assert not [child for child in psutil.Process().children() if "gpus" in child.cmdline()]


def test_the_version_of_the_kernel_module(tmp_path: Path) -> None:
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\nGCC version:  gcc 12.3.0\n"
    (tmp_path / "version").write_text(text)
    assert module_version(tmp_path / "version") == "570.86.15"
    (tmp_path / "version").write_text("")
    assert module_version(tmp_path / "version") is None
    assert module_version(tmp_path / "none") is None
