"""What one check found, in words for people and programs."""

from typing import Literal

import msgspec

Outcome = Literal["problem", "warning", "unknown", "note", "ok"]
"""The worst first. `problem`: something will not work; `unknown`: it could not be found out."""

TITLES = {
    "vllm": "vLLM on PATH",
    "driver": "NVIDIA driver",
    "cuda": "CUDA of driver and torch",
    "visible-devices": "CUDA_VISIBLE_DEVICES",
    "shm": "Shared memory",
    "shm-leftovers": "Leftovers in shared memory",
    "open-files": "Limit of open files",
    "locked-memory": "Limit of locked memory",
    "core-size": "Limit of core dumps",
    "processes": "Limit of processes",
    "ptrace": "Right to read stacks",
    "py-spy": "py-spy for vLLM's Python",
    "session-disk": "Room for sessions",
    "hub-disk": "Room for models",
    "temp-disk": "Room for temporary files",
    "leftovers": "Other vLLM processes",
    "debug-variables": "Debug variables of this shell",
    "logout": "Logging out",
    "host-ip": "VLLM_HOST_IP",
    "nccl-interface": "NCCL_SOCKET_IFNAME",
    "gloo-interface": "GLOO_SOCKET_IFNAME",
    "master-address": "MASTER_ADDR",
    "hub": "Model hub",
}
"""Every check by its id, in the order in which they are told."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `means` and `fix` are empty when it is ok."""

    id: str
    title: str
    outcome: Outcome
    what: str
    """What was found, in one sentence with its figures."""
    means: str = ""
    """What follows from it, in one sentence."""
    fix: str = ""
    """A command to copy, or a sentence with commands in backticks."""


def ok(check_id: str, what: str) -> Check:
    """Nothing to do."""
    return Check(id=check_id, title=TITLES[check_id], outcome="ok", what=what)


def note(check_id: str, what: str, means: str, fix: str) -> Check:
    """Worth knowing; nothing fails for it."""
    return _check("note", check_id, what, means, fix)


def warning(check_id: str, what: str, means: str, fix: str) -> Check:
    """Something may fail, or works less well."""
    return _check("warning", check_id, what, means, fix)


def problem(check_id: str, what: str, means: str, fix: str) -> Check:
    """Something will not work."""
    return _check("problem", check_id, what, means, fix)


def unknown(check_id: str, what: str, means: str, fix: str) -> Check:
    """It could not be found out."""
    return _check("unknown", check_id, what, means, fix)


def _check(outcome: Outcome, check_id: str, what: str, means: str, fix: str) -> Check:
    return Check(id=check_id, title=TITLES[check_id], outcome=outcome, what=what, means=means, fix=fix)


def size(byte_count: int) -> str:
    """`12 KiB`, `512 MiB`, `7.4 GiB`."""
    if byte_count < 1 << 20:
        return f"{byte_count >> 10} KiB"
    return f"{byte_count >> 20} MiB" if byte_count < 1 << 30 else f"{byte_count / (1 << 30):.1f} GiB"


def age(seconds: float) -> str:
    """In its largest unit: `12 s`, `3 min`, `5 h`, `2 d`."""
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {unit}"
    return f"{int(max(0.0, seconds))} s"


def plural(count: int, noun: str) -> str:
    """`1 process`, `2 processes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"
