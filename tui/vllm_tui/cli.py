"""The command line: standard output is data, standard error is diagnostics."""

import io
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_probes import __version__
from vllm_tui.launching import launch
from vllm_tui.refusals import INTERRUPTED, KEEPER_LOST, USAGE, CliError, no_command
from vllm_tui.telling import diagnose, doctor

if TYPE_CHECKING:
    from vllm_probes.keeper.folder import SessionFolder
    from vllm_tui.alarm import Notify

PORT = click.IntRange(1, 65535)
LOG = click.Path(exists=True, dir_okay=False, readable=True, resolve_path=True, path_type=Path)
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
    vllm-tui attach [PID]               come back to a session, or watch a vLLM that runs already
    vllm-tui snapshot PID               see what every process of a running vLLM does
    vllm-tui demo                       see a hang, without vLLM and without a GPU
    vllm-tui doctor                     see what will not work on this host, and why
    vllm-tui diagnose LOG               see from a log why a vLLM ended

    What stands behind -- is launched as it is. It goes on when the terminal goes away.
    """


cli.add_command(doctor)
cli.add_command(diagnose)


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
@click.argument("run", metavar="[SESSION | PID]", required=False)
@click.option("--port", type=PORT, help="The run whose server listens there.")
@click.option("--log", type=LOG, help="Where the log of a run is that was not started here.")
@click.option("--headless", is_flag=True, help="No terminal: print the events as JSON lines. SIGINT ends only that.")
@click.option("--readonly", is_flag=True, help="Turn off every key that changes something.")
@_NOTIFY
@click.pass_obj
def attach(
    command: list[str] | None,
    run: str | None,
    *,
    port: int | None,
    log: Path | None,
    headless: bool,
    readonly: bool,
    notify: "Notify",
) -> None:
    """Come back to a session, by name or a beginning of it (ended ones open as they ended), or watch a vLLM that was
    not started here, by any of its pids."""
    no_command(command)
    if not headless:
        _need_terminal()
    from vllm_probes.keeper.attempts import start_keeper
    from vllm_tui import choosing

    with _told():
        folder = choosing.watched(choosing.choose(run, port, "attach", own_first=True), log)
        choosing.need_attachable(folder)
    with suppress(OSError):  # whoever connects tries again, and says what is wrong
        start_keeper(folder)  # it reads the recording while the view is loaded
    _watch(folder, headless=headless, readonly=readonly, with_code=False, notify=notify)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.pass_obj
def ls(command: list[str] | None, *, as_json: bool) -> None:
    """List the sessions of this user, and every other vLLM on this host."""
    no_command(command)
    from vllm_tui import listing

    click.echo(listing.as_json() if as_json else listing.as_text())


@cli.command()
@click.argument("run", metavar="[SESSION | PID]", required=False)
@click.option("--port", type=PORT, help="The run whose server listens there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1, max=3600.0), metavar="S", help="Look on, and show where the time goes."
)
@click.option("--native", is_flag=True, help="Calls of libraries as well. Pauses each process while it is read.")
@click.option("--locals", "variables", is_flag=True, help="Local variables as well, of the main thread. Pauses nobody.")
@click.pass_obj
def snapshot(
    command: list[str] | None,
    run: str | None,
    *,
    port: int | None,
    as_json: bool,
    seconds: float | None,
    native: bool,
    variables: bool,
) -> None:
    """Look once at a running vLLM, whoever started it: stacks of every process, merged, and who would be at fault."""
    no_command(command)
    from vllm_tui import choosing, snapshot

    with _told():
        chosen = choosing.choose(run, port, "snapshot", own_first=False)
        seen = snapshot.look(chosen, seconds)
        if native:
            click.echo("vllm-tui: --native pauses each process now, while its stack is read.", err=True)
        close = snapshot.look_closely(chosen, native=native, variables=variables) if native or variables else []
    seen = snapshot.with_native(seen, close) if native else seen
    if as_json:
        click.echo(snapshot.as_json(seen, chosen, close))
    else:
        click.echo(snapshot.as_text(seen, chosen, close, with_shares=bool(seconds)))


@cli.command()
@click.argument("session", required=False)
@click.option("--port", type=PORT, help="A server of this host, by its port, whoever started it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def probe(command: list[str] | None, session: str | None, *, port: int | None, as_json: bool) -> None:
    """Ask a server for one token, beside /health and /metrics; exit code 0 if it came within 10 s, else 1."""
    no_command(command)
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
    from vllm_tui.choosing import need_attachable

    folder = _find(session)
    with _told():
        need_attachable(folder)
    return folder


@cli.command()
@click.argument("session")
@click.pass_obj
def replay(command: list[str] | None, session: str) -> None:
    """Play the recording of a session again."""
    no_command(command)
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
    no_command(command)
    if not headless:
        _need_terminal()
    from vllm_probes.demo import demo_command, gpu_command

    command = demo_command()
    folder = launch(command, None, [], bare=False, on_stall=on_stall, gpus=gpu_command(command))
    _watch(folder, headless=headless, readonly=False, with_code=True)


def _need_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CliError(NO_TERMINAL, USAGE)


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong in there is a sentence for the person who typed."""
    from vllm_probes.keeper.folder import FolderError
    from vllm_probes.sensors.foreign import ForeignError
    from vllm_tui.choosing import ChoiceError

    try:
        yield
    except ChoiceError as error:
        raise CliError(str(error), USAGE) from None
    except (FolderError, ForeignError) as error:
        raise CliError(str(error)) from None
    except KeyboardInterrupt:
        raise CliError("Interrupted; nothing was changed.", INTERRUPTED) from None


def _find(session: str | None) -> "SessionFolder":
    from vllm_probes.keeper.folder import find

    with _told():
        return find(session)


def _watch(
    folder: "SessionFolder", *, headless: bool, readonly: bool, with_code: bool, notify: "Notify" = "bell"
) -> None:
    """Show a session until the view closes, then leave with the exit code that it deserves."""
    from vllm_probes.keeper.folder import KeeperError

    try:
        if headless:
            code = _watch_headless(folder, with_code=with_code)
        else:
            code = _watch_app(folder, readonly=readonly, with_code=with_code, notify=notify)
    except KeeperError as error:
        raise CliError(str(error), KEEPER_LOST) from None
    except KeyboardInterrupt:
        raise CliError(f"The command runs on: `vllm-tui attach {folder.path.name}` shows it.", INTERRUPTED) from None
    sys.exit(code)


def _watch_headless(folder: "SessionFolder", *, with_code: bool) -> int:
    import asyncio

    from vllm_tui import closing, headless

    try:
        model, seen = asyncio.run(headless.follow(folder, only_watches=not with_code))
    except headless.OutputError as error:
        raise CliError(f"{error} The command runs on: `vllm-tui attach {folder.path.name}`.") from None
    if not seen:
        click.echo("vllm-tui: the keeper was lost; `vllm-tui attach` starts a new one.", err=True)
        return KEEPER_LOST
    return closing.exit_code(model.attempt) if with_code else 0


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
