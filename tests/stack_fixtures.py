"""Fixtures for tests of stacks: `pytest_plugins = ["tests.stack_fixtures"]` in the module that wants them."""

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from signal import SIGUSR2

import pytest

from tests.conftest import Spawn, WaitFor
from tests.hooked import TWO_WAIT, Fake, Process, Settle, Start, Two, said
from tests.test_hook import environment
from vllm_probes.sensors.py_spy import find_py_spy
from vllm_probes.sensors.threads import signal_state, switch_count


@pytest.fixture
def started(spawned: Spawn) -> Start:
    """`started(code)`: a hooked Python that runs it."""

    def start(code: str, *arguments: str, python: str = sys.executable, hook: bool = True) -> Process:
        return spawned([python, "-c", code, *arguments], env=environment(hook=hook), stdout=subprocess.PIPE)

    return start


@pytest.fixture
def settle(wait_for: WaitFor) -> Settle:
    """`settle(process, threads)` waits until these have slept for as long as a dump looks at them, and longer: not for
    a page of a library that comes from a slow disk, in which they are in state D."""

    def wait(process: Process, threads: Collection[int]) -> None:
        last: dict[int, list[int | None]] = {thread: [] for thread in threads}

        def have_come_to_rest() -> bool:
            for thread, counts in last.items():
                is_asleep = signal_state(process.pid, thread, SIGUSR2).state == "S"
                counts.append(switch_count(process.pid, thread) if is_asleep else None)
            return all(
                len(counts) > 5 and counts[-1] is not None and set(counts[-5:]) == {counts[-1]}
                for counts in last.values()
            )

        wait_for(have_come_to_rest, 30)

    return wait


@pytest.fixture
def two(started: Start, settle: Settle) -> Two:
    """`two(code)`: a process whose main thread has said something and rests, and the id of another one that does."""

    def start(code: str = TWO_WAIT, *arguments: str, python: str = sys.executable) -> tuple[Process, int]:
        process = started(code, *arguments, python=python)
        [other] = said(process)
        settle(process, [process.pid, other])
        return process, other

    return start


@pytest.fixture
def fake_py_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """`fake_py_spy(script)` puts a shell script in py-spy's place. It finds the real one in $REAL, its own folder in
    $HERE, and the pid that it is asked for in $5."""
    monkeypatch.setenv("REAL", str(find_py_spy()))
    monkeypatch.setenv("HERE", str(tmp_path))

    def install(script: str) -> None:
        (tmp_path / "py-spy").write_text(f"#!/bin/sh\n{script}")
        (tmp_path / "py-spy").chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    return install
