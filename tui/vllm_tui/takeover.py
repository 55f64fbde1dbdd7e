"""What is to be typed to go on here with a run that somebody else started: stop it, start it again with a lever."""

from collections.abc import Sequence

from vllm_probes.launch.takeover import stop_command, takeover_command
from vllm_tui.situation import Situation

IN_A_HANG = ("eager", "launch-blocking")
"""A kernel that never ends has the stack of its own launch then."""
ELSE = ("coredump",)
"""Costs nothing before there is something to see."""


def useful_levers(situation: Situation) -> list[str]:
    """Those that would tell most the next time, without any that changes nothing on this command."""
    verdict = situation.attempt.verdict if situation.attempt else None
    hangs = verdict is not None and verdict.health in ("suspect", "stalled")
    return _without_blocked(situation, IN_A_HANG if hangs else ELSE)


def _without_blocked(situation: Situation, levers: Sequence[str]) -> list[str]:
    return [lever for lever in levers if lever not in situation.blocked_levers]


def takeover_line(situation: Situation, levers: Sequence[str]) -> str:
    """Empty where its command line is not known."""
    launch = situation.attempt.launch if situation.attempt else None
    return takeover_command(launch.command, situation.model.cwd, levers) if launch else ""


def refusal(situation: Situation, lever: str | None) -> str | None:
    """Why nothing is done to it here, and what does it instead; None: it was started here.

    `lever` is what was asked for; None: no one in particular.
    """
    launch = situation.attempt.launch if situation.attempt else None
    if launch is None or launch.attached_pid is None:
        return None
    levers = useful_levers(situation) if lever is None else _without_blocked(situation, [lever])
    line = takeover_line(situation, levers)
    starts = f"; `{line}` starts it from here" if line else ""
    if situation.attempt and situation.attempt.ended:
        return f"Not started by this program, and it has ended{starts}. D shows it, too."
    stop = stop_command(launch.attached_pid, launch.attached_user)
    return f"Not started by this program: stop it with `{stop}`{starts}. D shows it, too."
