"""A crash of a scripted run as its log and its findings tell it: a CUDA graph that failed, and what followed."""

from pathlib import Path
from typing import Any

from tests.ui_source import Script, ScriptedSource, serving
from vllm_probes.events import Exited
from vllm_probes.rows import Finding

WORKER = "(Worker_TP3 pid=4034) ERROR 11-21 14:26:04 [multiproc_executor.py:905] "
CORE = "(EngineCore pid=4013) ERROR 11-21 14:26:05 [core.py:1101] "
FAULT = f"{WORKER}torch.AcceleratorError: CUDA error: an illegal memory access was encountered [/foo]"
DIED = f"{CORE}RuntimeError: Worker failed with error 'CUDA error: an illegal memory access was encountered'"
CAUSE_LINE, DIED_LINE = 141, 163


def log_text() -> str:
    lines = [f"INFO 11-21 14:26:{n % 60:02} [loggers.py:257] Engine 000: Running: {n} reqs" for n in range(1, 201)]
    lines[CAUSE_LINE - 1], lines[DIED_LINE - 1] = FAULT, DIED
    return "\n".join(lines) + "\n"


def finding(line_number: int, line: str, **fields: Any) -> Finding:
    known: dict[str, Any] = {
        "rule": None, "class_": "other", "role": "consequence", "severity": "error", "file": "attempt-1.log",
        "why": "An error that no rule knows.", "fix": "Read the lines around it; look for it among vLLM's issues.",
    }  # fmt: skip
    return Finding(line_number=line_number, line=line, **{**known, **fields})


def findings() -> list[Finding]:
    cause = finding(
        CAUSE_LINE, FAULT, rule="graph-replay", class_="cudagraph_replay_error", role="cause", severity="fatal",
        why="A kernel inside a CUDA graph failed. The graph hides which one. TP0-7 said so.",
        fix="Relaunch with --enforce-eager: then the traceback names the kernel's caller. With CUDA_LAUNCH_BLOCKING=1 "
        "beside it, exactly. " + "Otherwise look at the next best thing. " * 6,
    )  # fmt: skip
    died = finding(
        DIED_LINE, DIED, rule="engine-died", class_="engine_core_died", severity="fatal",
        why="The engine ended because a worker did.", fix="Look at the cause above.",
    )  # fmt: skip
    unknown = finding(180, f"{CORE}ZeroDivisionError: division by zero")
    notice = finding(12, "WARNING 11-21 14:20:00 [config.py:1] Something odd", role="cause", severity="warning")
    return [cause, died, unknown, notice]


def crashed_run(script: Script, folder: Path, *told: Finding, **launch: Any) -> ScriptedSource:
    """One that has served, then ended with code 1 and these findings."""
    source = serving(script, folder, **launch)
    (folder / "attempt-1.log").write_text(log_text())
    source.play(script.processes(at=61, gone=[row.pid for row in script.tree().rows]))
    source.play(script.state("crashed", 61), script.command_ended(61, 1))
    source.play(Exited(**script.stamp(61), code=1, signal=None, findings=list(told)), script.tree_ended(61))
    return source
