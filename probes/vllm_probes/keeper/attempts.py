"""Launching: from what was typed and the levers to a running shim, and the keeper that watches it.

The command line loads this before the command starts, so it imports little.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from vllm_probes.events import AttemptStarted, Stamp
from vllm_probes.keeper.folder import Launch, SessionFolder
from vllm_probes.keeper.priority import as_the_user
from vllm_probes.launch.attempt import start_attempt
from vllm_probes.launch.levers import Plan, plan
from vllm_probes.launch.redact import redact_argv
from vllm_probes.launch.spec import expects_vllm, outsider


class Attempt(msgspec.Struct, frozen=True):
    """What is to be launched, as the number-th attempt of a session."""

    folder: SessionFolder
    number: int
    levers: list[str]
    plan: Plan

    @property
    def log(self) -> str:
        """Relative to the session folder."""
        return f"{self.folder.attempt(self.number).name}.log"

    def start(self) -> "subprocess.Popen[bytes]":
        """Start its shim.

        Raises:
            OSError: the folder of the launch is gone, or no process can be made.
        """
        if "coredump" in self.levers:
            self.folder.coredumps.mkdir(mode=0o700, exist_ok=True)
        with as_the_user():
            return start_attempt(self.plan.spec, self.folder.attempt(self.number))

    def started(self, shim_pid: int | None, stamp: Stamp, addresses: dict[str, list[str]]) -> AttemptStarted:
        """The event that tells of it."""
        argv = self.plan.spec.argv
        return AttemptStarted(
            **stamp,
            command=redact_argv(argv),
            levers=self.levers,
            log=self.log,
            shim_pid=shim_pid,
            changes=self.plan.changes,
            debug_settings=self.plan.debug_settings,
            expects_vllm=expects_vllm(argv),
            not_descendants=outsider(argv),
            addresses=addresses,
        )


def first_attempt(folder: SessionFolder, launch: Launch) -> Attempt:
    """The attempt that begins a session. The same each time it is asked for: a keeper asks after the launch."""
    return next_attempt(folder, launch, 1, launch.levers, clean=False)


def next_attempt(folder: SessionFolder, launch: Launch, number: int, levers: Sequence[str], *, clean: bool) -> Attempt:
    """An attempt with just these levers; `clean` also leaves out inherited debug variables.

    Raises:
        LeverError: a lever is unknown or cannot work on this command.
    """
    planned = plan(launch.spec, levers, bare=launch.bare, clean=clean, coredumps=str(folder.coredumps))
    return Attempt(folder, number, [] if clean else list(levers), planned)


def start_keeper(folder: SessionFolder) -> "subprocess.Popen[bytes] | None":
    """Start a keeper for this session, which outlives us; None when it has one.

    The new keeper inherits the session's lock, so there is no moment at which a second one could be started.
    """
    if (lock := folder.lock()) is None:
        return None
    try:
        with folder.keeper_log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "vllm_probes.keeper", str(folder.path), str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=[lock],
            )
    finally:
        os.close(lock)
