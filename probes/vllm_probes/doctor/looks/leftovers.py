"""The vLLM processes of this host that no session of this user has started."""

import time

import psutil

from vllm_probes.doctor.facts import LeftoverFacts, Stranger
from vllm_probes.judges.commandline import base_name, is_python
from vllm_probes.keeper.catalogue import own_pids
from vllm_probes.rows import ProcessRow
from vllm_probes.sensors import tree
from vllm_probes.sensors.processes import strangers


def look() -> LeftoverFacts:
    rows = strangers(0.0, own=own_pids())
    pids = {row.pid for row in rows}
    found = [
        Stranger(
            pid=row.pid,
            process=row.process,
            user=_user(row.pid),
            age_s=time.time() - row.started,
            is_orphan=row.parent_pid not in pids and _is_orphan(row),
        )
        for row in rows
    ]
    return LeftoverFacts(user=psutil.Process().username(), strangers=found)


def _is_orphan(row: ProcessRow) -> bool:
    """Only a Python (or Ray's raylet) starts an engine or a worker, so any other parent has adopted it.

    A parent outside of our pid namespace (0) or without a readable command line tells nothing.
    """
    parent = tree.command_line(row.parent_pid) if row.parent_pid else []
    started_it = not parent or is_python(parent) or base_name(parent[0]) == "raylet"
    return row.role in ("engine_core", "worker", "coordinator") and not started_it


def _user(pid: int) -> str | None:
    try:
        return psutil.Process(pid).username()
    except psutil.Error:
        return None
