"""What is left to say when a view closes: the exit code, and how it ended in a few lines."""

import shlex
from pathlib import Path

from vllm_probes.model import AttemptModel, SessionModel

STALLED = 3


def exit_code(attempt: AttemptModel | None) -> int:
    """That of the last attempt, 128+n for a signal; 1 where vLLM says 0 although it lost an engine or a worker.

    3 where it was stopped because it was stalled (`--on-stall exit`).
    """
    if attempt is None or attempt.ended is None:
        return 0
    if attempt.stop and attempt.stop.by == "stall":
        return STALLED
    if attempt.ended.signal:
        return 128 + attempt.ended.signal
    if attempt.ended.code is None:
        return 1
    return attempt.ended.code or (1 if attempt.state == "crashed" else 0)


def summary(model: SessionModel, folder: Path) -> str:
    """State, cause with its line, session, log, and how to come back; plain text."""
    attempt = model.attempt
    lines = [_state_line(attempt)]
    findings = attempt.exited.findings if attempt and attempt.exited else []
    if cause := next((finding for finding in findings if finding.severity in ("error", "fatal")), None):
        lines.append(f"cause:    {cause.line}  ({cause.file}:{cause.line_number})")
    lines.append(f"session:  {model.name or folder.name}")
    if attempt:
        lines.append(f"log:      {folder / attempt.launch.log}")
    lines.append(f"to return: vllm-tui attach {shlex.quote(model.name or folder.name)}")
    return "\n".join(lines)


def _state_line(attempt: AttemptModel | None) -> str:
    if attempt is None:
        return "vllm-tui: nothing was started."
    if not attempt.over and attempt.ended is None:
        return f"vllm-tui: left running ({attempt.state})."
    code = None if attempt.launch.attached_pid else f"exit code {exit_code(attempt)}"
    reasons = dict.fromkeys(filter(None, (attempt.state_reason and attempt.state_reason.rstrip("."), code)))
    return f"vllm-tui: {attempt.state}: {', '.join(reasons)}."
