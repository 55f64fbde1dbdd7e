"""The command line: standard output is data, standard error is diagnostics."""

import io
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from vllm_probes import __version__
from vllm_tui.launching import launch
from vllm_tui.refusals import INTERRUPTED, KEEPER_LOST, USAGE, CliError

if TYPE_CHECKING:
    from vllm_probes.keeper.folder import SessionFolder
    from vllm_tui.alarm import Notify

NO_TERMINAL = "This is no terminal. Add --headless to get the events as JSON lines on standard output."


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


_ON_STALL = click.option(
    "--on-stall",
    multiple=True,
    metavar="bundle|exec=CMD|exit",
    help="On a stall save the evidence, run CMD with the verdict on its standard input, stop it (exit code 3).",
)
_NOTIFY = click.option(
    "--notify",
    type=click.Choice(["bell", "osc9", "off"]),
    default="bell",
    show_default=True,
    help="How a stalled verdict calls you: the terminal's bell, a notification of the desktop, or not at all.",
)


@cli.command()
@click.option("--headless", is_flag=True, help="No terminal: print the events as JSON lines.")
@click.option("--name", help="What the session is called; else time and command.")
@click.option("--levers", default="", metavar="A,B", help="Debug settings to launch with: eager, launch-blocking, …")
@_ON_STALL
@click.option("--readonly", is_flag=True, help="Turn off every key that changes something.")
@click.option("--bare", is_flag=True, help="Add nothing of our own to the environment of the command.")
@_NOTIFY
@click.pass_obj
def run(
    command: list[str] | None,
    *,
    headless: bool,
    name: str | None,
    levers: str,
    on_stall: tuple[str, ...],
    readonly: bool,
    bare: bool,
    notify: "Notify",
) -> None:
    """Launch the command behind -- and watch it (`run` may be left out)."""
    if not command:
        raise CliError("No command. Write it behind --: vllm-tui -- vllm serve MODEL", USAGE)
    if not headless:
        _need_terminal()
    folder = launch(command, name, [lever for lever in levers.split(",") if lever], bare, on_stall)
    _watch(folder, headless=headless, readonly=readonly, with_code=True, notify=notify)


@cli.command()
@click.argument("session", required=False)
@click.option("--readonly", is_flag=True, help="Turn off every key that changes something.")
@_NOTIFY
@click.pass_obj
def attach(command: list[str] | None, session: str | None, *, readonly: bool, notify: "Notify") -> None:
    """Come back to a session, by name or a beginning of it; ended ones open as they ended."""
    _no_command(command)
    _need_terminal()
    folder = _find(session)
    _need_attachable(folder)
    _watch(folder, headless=False, readonly=readonly, with_code=False, notify=notify)


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
@click.argument("session", required=False)
@click.option("--port", type=click.IntRange(1, 65535), help="A server of this host, by its port, whoever started it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def probe(command: list[str] | None, session: str | None, *, port: int | None, as_json: bool) -> None:
    """Ask a server for one token, beside /health and /metrics; exit code 0 if it came within 10 s, else 1."""
    _no_command(command)
    if session is not None and port is not None:
        raise CliError("Name a session or a port, not both.", USAGE)
    import asyncio

    from vllm_probes.judges.probing import served
    from vllm_probes.keeper.folder import KeeperError
    from vllm_tui import probing

    try:
        lights = asyncio.run(probing.of_session(_probed(session)) if port is None else probing.of_port(port))
    except probing.NotProbedError as error:
        raise CliError(str(error)) from None
    except KeeperError as error:
        raise CliError(str(error), KEEPER_LOST) from None
    click.echo(probing.as_json(lights) if as_json else probing.as_text(lights))
    sys.exit(0 if served(lights) else 1)


def _probed(session: str | None) -> "SessionFolder":
    folder = _find(session)
    _need_attachable(folder)
    return folder


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
@_ON_STALL
@click.pass_obj
def demo(command: list[str] | None, *, headless: bool, on_stall: tuple[str, ...]) -> None:
    """Watch a self-contained incident: real processes that serve, and then hang in one worker."""
    _no_command(command)
    if not headless:
        _need_terminal()
    from vllm_probes.demo import demo_command, gpu_command

    command = demo_command()
    folder = launch(command, None, [], bare=False, on_stall=on_stall, gpus=gpu_command(command))
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


def _watch(
    folder: "SessionFolder", *, headless: bool, readonly: bool, with_code: bool, notify: "Notify" = "bell"
) -> None:
    """Show a session until the view closes, then leave with the exit code that it deserves."""
    from vllm_probes.keeper.folder import KeeperError

    try:
        if headless:
            code = _watch_headless(folder)
        else:
            code = _watch_app(folder, readonly=readonly, with_code=with_code, notify=notify)
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


def _watch_app(folder: "SessionFolder", *, readonly: bool, with_code: bool, notify: "Notify") -> int:
    from vllm_probes.commands import OTHER_VERSION
    from vllm_probes.keeper.folder import KeeperError
    from vllm_tui import closing
    from vllm_tui.app import VllmTui
    from vllm_tui.live import LiveSource

    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    result = VllmTui(LiveSource(folder, readonly=readonly), folder=folder.path, notify=notify).run()
    if result is None:
        return KEEPER_LOST
    if result.leaving == "refused":
        raise KeeperError(OTHER_VERSION)
    click.echo(closing.summary(result.model, folder.path), err=True)
    if result.leaving == "keeper_lost":
        return KEEPER_LOST
    return closing.exit_code(result.model.attempt) if with_code else 0
