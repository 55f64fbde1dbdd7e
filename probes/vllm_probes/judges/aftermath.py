"""What is known at the end of a run beside its log: a hang, which is the first finding, and who held its GPUs."""

from collections.abc import Mapping
from typing import NamedTuple

from vllm_probes.events import VerdictChanged
from vllm_probes.gpus import GpuModel, strangers
from vllm_probes.rows import Finding, GpuCard, GpuProcess, GpuRow, ProcessRow

_START_KINDS = ("load_stuck", "download_stuck", "startup_stuck")
_BETWEEN_RANKS = ("rank_absent", "collective_mismatch", "gpu_stuck", "worker_stuck", "lost_message")
_FIXES = {
    "stopped": "Find out who stopped it (SIGSTOP, a debugger, a frozen container) and let it go on.",
    "lock": "Read the culprit's stack: another thread of it holds the lock, or it holds it itself.",
    "read": "See what the file or pipe stands for and who should write to it; a network file system may be stuck.",
    "socket": "See who is at the other end of the connection, and whether it answers.",
    "subprocess": "See what the child process waits for.",
    "uninterruptible": "The kernel waits for a device or a file system: `dmesg` on that host tells more.",
    "python_loop": "Read the culprit's stack: the loop does not come to its end.",
    "native_loop": "Read the culprit's stack with native frames: `py-spy dump --native`.",
    "idle": "Look for an exception that this rank logged before it went idle: the others wait for it.",
}
_NAMED_HOLDERS = 3
_HOLDER_BYTES = 256 << 20
"""Who has less, like a desktop, is not why there is no room."""
_LOOK_AT_STACKS = "Read the stacks that were saved: they are the state before the end."


class Surroundings(NamedTuple):
    """What others have seen of the run until now."""

    hang: VerdictChanged | None = None
    """In which it is."""
    cards: Mapping[int, GpuCard] = {}
    gpus: Mapping[int, GpuRow] = {}
    rows: Mapping[int, ProcessRow] = {}


ALONE = Surroundings()


def facts(surroundings: Surroundings) -> dict[str, str]:
    """For the advice of rules: `gpu_holders`, where processes of others have much memory of a GPU."""
    gpus = GpuModel(cards=dict(surroundings.cards), rows=dict(surroundings.gpus))
    found = strangers(gpus, surroundings.rows)
    holders = [(one.used_bytes or 0, index, one) for index, ones in found.items() for one in ones]
    large = sorted((one for one in holders if one[0] >= _HOLDER_BYTES), key=lambda one: one[:2], reverse=True)
    told = "; ".join(_holder(*one) for one in large[:_NAMED_HOLDERS])
    return {"gpu_holders": told} if told else {}


def _holder(used_bytes: int, index: int, one: GpuProcess) -> str:
    user = f" of {one.user}" if one.user else ""
    return f"{one.process}{user} (pid {one.pid}) has {used_bytes / 2**30:.1f} GiB of GPU {index}"


def hang_finding(verdict: VerdictChanged, log: str) -> Finding:
    """A `stalled` verdict as a finding with the rule `hang`; `log` stands for the file where no stack was saved."""
    culprit = verdict.culprits[0] if verdict.culprits else None
    files = [one for one in verdict.evidence if one.file and one.file != log]
    own = [one.file for one in files if culprit is None or one.signal.startswith(culprit.process)]
    file = own[0] if own else None
    reasons = "; ".join(f"{one.signal}: {one.value}" for one in verdict.evidence)
    return Finding(
        rule="hang",
        class_=_class(verdict.kind or ""),
        role="cause",
        severity="fatal",
        file=file or log,
        line_number=1,
        line=verdict.summary,
        why=f"It hung before it ended ({reasons}).",
        fix=_FIXES.get(culprit.doing, _LOOK_AT_STACKS) if culprit else _LOOK_AT_STACKS,
    )


def _class(kind: str) -> str:
    if kind in _START_KINDS:
        return "hang_silent_load"
    return "shm_broadcast_stall" if kind in _BETWEEN_RANKS else "other"
