"""`vllm-tui ls`: sessions and other vLLM runs of this host, for people and for programs."""

import shlex
import time

import msgspec

from vllm_probes.keeper.catalogue import SessionRow, rows
from vllm_probes.rows import ProcessRow
from vllm_probes.sensors.processes import strangers
from vllm_tui.format import duration


def as_json() -> str:
    """One array: sessions (`kind` session) and processes of other vLLM runs (`kind` stranger)."""
    entries = [{"kind": "session", **msgspec.to_builtins(row)} for row in rows()]
    entries += [{"kind": "stranger", **msgspec.to_builtins(row)} for row in strangers(0.0)]
    return msgspec.json.encode(entries).decode()


def as_text() -> str:
    """A table; columns are as wide as their widest cell."""
    lines = _table([("SESSION", "STATE", "AGE", "COMMAND"), *(_session(row) for row in rows())])
    if len(lines) == 1:
        lines = ["No sessions yet. Start one: vllm-tui -- vllm serve MODEL"]
    others = strangers(0.0)
    if others:
        lines += ["", "Not started by vllm-tui:"]
        lines += _table([("PID", "PROCESS", "AGE", ""), *(_stranger(row) for row in others)])
    return "\n".join(lines)


def _session(row: SessionRow) -> tuple[str, ...]:
    if not row.here and row.host:
        come_back = f"ssh {row.host} vllm-tui attach {row.name}" if row.state != "lost" else "before the last restart"
    else:
        come_back = shlex.join(row.command)
    state = row.state if row.kept or not row.alive else f"{row.state}, no keeper"
    return (row.name, state, duration(row.age_s), come_back)


def _stranger(row: ProcessRow) -> tuple[str, ...]:
    return (str(row.pid), row.process, duration(max(0.0, time.time() - row.started)), "")


def _table(cells: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
