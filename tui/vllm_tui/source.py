"""Where the app gets its facts from and sends its wishes to: a live keeper, a recording, or a script of a test."""

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

from vllm_probes.commands import Command
from vllm_probes.events import CommandAnswered, Event


class OtherVersionError(Exception):
    """The keeper speaks the language of another version of this program."""


class Source(Protocol):
    """One session, seen from a view."""

    @property
    def readonly(self) -> bool:
        """The user asked for a view that changes nothing."""
        ...

    @property
    def live(self) -> bool:
        """False for a recording: its clock is that of its events, and nobody takes commands."""
        ...

    def batches(self) -> AsyncIterator[list[Event]]:
        """Events in order, first `ModelRestored`; ends when the keeper is gone or the recording is over.

        Raises:
            OtherVersionError: what the keeper says cannot be shown.
        """
        ...

    async def send(self, command: Command) -> CommandAnswered:
        """Ask the keeper for something; a keeper that is gone gives an answer that is not ok."""
        ...

    async def reconnect(self) -> bool:
        """Look for the keeper again, once. Whatever comes of it, `batches` may be called anew."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class ReplayControls(Protocol):
    """What a source that is a recording can do besides."""

    @property
    def paused(self) -> bool: ...

    @property
    def speed(self) -> float:
        """Recorded seconds per second."""
        ...

    @property
    def unknown_line_count(self) -> int:
        """Lines of the recording up to here that this version could not read."""
        ...

    def toggle_pause(self) -> None: ...

    def step(self) -> None:
        """Pause and play the next moment of the recording."""
        ...

    def change_speed(self, factor: float) -> None: ...
