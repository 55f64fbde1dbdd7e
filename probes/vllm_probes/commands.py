"""What a view may ask of the keeper: one struct each, one JSON line each on the control socket."""

from typing import Literal, cast

import msgspec

from vllm_probes.events import DAMAGED

PROTOCOL = 1
OTHER_VERSION = "This session is kept by another version of vllm-tui: attach with that version."


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="command"):
    """`id` is chosen by the view and comes back in `command_answered`."""

    id: int = 0


class Hello(Command, frozen=True, kw_only=True, tag="hello"):
    """First line of every connection; another protocol is answered with a refusal that says what to do."""

    protocol: int = PROTOCOL
    headless: bool = False
    """Recorded lines from the beginning, nothing else."""


class Stop(Command, frozen=True, kw_only=True, tag="stop"):
    """End the tree; `kill` skips the polite signals."""

    kill: bool = False
    by: Literal["key", "signal", "leftovers"] = "key"


class Relaunch(Command, frozen=True, kw_only=True, tag="relaunch"):
    """Stop what still runs, then launch again with just these levers.

    `clean` also leaves out the debug variables that the shell handed down.
    """

    levers: list[str] = []
    clean: bool = False


class CaptureStacks(Command, frozen=True, kw_only=True, tag="capture_stacks"):
    """Stacks of every process, now."""


class Probe(Command, frozen=True, kw_only=True, tag="probe"):
    """Send one request for one token; `probe_finished` tells what came of it."""


class StartNow(Command, frozen=True, kw_only=True, tag="start_now"):
    """Let a relaunch that waits wait no longer."""


class EndHolders(Command, frozen=True, kw_only=True, tag="end_holders"):
    """End the processes of this user's other sessions that hold a relaunch up."""


class StopWatching(Command, frozen=True, kw_only=True, tag="stop_watching"):
    """Let a run that we did not start go on without a keeper, unless another view looks at it."""


class _Numbered(msgspec.Struct):
    id: int = 0


AnyCommand = Hello | Stop | Relaunch | StartNow | EndHolders | CaptureStacks | Probe | StopWatching

_DECODER = msgspec.json.Decoder(AnyCommand)


def encode(command: Command) -> bytes:
    """The command as one JSON line, newline included."""
    return msgspec.json.encode(command) + b"\n"


def decode(line: bytes) -> AnyCommand | None:
    """The command of one JSON line; None when this version does not know it."""
    try:
        return cast(AnyCommand, _DECODER.decode(line))
    except DAMAGED:
        return None


def unknown(line: bytes) -> Command:
    """What can be said of a command that `decode` does not know: its id, 0 where even that is missing."""
    try:
        return Command(id=msgspec.json.decode(line, type=_Numbered).id)
    except DAMAGED:
        return Command()
