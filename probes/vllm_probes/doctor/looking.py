"""Looks at this host, every topic at the same time and in a process of its own: what hangs there hangs nothing here.

A driver, a dead file system and a name server can hold a process in the kernel where no signal reaches it. Such a
process is left behind.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import msgspec

from vllm_probes.doctor.facts import Facts

DIE_S = 0.2
"""How long killed looks may take to go."""


class Silence(msgspec.Struct, frozen=True):
    """A look that told nothing, and why: a sentence."""

    why: str


@dataclass
class _Look:
    process: "subprocess.Popen[bytes]"
    stdout: IO[bytes]
    stderr: IO[bytes]


def look(topics: Mapping[str, type[Facts]], timeout_s: float) -> dict[str, Facts | Silence]:
    """The facts of each topic (a module of `looks`), or why there are none within `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    looks = {topic: _begin(topic) for topic in topics}
    try:
        return {topic: _answer(looks[topic], kind, deadline, timeout_s) for topic, kind in topics.items()}
    finally:
        _end([one.process for one in looks.values() if isinstance(one, _Look)])


def _begin(topic: str) -> _Look | Silence:
    """Its output goes into files without a name: a pipe that nobody empties yet could fill up."""
    try:
        stdout, stderr = _nameless(), _nameless()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vllm_probes.doctor", topic],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    except OSError as error:  # no process or descriptor left
        return Silence(f"The look at it could not be started: {error.strerror}.")
    return _Look(process, stdout, stderr)


def _nameless() -> IO[bytes]:
    return os.fdopen(os.memfd_create("look"), "w+b")


def _answer(one: _Look | Silence, kind: type[Facts], deadline: float, timeout_s: float) -> Facts | Silence:
    if isinstance(one, Silence):
        return one
    with one.stdout, one.stderr:
        try:
            code = one.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Silence(f"It did not answer within {timeout_s:g} s.")
        if code < 0:
            return Silence(f"The look at it was killed by signal {-code}.")
        if code:
            return Silence(f"The look at it failed: {_last_line(one.stderr) or 'it does not say why.'}")
        return msgspec.convert(json.loads(_last_line(one.stdout)), kind)


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    return (file.read().decode(errors="replace").strip().splitlines() or [""])[-1]


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Those that still run, with what they have started themselves."""
    deadline = time.monotonic() + DIE_S
    late = [process for process in processes if process.poll() is None]
    for process in late:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in late:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
