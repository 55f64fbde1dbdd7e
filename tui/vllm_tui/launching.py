"""From what was typed to a command that runs and a keeper that watches it."""

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_tui.refusals import NOT_EXECUTABLE, NOT_FOUND, USAGE, CliError

if TYPE_CHECKING:
    from vllm_probes.keeper.folder import SessionFolder
    from vllm_probes.launch.spec import LaunchSpec


def launch(
    command: list[str],
    name: str | None,
    levers: list[str],
    bare: bool,
    on_stall: Sequence[str],
    gpus: Sequence[str] = (),
) -> "SessionFolder":
    """Start the command, then the keeper that watches it: vLLM waits for nothing of ours."""
    from vllm_probes.keeper.attempts import first_attempt, start_keeper
    from vllm_probes.keeper.folder import FolderError, Launch, create
    from vllm_probes.launch.levers import LeverError
    from vllm_probes.launch.on_stall import OnStallError, parse
    from vllm_probes.launch.redact import redact_argv
    from vllm_probes.launch.spec import LaunchSpec

    _need_executable(command[0])
    spec = LaunchSpec(argv=command, env=dict(os.environ), cwd=_current_folder())
    if levers:
        _need_levers(levers, spec)
    try:
        wanted = Launch(spec=spec, levers=levers, bare=bare, on_stall=parse(on_stall), gpus=list(gpus))
    except OnStallError as error:
        raise CliError(str(error), USAGE) from None
    # Held back until a view can make a stop of them: a command that is just being launched must not be left alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        folder = create(wanted, command=redact_argv(command), name=name)
        first_attempt(folder, wanted).start()
        start_keeper(folder)
    except (FolderError, LeverError) as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"The session cannot be started: {error.strerror} ({error.filename}).") from None
    return folder


def _current_folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        raise CliError("The current folder does not exist any more: change to another one.") from None


def _need_executable(program: str) -> None:
    if shutil.which(program):
        return
    if Path(program).is_file() or (os.sep not in program and shutil.which(program, mode=os.F_OK)):
        raise CliError(f"{program} is not executable: `chmod +x` it, or name its interpreter.", NOT_EXECUTABLE)
    hint = "check its path" if os.sep in program else "is its environment activated?"
    raise CliError(f"{program} was not found: {hint}", NOT_FOUND)


def _need_levers(levers: list[str], spec: "LaunchSpec") -> None:
    from vllm_probes.launch.levers import blocked, load_levers

    known = load_levers()
    for lever in levers:
        if lever not in known:
            raise CliError(f"There is no lever {lever!r}; there are {', '.join(known)}.", USAGE)
        if reason := blocked(lever, spec):
            raise CliError(reason, USAGE)
