"""GPUs in a session: a real keeper, a real command, the real binding, and a fake driver library below it."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Spawn, WaitFor
from tests.fake_nvml.driver import FakeDriver
from tests.kept import View, started
from vllm_probes import commands
from vllm_probes.events import AttemptStarted, GateChanged, GpuFaulted, GpusSampled, TreeEnded
from vllm_probes.keeper.client import connect
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.sensors.tree import command_line, is_running

pytest_plugins = ["tests.fake_nvml.fixtures"]

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _own_state(state_home: Path, spawned: Spawn) -> None:
    """None of the user's sessions, and no keeper that outlives the test."""


async def kept(*argv: str) -> AsyncIterator[tuple[SessionFolder, View]]:
    folder, _ = started(list(argv), "night")
    view = View(await connect(folder))
    yield folder, view
    await view.close()


@pytest.fixture
async def session(fake_driver: FakeDriver) -> AsyncIterator[tuple[SessionFolder, View]]:
    """Two GPUs and a command that sleeps."""
    fake_driver.write("gpus 2", f"gpu * used {GIB}")
    async for one in kept("sleep", "100"):
        yield one


async def first_sample(view: View) -> GpusSampled:
    return await view.until(GpusSampled, lambda event: len(event.rows) == 2)


async def test_memory_of_the_run_before_is_waited_for_and_its_holder_named(
    session: tuple[SessionFolder, View], fake_driver: FakeDriver, spawned: Spawn
) -> None:
    _, view = session
    await first_sample(view)
    orphan = spawned(["bash", "-c", "exec -a VLLM::Worker_TP1 sleep 100"])
    fake_driver.write("gpus 2", f"gpu * used {GIB}", f"gpu 1 used {61 * GIB}", f"gpu 1 process compute {orphan.pid} 9")
    named = await view.until(GpusSampled, lambda event: any(row.processes for row in event.rows))
    (process,) = [one for row in named.rows for one in row.processes or ()]
    assert (process.pid, process.process) == (orphan.pid, "Worker_TP1")
    assert process.user == psutil.Process(orphan.pid).username()
    assert (await view.ask(commands.Relaunch(id=1)))[0]
    (hold,) = (await view.until(GateChanged, lambda event: bool(event.holds))).holds
    assert (hold.kind, hold.what) == ("gpu_memory", "GPU 1: 60.0G more in use than before the run")
    assert (hold.pid, hold.process, hold.hint) == (orphan.pid, "Worker_TP1", f"kill {orphan.pid} ends it")
    fake_driver.write("gpus 2", f"gpu * used {GIB}")
    assert (await view.until(AttemptStarted, lambda event: event.attempt == 2)).attempt == 2


async def test_an_xid_comes_through(session: tuple[SessionFolder, View], fake_driver: FakeDriver) -> None:
    _, view = session
    await first_sample(view)
    fake_driver.write("gpus 2", "xid 1 79")
    fault = await view.until(GpuFaulted)
    assert (fault.index, fault.xid) == (1, 79)
    assert fault.meaning


async def test_a_keeper_does_not_wait_for_a_driver_that_hangs_for_ever(
    session: tuple[SessionFolder, View], fake_driver: FakeDriver, wait_for: WaitFor
) -> None:
    folder, view = session
    await first_sample(view)
    program = program_of(folder)
    fake_driver.write("gpus 2", "hang_unkillable nvmlDeviceGetPowerUsage")
    silent = await view.until(GpusSampled, lambda event: event.status == "silent")
    assert silent.answered_mono is not None
    assert (await view.ask(commands.Stop(id=1)))[0]
    await view.until(TreeEnded)
    await view.close()
    wait_for(lambda: not folder.has_keeper(), 20)
    assert is_running(program)


def program_of(folder: SessionFolder) -> int:
    """The process that asks the driver for the keeper of a session."""
    (keeper,) = [pid for pid in psutil.pids() if command_line(pid)[2:4] == ["vllm_probes.keeper", str(folder.path)]]
    (program,) = [child for child in psutil.Process(keeper).children() if "vllm_probes.sensors.nvml" in child.cmdline()]
    return program.pid


async def test_a_host_without_a_driver_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    async for _, view in kept(sys.executable, "-c", "import time; time.sleep(100)"):
        said = await view.until(GpusSampled)
        assert (said.status, said.rows, said.cards) == ("absent", [], [])
