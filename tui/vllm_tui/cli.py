"""The command line: standard output is data, standard error is diagnostics."""

import io
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vllm_probes import __version__

if TYPE_CHECKING:
    from vllm_probes.keeper.folder import SessionFolder
    from vllm_probes.launch.spec import LaunchSpec

USAGE, KEEPER_LOST, NOT_EXECUTABLE, NOT_FOUND, INTERRUPTED = 2, 70, 126, 127, 130
NO_TERMINAL = "This is no terminal. Add --headless to get the events as JSON lines on standard output."


class CliError(click.ClickException):
    """A sentence that says what to do, and the exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class and reads the instance's

    def show(self, file: Any = None) -> None:
        click.echo(f"vllm-tui: {self.message}", err=True, file=file)


def main() -> None:
    """Entry point: what stands behind the first `--` is the command to launch, and never an option of ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal has every symbol
    arguments, command = _split(sys.argv[1:])
    if not (arguments and (arguments[0] in cli.commands or arguments[0] in ("--help", "-h", "--version"))):
        arguments = _implied_run(arguments, command)
    cli.main(arguments, prog_name="vllm-tui", obj=command)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    if "--" not in argv:
        return list(argv), None
    at = list(argv).index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def _implied_run(arguments: list[str], command: list[str] | None) -> list[str]:
    words = [word for word in arguments if not word.startswith("-")]
    if command is None and not arguments:
        return ["--help"]
    if command is None and words and words[0] == arguments[0]:
        typed = " ".join(arguments)
        click.echo(f"vllm-tui: no command {words[0]!r}. To launch it, write: vllm-tui -- {typed}", err=True)
        sys.exit(USAGE)
    return ["run", *arguments]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Start, watch, stop and relaunch vLLM, and see why it hangs or dies.

    \b
    vllm-tui -- vllm serve MODEL        launch, and watch it in this terminal
    vllm-tui --headless -- COMMAND …    the same as JSON lines, without a terminal
    vllm-tui attach                     come back to a session
    vllm-tui demo                       see a hang, without vLLM and without a GPU
    vllm-tui doctor                     see what will not work on this host, and why
    vllm-tui diagnose LOG               see from a log why a vLLM ended

    What stands behind -- is launched as it is. It goes on when the terminal goes away.
    """


@cli.command()
@click.option("--headless", is_flag=True, help="No terminal: print the events as JSON lines.")
@click.option("--name", help="What the session is called; else time and command.")
@click.option("--levers", default="", metavar="A,B", help="Debug settings to launch with: eager, launch-blocking, …")
@click.option("--readonly", is_flag=True, help="Turn off every key that changes something.")
@click.option("--bare", is_flag=True, help="Add nothing of our own to the environment of the command.")
@click.pass_obj
def run(
    command: list[str] | None, *, headless: bool, name: str | None, levers: str, readonly: bool, bare: bool
) -> None:
    """Launch the command behind -- and watch it (`run` may be left out)."""
    if not command:
        raise CliError("No command. Write it behind --: vllm-tui -- vllm serve MODEL", USAGE)
    if not headless:
        _need_terminal()
    folder = _launch(command, name, [lever for lever in levers.split(",") if lever], bare)
    _watch(folder, headless=headless, readonly=readonly, with_code=True)


@cli.command()
@click.argument("session", required=False)
@click.option("--readonly", is_flag=True, help="Turn off every key that changes something.")
@click.pass_obj
def attach(command: list[str] | None, session: str | None, *, readonly: bool) -> None:
    """Come back to a session, by name or a beginning of it; ended ones open as they ended."""
    _no_command(command)
    _need_terminal()
    folder = _find(session)
    _need_attachable(folder)
    _watch(folder, headless=False, readonly=readonly, with_code=False)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.pass_obj
def ls(command: list[str] | None, *, as_json: bool) -> None:
    """List the sessions of this user, and every other vLLM on this host."""
    _no_command(command)
    from vllm_tui import listing

    click.echo(listing.as_json() if as_json else listing.as_text())


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def doctor(command: list[str] | None, *, as_json: bool) -> None:
    """Tell what will and will not work on this host, and how to fix it; exit code 1 if something will not."""
    _no_command(command)
    from vllm_probes.doctor import examine
    from vllm_tui import doctor

    checks = examine()
    if as_json:
        click.echo(doctor.as_json(checks))
    else:
        _echo(doctor.as_lines(checks, shutil.get_terminal_size().columns))
    sys.exit(0 if doctor.works(checks) else 1)


@cli.command()
@click.argument("logs", nargs=-1, metavar="LOG…")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--explain", metavar="RULE", help="Tell what a rule is about, and what to do.")
@click.pass_obj
def diagnose(command: list[str] | None, logs: tuple[str, ...], *, as_json: bool, explain: str | None) -> None:
    """Tell from logs why a vLLM ended; `-` is standard input, files may be gzipped."""
    _no_command(command)
    from vllm_probes.keeper.rulebook import load_rulebook
    from vllm_tui import diagnose

    if bool(logs) == bool(explain):
        raise CliError("Name the logs to read, or with --explain one rule.", USAGE)
    rules, faults = load_rulebook()
    for fault in faults:
        click.echo(f"vllm-tui: left out: {fault}", err=True)
    width = shutil.get_terminal_size().columns
    try:
        if explain:
            lines: list[tuple[str, str | None]] = [(line, None) for line in diagnose.explanation(rules, explain, width)]
        else:
            findings = diagnose.findings_of(rules, logs)
            lines = [(diagnose.as_json(findings), None)] if as_json else [*diagnose.as_lines(findings, rules, width)]
    except (diagnose.UnreadableError, KeyError) as error:
        raise CliError(error.args[0]) from None
    _echo(lines)


@cli.command()
@click.argument("session")
@click.pass_obj
def replay(command: list[str] | None, session: str) -> None:
    """Play the recording of a session again."""
    _no_command(command)
    _need_terminal()
    folder = _find(session)
    if not folder.events.exists():
        raise CliError(f"{folder.path} holds no recording: it has no {folder.events.name}.")
    from vllm_tui.app import VllmTui
    from vllm_tui.replay import ReplaySource

    VllmTui(ReplaySource(folder.events), folder=folder.path).run()


@cli.command()
@click.option("--headless", is_flag=True, help="No terminal: print the events as JSON lines.")
@click.pass_obj
def demo(command: list[str] | None, *, headless: bool) -> None:
    """Watch a self-contained incident: real processes that serve, and then hang in one worker."""
    _no_command(command)
    if not headless:
        _need_terminal()
    from vllm_probes.demo import demo_command, gpu_command

    command = demo_command()
    folder = _launch(command, None, [], bare=False, gpus=gpu_command(command))
    _watch(folder, headless=headless, readonly=False, with_code=True)


def _echo(lines: Iterable[tuple[str, str | None]]) -> None:
    """Lines with the colour of each."""
    for line, colour in lines:
        click.echo(line if colour is None or os.environ.get("NO_COLOR") else click.style(line, fg=colour))


def _no_command(command: list[str] | None) -> None:
    if command is not None:
        raise CliError("Only `run` launches what stands behind --.", USAGE)


def _need_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CliError(NO_TERMINAL, USAGE)


def _find(session: str | None) -> "SessionFolder":
    from vllm_probes.keeper.folder import FolderError, find

    try:
        return find(session)
    except FolderError as error:
        raise CliError(str(error)) from None


def _need_attachable(folder: "SessionFolder") -> None:
    """A session of another host or boot is never adopted: its pids mean other processes here."""
    from vllm_probes.keeper.folder import FolderError

    if not folder.is_ours():
        raise CliError(f"{folder.path} belongs to another user: only they can attach to it.")
    if not os.access(folder.path, os.W_OK):
        raise CliError(f"{folder.path} cannot be written: `vllm-tui replay {folder.path}` plays it.")
    try:
        meta, here = folder.meta(), folder.on_this_boot()
    except FolderError as error:
        raise CliError(str(error)) from None
    if not here and meta.host != socket.gethostname():
        raise CliError(f"That session is kept on {meta.host}: ssh -t {meta.host} vllm-tui attach {meta.name}")
    if not here:
        raise CliError(f"That session ended when this host was restarted: `vllm-tui replay {meta.name}` plays it.")


def _launch(
    command: list[str], name: str | None, levers: list[str], bare: bool, gpus: Sequence[str] = ()
) -> "SessionFolder":
    """Start the command, then the keeper that watches it: vLLM waits for nothing of ours."""
    from vllm_probes.keeper.attempts import first_attempt, start_keeper
    from vllm_probes.keeper.folder import FolderError, Launch, create
    from vllm_probes.launch.levers import LeverError
    from vllm_probes.launch.redact import redact_argv
    from vllm_probes.launch.spec import LaunchSpec

    _need_executable(command[0])
    spec = LaunchSpec(argv=command, env=dict(os.environ), cwd=_current_folder())
    if levers:
        _need_levers(levers, spec)
    launch = Launch(spec=spec, levers=levers, bare=bare, gpus=list(gpus))
    # Held back until a view can make a stop of them: a command that is just being launched must not be left alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        folder = create(launch, command=redact_argv(command), name=name)
        first_attempt(folder, launch).start()
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


def _watch(folder: "SessionFolder", *, headless: bool, readonly: bool, with_code: bool) -> None:
    """Show a session until the view closes, then leave with the exit code that it deserves."""
    from vllm_probes.keeper.folder import KeeperError

    try:
        code = _watch_headless(folder) if headless else _watch_app(folder, readonly=readonly, with_code=with_code)
    except KeeperError as error:
        raise CliError(str(error), KEEPER_LOST) from None
    except KeyboardInterrupt:
        raise CliError(f"The command runs on: `vllm-tui attach {folder.path.name}` shows it.", INTERRUPTED) from None
    sys.exit(code)


def _watch_headless(folder: "SessionFolder") -> int:
    import asyncio

    from vllm_tui import closing, headless

    try:
        model, seen = asyncio.run(headless.follow(folder))
    except headless.OutputError as error:
        raise CliError(f"{error} The command runs on: `vllm-tui attach {folder.path.name}`.") from None
    if not seen:
        click.echo("vllm-tui: the keeper was lost; `vllm-tui attach` starts a new one.", err=True)
        return KEEPER_LOST
    return closing.exit_code(model.attempt)


def _watch_app(folder: "SessionFolder", *, readonly: bool, with_code: bool) -> int:
    from vllm_probes.commands import OTHER_VERSION
    from vllm_probes.keeper.folder import KeeperError
    from vllm_tui import closing
    from vllm_tui.app import VllmTui
    from vllm_tui.live import LiveSource

    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    result = VllmTui(LiveSource(folder, readonly=readonly), folder=folder.path).run()
    if result is None:
        return KEEPER_LOST
    if result.leaving == "refused":
        raise KeeperError(OTHER_VERSION)
    click.echo(closing.summary(result.model, folder.path), err=True)
    if result.leaving == "keeper_lost":
        return KEEPER_LOST
    return closing.exit_code(result.model.attempt) if with_code else 0
