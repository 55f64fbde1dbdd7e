"""Which run a person means: one of our sessions, or a vLLM that somebody else started, by any pid of it or its port."""

import os
import socket
from pathlib import Path

from vllm_probes.keeper.attached import session_of, watch_run
from vllm_probes.keeper.catalogue import row_of, session_above
from vllm_probes.keeper.folder import FolderError, SessionFolder, find, live_sessions, sessions
from vllm_probes.sensors import foreign, ports
from vllm_probes.sensors.foreign import ForeignError, Run

Chosen = SessionFolder | Run


class ChoiceError(Exception):
    """Nothing or too much fits: sentences and tables that say what to type."""


def choose(word: str | None, port: int | None, command: str, *, own_first: bool) -> Chosen:
    """The session or run that `command` was asked for: by name or pid, by port, or the only one there is.

    `own_first`: without a word a session of ours counts more than any number of others' runs.

    Raises:
        ChoiceError, FolderError, ForeignError: there is none, or which one is meant cannot be told.
    """
    if word is not None and port is not None:
        raise ChoiceError("Say either whose it is or --port, not both.")
    if port is not None:
        return _of_port(port)
    if word is None:
        return _only_one(command, own_first)
    return _of_pid(word) if word.isdecimal() else find(word)


def watched(chosen: Chosen, log: Path | None) -> SessionFolder:
    """The session to be shown: one of ours, the one that watches this run already, or a new one that does.

    `log`: where the log of a run is that was not started here; looked at when its session begins.

    Raises:
        ChoiceError: no session can be made for it.
    """
    folder = session_of(chosen) if isinstance(chosen, Run) else chosen
    if folder is not None and log is not None:
        raise ChoiceError(f"Session {folder.path.name} has its log already: attach to it without --log.")
    if isinstance(chosen, SessionFolder):
        return chosen
    try:
        return folder or watch_run(chosen, log)
    except OSError as error:
        raise ChoiceError(f"The session cannot be started: {error.strerror} ({error.filename}).") from None


def need_attachable(folder: SessionFolder) -> None:
    """A session of another host or boot is never adopted: its pids mean other processes here.

    Raises:
        FolderError: it cannot be attached to; the text says what to do instead.
    """
    if not folder.is_ours():
        raise FolderError(f"{folder.path} belongs to another user: only they can attach to it.")
    if not os.access(folder.path, os.W_OK):
        raise FolderError(f"{folder.path} cannot be written: `vllm-tui replay {folder.path}` plays it.")
    meta, here = folder.meta(), folder.on_this_boot()
    if not here and meta.host != socket.gethostname():
        raise FolderError(f"That session is kept on {meta.host}: ssh -t {meta.host} vllm-tui attach {meta.name}")
    if not here:
        raise FolderError(f"That session ended when this host was restarted: `vllm-tui replay {meta.name}` plays it.")


def _of_port(port: int) -> Chosen:
    pid = ports.listener(port)
    return (_own(pid) if pid is not None else None) or foreign.run_on_port(port)


def _of_pid(word: str) -> Chosen:
    """A name may consist of digits, too, and a beginning of one even more so: processes come between."""
    if any(folder.path.name == word for folder in sessions()):
        return find(word)
    try:
        return _own(int(word)) or foreign.run_of(int(word))
    except ForeignError as reason:
        try:
            return find(word)
        except FolderError:
            raise reason from None


def _own(pid: int) -> SessionFolder | None:
    above = session_above(pid)
    return find(above.name) if above else None


def _only_one(command: str, own_first: bool) -> Chosen:
    own = live_sessions()
    if own_first and len(own) == 1:
        return own[0]
    from vllm_tui import listing  # it is not needed where somebody says what to look at

    others = listing.strangers()
    if not own and not others:
        raise ChoiceError("No vLLM runs here, of ours or of anybody else. `vllm-tui ls` lists the sessions that ended.")
    if len(own) + len(others) == 1:
        return own[0] if own else foreign.run_of(others[0].pid)
    tables = [listing.sessions_table([row_of(folder) for folder in own]), listing.strangers_table(others)]
    lines = "\n\n".join("\n".join(table) for table in tables if table)
    raise ChoiceError(f"Several runs are here: `vllm-tui {command} SESSION` or `vllm-tui {command} PID`.\n\n{lines}")
