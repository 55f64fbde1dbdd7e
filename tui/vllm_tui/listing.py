"""`vllm-tui ls`: sessions and other vLLM runs of this host, for people and for programs."""

import socket
import time

import msgspec

from vllm_probes.keeper.catalogue import SessionRow, own_pids, rows
from vllm_probes.rows import ProcessRow
from vllm_probes.sensors.processes import strangers
from vllm_tui.format import duration, short_command


def as_json() -> str:
    """One array: sessions (`kind` session) and processes of other vLLM runs (`kind` stranger)."""
    entries = [{"kind": "session", **msgspec.to_builtins(row)} for row in rows()]
    entries += [{"kind": "stranger", **msgspec.to_builtins(row)} for row in _others()]
    return msgspec.json.encode(entries).decode()


def as_text() -> str:
    """A table; columns are as wide as their widest cell."""
    known = sorted(rows(), key=lambda row: (not row.alive, row.age_s))
    lines = _table([("SESSION", "STATE", "AGE", "COMMAND"), *map(_session, known)])
    if len(lines) == 1:
        lines = ["No sessions yet. Start one: vllm-tui -- vllm serve MODEL"]
    others = _others()
    if others:
        lines += ["", "Not started by vllm-tui:"]
        lines += _table([("PID", "PROCESS", "AGE"), *(_stranger(row) for row in others)])
    return "\n".join(lines)


def _others() -> list[ProcessRow]:
    """Other people's vLLM, and that of this user which was started without us."""
    return strangers(0.0, own=own_pids())


def _session(row: SessionRow) -> tuple[str, ...]:
    if row.host and row.host != socket.gethostname():
        what = f"ssh -t {row.host} vllm-tui attach {row.name}"
    else:
        what = short_command(row.command)
    state = row.state if row.kept or not row.alive else f"{row.state}, no keeper"
    return (row.name, state, duration(row.age_s), what)


def _stranger(row: ProcessRow) -> tuple[str, ...]:
    return (str(row.pid), row.process, duration(max(0.0, time.time() - row.started)))


def _table(cells: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
