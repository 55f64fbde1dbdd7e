"""Commands that look at something and tell what they think of it: `doctor` and `diagnose`."""

import os
import shutil
import sys
from collections.abc import Iterable

import click

from vllm_tui.refusals import USAGE, CliError, no_command


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def doctor(command: list[str] | None, *, as_json: bool) -> None:
    """Tell what will and will not work on this host, and how to fix it; exit code 1 if something will not."""
    no_command(command)
    from vllm_probes.doctor import examine
    from vllm_tui import doctor as page

    checks = examine()
    if as_json:
        click.echo(page.as_json(checks))
    else:
        _echo(page.as_lines(checks, shutil.get_terminal_size().columns))
    sys.exit(0 if page.works(checks) else 1)


@click.command()
@click.argument("logs", nargs=-1, metavar="LOG…")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--explain", metavar="RULE", help="Tell what a rule is about, and what to do.")
@click.pass_obj
def diagnose(command: list[str] | None, logs: tuple[str, ...], *, as_json: bool, explain: str | None) -> None:
    """Tell from logs why a vLLM ended; `-` is standard input, files may be gzipped."""
    no_command(command)
    from vllm_probes.keeper.rulebook import load_rulebook
    from vllm_tui import diagnose as page

    if bool(logs) == bool(explain):
        raise CliError("Name the logs to read, or with --explain one rule.", USAGE)
    rules, faults = load_rulebook()
    for fault in faults:
        click.echo(f"vllm-tui: left out: {fault}", err=True)
    width = shutil.get_terminal_size().columns
    try:
        if explain:
            lines: list[tuple[str, str | None]] = [(line, None) for line in page.explanation(rules, explain, width)]
        else:
            findings = page.findings_of(rules, logs)
            lines = [(page.as_json(findings), None)] if as_json else [*page.as_lines(findings, rules, width)]
    except page.DiagnoseError as error:
        raise CliError(str(error)) from None
    _echo(lines)


def _echo(lines: Iterable[tuple[str, str | None]]) -> None:
    """Lines with the colour of each."""
    for line, colour in lines:
        click.echo(line if colour is None or os.environ.get("NO_COLOR") else click.style(line, fg=colour))
