"""The sessions of this user, each in one row, read without loading its recording."""

import os
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from vllm_probes.events import ENDED_STATES, StateChanged, decode
from vllm_probes.keeper.folder import FolderError, Meta, SessionFolder, sessions
from vllm_probes.sensors import tree

TAIL_BYTES = 256 << 10


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `vllm-tui ls`."""

    name: str
    state: str
    """As recorded; `damaged` when the folder cannot be read, `lost` when this host lost it unfinished (a restart)."""
    attempt: int
    age_s: float
    command: list[str]
    host: str
    here: bool
    """Of this host and this boot: it can be attached to."""
    kept: bool
    """A keeper is at work."""
    alive: bool
    """Something of its tree runs."""
    folder: str


def rows() -> Iterator[SessionRow]:
    """Newest first."""
    yield from map(row_of, sessions())


def row_of(folder: SessionFolder) -> SessionRow:
    """One session; a folder that cannot be read gives a row that says so."""
    try:
        return _row(folder, folder.meta())
    except FolderError:
        return _damaged(folder)


def own_pids() -> set[int]:
    """The shims of every session of this user on this boot, with everything below them."""
    shim_pids = [pid for folder in sessions() for pid in folder.shim_pids()]
    return {*shim_pids, *(pid for shim_pid in shim_pids for pid in tree.descendants(shim_pid))}


class SessionAbove(NamedTuple):
    """A session of this user, and the shim of it that a process descends from."""

    name: str
    shim_pid: int


def session_above(pid: int) -> SessionAbove | None:
    """Which session of this user started a process; None: none, or its shim is gone."""
    for folder in sessions():
        for shim_pid in folder.shim_pids():
            if tree.descends(pid, shim_pid):
                return SessionAbove(folder.path.name, shim_pid)
    return None


def _row(folder: SessionFolder, meta: Meta) -> SessionRow:
    here, is_this_host = folder.on_this_boot(), meta.host == socket.gethostname()
    attempt = folder.attempt_count()
    alive = here and (any(folder.shim_pids()) if meta.attached is None else not folder.is_over())
    state = last_state(folder)
    if is_this_host and not alive and state not in ENDED_STATES and not folder.has_keeper():
        state = "lost" if here or attempt else state
    return SessionRow(
        name=meta.name,
        state=state,
        attempt=attempt,
        age_s=max(0.0, time.time() - meta.created),
        command=meta.command,
        host=meta.host,
        here=here,
        kept=here and folder.has_keeper(),
        alive=alive,
        folder=str(folder.path),
    )


def _damaged(folder: SessionFolder) -> SessionRow:
    return SessionRow(
        name=folder.path.name,
        state="damaged",
        attempt=folder.attempt_count(),
        age_s=max(0.0, time.time() - folder.path.stat().st_mtime),
        command=[],
        host="",
        here=False,
        kept=False,
        alive=False,
        folder=str(folder.path),
    )


def last_state(folder: SessionFolder) -> str:
    """The newest recorded state, looked for from the end; `starting` before the first one."""
    if not folder.events.exists():
        return "starting"
    with folder.events.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        state = _newest_state(file.read())
        if state is None:
            file.seek(0)
            state = _newest_state(file.read())
    return state or "starting"


def _newest_state(data: bytes) -> str | None:
    for line in reversed(data.splitlines()):
        if b'"state_changed"' in line and isinstance(event := decode(line), StateChanged):
            return event.state
    return None
