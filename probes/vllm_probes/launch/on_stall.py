"""What is to be done when a run is stalled and nobody looks: `--on-stall` of the command line."""

import os
import shlex
import shutil
from collections.abc import Sequence

import msgspec

EXEC = "exec="


class OnStallError(ValueError):
    """A word that cannot be obeyed; the message says what to write."""


class OnStall(msgspec.Struct, frozen=True, kw_only=True):
    """Done in the order of the fields, whatever the order in which it was typed."""

    bundle: bool = False
    """Copy the evidence into a folder of its own."""
    commands: list[list[str]] = []
    """To be run, without a shell."""
    exit: bool = False
    """Stop the tree."""


def parse(words: Sequence[str]) -> OnStall:
    """What `bundle`, `exit` and `exec=CMD` ask for; CMD is split into words as a shell would.

    Programs with a path are meant from the current folder.

    Raises:
        OnStallError: another word, or a command that is empty, has an open quotation mark, or cannot be found.
    """
    for word in words:
        if word not in ("bundle", "exit") and not word.startswith(EXEC):
            raise OnStallError(f"--on-stall takes bundle, exit or exec=CMD, not {word!r}.")
    commands = [_command(word.removeprefix(EXEC)) for word in words if word.startswith(EXEC)]
    return OnStall(bundle="bundle" in words, commands=commands, exit="exit" in words)


def _command(text: str) -> list[str]:
    try:
        argv = shlex.split(text)
    except ValueError as error:
        raise OnStallError(f"--on-stall exec={text} cannot be split into words: {error}.") from None
    if not argv:
        raise OnStallError("--on-stall exec= lacks a command: write --on-stall 'exec=PROGRAM ARGUMENTS'.")
    program = shutil.which(argv[0])
    if program is None:
        raise OnStallError(f"--on-stall exec={text}: {argv[0]} was not found or is not executable.")
    return [os.path.abspath(program) if os.sep in argv[0] else argv[0], *argv[1:]]
