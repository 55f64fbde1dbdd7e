"""Finds the shim of an attempt among the processes of this host."""

import os
from pathlib import Path
from typing import NamedTuple

from vllm_probes.launch.attempt import SHIM, read_pids
from vllm_probes.sensors import tree


class KnownShim(NamedTuple):
    """A shim that was found: to ask whether it still runs costs one look at two files."""

    pid: int
    start_ticks: int

    @property
    def runs(self) -> bool:
        return tree.is_same(self.pid, self.start_ticks)


def find_shim(prefix: Path) -> KnownShim | None:
    """The attempt's shim while it runs; a process that got the pid later is never taken for it."""
    pids = read_pids(prefix)
    if pids is None or (start_ticks := tree.start_ticks(pids.shim)) is None or not tree.is_running(pids.shim):
        return None
    theirs = prefix_of(pids.shim)
    is_it = theirs and os.path.realpath(theirs) == os.path.realpath(prefix)
    return KnownShim(pids.shim, start_ticks) if is_it else None


def shim_alive(prefix: Path) -> int | None:
    """The pid of the attempt's shim while it runs."""
    shim = find_shim(prefix)
    return shim.pid if shim else None


def prefix_of(shim_pid: int) -> str | None:
    """The prefix in the command line of a process, if it is a shim."""
    match tree.command_line(shim_pid):
        case [_, "-I", "-S", shim, prefix, "--", *_] if os.path.basename(shim) == SHIM.name:
            return prefix
    return None
