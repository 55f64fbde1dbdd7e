"""Starts a command under its shim, and reads what the shim writes down of it.

Loaded before the command starts, so it imports little.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import msgspec

from vllm_probes.launch.spec import LaunchSpec

_Record = TypeVar("_Record")

SHIM = Path(__file__).with_name("shim.py")


class Pids(msgspec.Struct, frozen=True):
    """Who runs an attempt. The command's process group has its own pid as id."""

    shim: int
    command: int


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How the command ended: a code, a signal, or why it never started (with the code a shell would give)."""

    code: int | None = None
    signal: int | None = None
    error: str | None = None
    time: float | None = None
    """Unix seconds."""
    mono: float | None = None
    """CLOCK_MONOTONIC seconds."""


def start_attempt(spec: LaunchSpec, prefix: Path) -> subprocess.Popen[bytes]:
    """The shim of a new attempt, which writes PREFIX.log, PREFIX.pid and in the end PREFIX.exit.

    A command that cannot be started is no error here: PREFIX.exit tells.

    Raises:
        OSError: the folder of the launch is gone, or no process can be made.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(SHIM), os.path.abspath(prefix), "--", *spec.argv],
        env=spec.env,
        cwd=spec.cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def read_pids(prefix: Path) -> Pids | None:
    """Who runs the attempt; None before it has begun, and when it never did."""
    return _read_record(f"{prefix}.pid", Pids)


def read_exit(prefix: Path) -> Ending | None:
    """How the command ended; None while it runs."""
    return _read_record(f"{prefix}.exit", Ending)


def _read_record(path: str, record_type: type[_Record]) -> _Record | None:
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        # bytes of argv that are no UTF-8 are lone surrogates by now, which no event could carry
        text = json.dumps(record, ensure_ascii=False).encode(errors="replace")
        return msgspec.json.decode(text, type=record_type)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
