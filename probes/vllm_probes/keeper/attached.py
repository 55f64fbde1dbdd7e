"""Sessions that watch a run that we did not start: it is only looked at, never signalled, and its log never touched."""

import os
from pathlib import Path

from vllm_probes.events import AttemptStarted, Stamp
from vllm_probes.keeper.attempts import start_keeper
from vllm_probes.keeper.folder import Attached, Launch, SessionFolder, create, sessions
from vllm_probes.launch.levers import plan
from vllm_probes.launch.redact import redact_argv, redact_env
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.sensors import foreign, tree
from vllm_probes.sensors.foreign import ForeignError, Members, Run
from vllm_probes.sensors.foreign_log import log_of
from vllm_probes.sensors.processes import environ

NO_LOG = "attempt-1.log"
"""A file that is never there."""
GONE = "It is gone; how it ended is not known, for this program did not start it."


def session_of(run: Run) -> SessionFolder | None:
    """The session of this user that watches the run already, or did."""
    for folder in sessions():
        attached = folder.attached()
        if attached is not None and (attached.pid, attached.start_ticks) == (run.pid, run.start_ticks):
            return folder
    return None


def watch_run(run: Run, log: Path | None) -> SessionFolder:
    """A new session for a run, and its keeper. `log`: where somebody says its log is.

    Raises:
        FolderError: there is no place for a session.
        OSError: no keeper can be started.
    """
    place = log_of(run.pids)
    path = log or place.path
    attached = Attached(
        pid=run.pid,
        start_ticks=run.start_ticks,
        user=None if run.uid == os.getuid() else run.user,
        is_vllm=run.is_vllm,
        url=run.address.url if run.address else None,
        listens=run.listens,
        log=str(path) if path else None,
        log_reason=None if path else place.reason,
    )
    spec = LaunchSpec(argv=run.argv, env=redact_env(environ(run.pid)), cwd=run.cwd or "/")
    folder = create(Launch(spec=spec, bare=True), command=redact_argv(run.argv), name=None, attached=attached)
    start_keeper(folder)
    return folder


def started(attached: Attached, launch: Launch, stamp: Stamp, addresses: dict[str, list[str]]) -> AttemptStarted:
    """The event that tells of it: what it is, as it was found."""
    settings = plan(launch.spec, [], bare=True, clean=False, coredumps="").debug_settings
    return AttemptStarted(
        **stamp,
        command=redact_argv(launch.spec.argv),
        levers=[],
        log=attached.log or NO_LOG,
        shim_pid=None,
        debug_settings=settings,
        expects_vllm=attached.is_vllm,
        attached_pid=attached.pid,
        attached_user=attached.user,
        attached_serving=attached.listens,
        addresses=addresses,
    )


def members(attached: Attached) -> Members:
    """Its processes, from now on; none where it has ended."""
    try:
        return Members(foreign.run_of(attached.pid).pids if is_there(attached) else [])
    except ForeignError:
        return Members([])


def is_there(attached: Attached) -> bool:
    """The root of its tree still runs."""
    return tree.is_same(attached.pid, attached.start_ticks)
