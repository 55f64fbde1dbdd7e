"""Launching: from what was typed and the levers to a running shim."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_probes.events import AttemptStarted, Stamp
from vllm_probes.keeper.child import start_attempt
from vllm_probes.keeper.folder import Launch, SessionFolder
from vllm_probes.launch.levers import Plan, plan
from vllm_probes.launch.redact import redact_argv
from vllm_probes.launch.spec import expects_vllm, outsider


@dataclass(frozen=True, slots=True)
class Launched:
    """A shim that we started, and why it is as it is."""

    shim: "subprocess.Popen[bytes]"
    plan: Plan
    levers: list[str]
    log: str


def launch_attempt(
    folder: SessionFolder, launch: Launch, number: int, levers: Sequence[str], *, clean: bool
) -> Launched:
    """Start attempt `number`.

    Raises:
        LeverError: a lever is not known.
        OSError: the shim cannot be started.
    """
    planned = plan(launch.spec, levers, bare=launch.bare, clean=clean, coredumps=str(folder.coredumps))
    if "coredump" in levers:
        folder.coredumps.mkdir(mode=0o700, exist_ok=True)
    prefix = folder.attempt(number)
    return Launched(
        shim=start_attempt(planned.spec, prefix), plan=planned, levers=list(levers), log=f"{prefix.name}.log"
    )


def started(launched: Launched, stamp: Stamp) -> AttemptStarted:
    """The event that tells of it."""
    argv = launched.plan.spec.argv
    return AttemptStarted(
        **stamp,
        command=redact_argv(argv),
        levers=launched.levers,
        log=launched.log,
        shim_pid=launched.shim.pid,
        changes=launched.plan.changes,
        debug_settings=launched.plan.debug_settings,
        expects_vllm=expects_vllm(argv),
        not_descendants=outsider(argv),
    )
