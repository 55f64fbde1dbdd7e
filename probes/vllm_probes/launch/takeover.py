"""What a person types to stop a run that we did not start, and to start it again through this program."""

import os
import shlex
from collections.abc import Sequence

from vllm_probes.launch.redact import REMOVED


def stop_command(pid: int, user: str | None) -> str:
    """`kill -INT 1234`, as Ctrl+C would end it. `user`: whose it is, None where it is one's own."""
    return f"{'sudo ' if user else ''}kill -INT {pid}"


def refusal(pid: int, user: str | None) -> str:
    """Why nothing is done to it here."""
    return f"Not started by this program: stop it with `{stop_command(pid, user)}`; D shows how to take it over."


def takeover_command(argv: Sequence[str], cwd: str, levers: Sequence[str]) -> str:
    """A line for a shell: the same command in the same folder, under this program, with these levers.

    Secrets are removed from `argv` already. A title in the place of arguments cannot be started: what is shown then is
    no command, and the line is empty.
    """
    if not argv or "::" in argv[0]:
        return ""
    folder = f"cd {shlex.quote(cwd)} && " if os.path.isabs(cwd) else ""
    options = f"--levers {','.join(levers)} " if levers else ""
    return f"{folder}vllm-tui {options}-- {shlex.join(argv)}"


def has_secrets(argv: Sequence[str]) -> bool:
    """Whether something has to be filled in again."""
    return any(REMOVED in word for word in argv)
