"""What a hang leaves behind when its run has ended: the first finding of the post-mortem."""

from vllm_probes.events import VerdictChanged
from vllm_probes.rows import Finding

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
_LOOK_AT_STACKS = "Read the stacks that were saved: they are the state before the end."


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
