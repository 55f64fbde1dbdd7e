"""`vllm-tui ls`: sessions and other vLLM runs of this host, for people and for programs."""

import socket
import time
from collections.abc import Mapping, Sequence

import msgspec

from vllm_probes.keeper.catalogue import SessionRow, own_pids, rows
from vllm_probes.launch.redact import redact_argv
from vllm_probes.sensors import tree
from vllm_probes.sensors.foreign import Run, runs
from vllm_probes.sensors.gpu import indices_by_pid
from vllm_tui.format import UNKNOWN, duration, json_text, printable, short_command, table

GPU_ANSWER_S = 1.0
"""A driver that has to wake its GPUs up takes longer: then only what the environment tells is shown."""


class ProcessEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a run, by the name it has in the process table."""

    pid: int
    process: str


class StrangerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One vLLM run that we did not start. None: not known."""

    pid: int
    """Of the root of its tree."""
    user: str
    age_s: float
    port: int | None
    model: str | None
    gpus: str | None
    """Numbers as the driver gives them, else CUDA_VISIBLE_DEVICES."""
    command: list[str]
    """Secrets removed."""
    cwd: str | None
    processes: list[ProcessEntry]


def as_json() -> str:
    """One array: sessions (`kind` session) and other vLLM runs (`kind` stranger)."""
    entries = [{"kind": "session", **msgspec.to_builtins(row)} for row in rows()]
    entries += [{"kind": "stranger", **msgspec.to_builtins(row)} for row in strangers()]
    return json_text(entries)


def as_text() -> str:
    """A table; columns are as wide as their widest cell."""
    lines = sessions_table(sorted(rows(), key=lambda row: (not row.alive, row.age_s)))
    lines = lines or ["No sessions yet. Start one: vllm-tui -- vllm serve MODEL"]
    if others := strangers():
        lines += ["", "Not started by vllm-tui:", *strangers_table(others)]
    return "\n".join(lines)


def sessions_table(known: Sequence[SessionRow]) -> list[str]:
    """Empty where there is none."""
    return table([("SESSION", "STATE", "AGE", "COMMAND"), *map(_session, known)]) if known else []


def strangers_table(others: Sequence[StrangerEntry]) -> list[str]:
    """Empty where there is none."""
    heading = ("PID", "USER", "AGE", "PORT", "MODEL", "GPUS", "COMMAND")
    return table([heading, *map(_stranger, others)]) if others else []


def strangers() -> list[StrangerEntry]:
    """Other people's vLLM, and that of this user which was started without us."""
    found = runs(own_pids())
    indices = indices_by_pid(GPU_ANSWER_S) if found else {}
    return [_entry(run, indices) for run in found]


def _entry(run: Run, indices: Mapping[int, Sequence[int]]) -> StrangerEntry:
    held = sorted({index for pid in run.pids for index in indices.get(pid, ())})
    return StrangerEntry(
        pid=run.pid,
        user=run.user,
        age_s=max(0.0, time.time() - run.started),
        port=run.address.port if run.address and not run.address.uds else None,
        model=run.model,
        gpus=",".join(map(str, held)) or run.visible_devices,
        command=redact_argv(run.argv),
        cwd=run.cwd,
        processes=[ProcessEntry(pid=pid, process=tree.title(pid)) for pid in run.pids],
    )


def _session(row: SessionRow) -> tuple[str, ...]:
    if row.host and row.host != socket.gethostname():
        what = f"ssh -t {row.host} vllm-tui attach {row.name}"
    else:
        what = short_command(row.command)
    state = row.state if row.kept or not row.alive else f"{row.state}, no keeper"
    return (row.name, state, duration(row.age_s), what)


def _stranger(row: StrangerEntry) -> tuple[str, ...]:
    cells = (row.user, duration(row.age_s), row.port, row.model, row.gpus)
    shown = (UNKNOWN if cell is None else printable(str(cell)) for cell in cells)
    return (str(row.pid), *shown, short_command(row.command))
