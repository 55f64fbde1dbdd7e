"""GPUs and a relaunch that waits, in a real terminal: real keeper, real binding, a fake driver library below it."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Open
from tests.fake_nvml.driver import FakeDriver
from tests.terminal import Terminal

pytest_plugins = ["tests.fake_nvml.fixtures"]

GIB = 1 << 30


@pytest.fixture
def eight(fake_driver: FakeDriver) -> Callable[..., None]:
    """Eight GPUs at work; settings of single ones on top."""

    def write(*settings: str) -> None:
        work = ("gpu * busy 98", "gpu * milliwatts 540000", "gpu * celsius 64")
        fake_driver.write("gpus 8", f"gpu * used {71 * GIB}", *work, *settings)

    write()
    return write


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 36), (200, 50)])
def test_what_happens_to_the_gpus_is_seen(
    open_terminal: Open, eight: Callable[..., None], columns: int, rows: int
) -> None:
    terminal: Terminal = open_terminal("--", "sleep", "100", columns=columns, rows=rows)
    narrow = columns == 80
    terminal.wait("8 GPUs ████████" if narrow else "8 × H100 80GB HBM3")
    terminal.wait("71.0G of 80.0G" if narrow else "71/80G    98%  540W  64°C")
    eight("gpu * busy 100", "gpu * milliwatts 118000", "gpu 3 busy 0", "gpu 3 milliwatts 82000")
    terminal.wait("3: idle, others busy" if narrow else "▲ 3")
    eight("gpu 5 lost 15")
    terminal.wait("GPU is lost")
    eight()
    terminal.wait(lambda text: "GPU is lost" not in text and "98" in text)
    terminal.type("q")
    terminal.wait("still runs")
    terminal.type("s")
    assert terminal.wait_end() in (0, 130)


def test_a_driver_that_never_returns_stops_nobody(open_terminal: Open, eight: Callable[..., None]) -> None:
    terminal: Terminal = open_terminal("--", "sleep", "100")
    terminal.wait("8 × H100")
    eight("hang nvmlDeviceGetUtilizationRates")
    terminal.wait("the driver has not answered for")
    terminal.type("?")
    terminal.wait("go to the next error")
    terminal.type("q")
    terminal.wait("the driver has not answered for")
    terminal.type("q")
    terminal.wait("still runs")
    terminal.type("s")
    assert terminal.wait_end() in (0, 130)


def test_a_relaunch_waits_for_the_port_and_starts_when_it_is_free(
    open_terminal: Open, state_home: Path, tmp_path: Path
) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho attempt; exec sleep 100\n")
    program.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        terminal: Terminal = open_terminal("--", str(program), "serve", "m", "--port", str(port))
        terminal.wait("attempt 1")
        terminal.type("R")
        terminal.wait("Relaunch the same again?")
        terminal.type("\r")
        terminal.wait(f"Waits for port {port}")
        terminal.wait(f"({os.getpid()}")
    terminal.wait("attempt 2")
    terminal.wait(lambda text: "Waits for" not in text)
