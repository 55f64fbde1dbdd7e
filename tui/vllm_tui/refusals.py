"""How the command line says no: a sentence on standard error, and an exit code."""

from typing import Any

import click

USAGE, KEEPER_LOST, NOT_EXECUTABLE, NOT_FOUND, INTERRUPTED = 2, 70, 126, 127, 130


class CliError(click.ClickException):
    """A sentence that says what to do, and the exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class and reads the instance's

    def show(self, file: Any = None) -> None:
        click.echo(f"vllm-tui: {self.message}", err=True, file=file)


def no_command(command: list[str] | None) -> None:
    """Refuse a command behind -- where nothing is launched."""
    if command is not None:
        raise CliError("Only `run` launches what stands behind --.", USAGE)
