"""What is known at the end of a run beside its log: a hang, a signal that ended it, and who held its GPUs."""

from collections.abc import Mapping
from typing import NamedTuple

from vllm_probes.events import VerdictChanged
from vllm_probes.gpus import GpuModel, strangers
from vllm_probes.judges.triage import SIGNALS
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
_SIGNAL_CLASSES = {
    **dict.fromkeys((4, 6, 11), "worker_proc_died"),
    7: "shm_size_bus_error",
    9: "host_oom_killed",
}
_SIGNAL_FIXES = {
    7: "See how full /dev/shm is (`df /dev/shm`); a container gets more with `--shm-size` or `--ipc=host`.",
    9: "If it was the kernel, give the run more host memory (the limit of its container or job), or start fewer ranks. "
    "Else somebody sent it: a scheduler, a supervisor, `kill -9`.",
    15: "Somebody sent it: a scheduler, a supervisor, a container that was stopped.",
}
_SIGNAL_FIX = "`coredumpctl` or the core file has the native stack; doctor tells whether cores are written here."
_NAMED_HOLDERS = 3
_HOLDER_BYTES = 256 << 20
"""Who has less, like a desktop, is not why there is no room."""
_LOOK_AT_STACKS = "Read the stacks that were saved: they are the state before the end."


class Circumstances(NamedTuple):
    """What others have seen of the run until now."""

    hang: VerdictChanged | None = None
    """In which it is, or was right before."""
    cards: Mapping[int, GpuCard] = {}
    gpus: Mapping[int, GpuRow] = {}
    rows: Mapping[int, ProcessRow] = {}


ALONE = Circumstances()


def facts(circumstances: Circumstances) -> dict[str, str]:
    """For the advice of rules: `gpu_holders`, where processes of others have much memory of a GPU."""
    gpus = GpuModel(cards=dict(circumstances.cards), rows=dict(circumstances.gpus))
    found = strangers(gpus, circumstances.rows)
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


def signal_finding(number: int, log: str, oom_kill_count: int) -> Finding:
    """That a signal which nobody here sent has ended the command: the cause where its log has none.

    `oom_kill_count`: how many processes of its cgroup the kernel killed for memory while it ran.
    """
    meaning = SIGNALS.get(number, f"signal {number} of signal(7)")
    counted = f" The kernel killed {oom_kill_count} processes of this cgroup for memory meanwhile."
    return Finding(
        rule=None,
        class_=_SIGNAL_CLASSES.get(number, "other"),
        role="cause",
        severity="fatal",
        file=log,
        line_number=1,
        line=f"The command was ended by signal {number}; its log does not say why.",
        why=f"{meaning}.{counted if oom_kill_count else ''}",
        fix=_SIGNAL_FIXES.get(number, _SIGNAL_FIX),
    )


def _class(kind: str) -> str:
    if kind in _START_KINDS:
        return "hang_silent_load"
    return "shm_broadcast_stall" if kind in _BETWEEN_RANKS else "other"
