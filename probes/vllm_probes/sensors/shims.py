"""Finds the shim of an attempt among the processes of this host."""

import os
from pathlib import Path

from vllm_probes.launch.attempt import SHIM, read_pids
from vllm_probes.sensors import tree


def shim_alive(prefix: Path) -> int | None:
    """The pid of the attempt's shim while it runs; a process that got the pid later is never taken for it."""
    pids = read_pids(prefix)
    if pids is None or not tree.is_running(pids.shim):
        return None
    theirs = prefix_of(pids.shim)
    return pids.shim if theirs and os.path.realpath(theirs) == os.path.realpath(prefix) else None


def prefix_of(shim_pid: int) -> str | None:
    """The prefix in the command line of a process, if it is a shim."""
    match tree.command_line(shim_pid):
        case [_, "-I", "-S", shim, prefix, "--", *_] if os.path.basename(shim) == SHIM.name:
            return prefix
    return None
