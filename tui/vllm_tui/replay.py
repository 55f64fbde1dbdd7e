"""A recording as the app's source: the lines of `events.jsonl` at the pace in which they were written."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from vllm_probes.commands import Command
from vllm_probes.events import CommandAnswered, Event, ModelRestored, decode
from vllm_probes.model import SessionModel, snapshot

MOMENT_S = 0.1
"""Events that are no further apart belong to one moment."""
LONGEST_PAUSE_S = 2.0
"""Longer silences of the recording are shortened to this."""
SLOWEST, FASTEST = 1 / 8, 1024.0


class ReplaySource:
    """Plays one recording once; reads it as it goes."""

    readonly = True
    live = False

    def __init__(self, events: Path) -> None:
        self._events = events
        self._stepping = False
        self._changed = asyncio.Event()
        self.paused = False
        self.speed = 1.0
        self.unknown_line_count = 0

    # --- events ---------------------------------------------------------------------------------------------------

    async def batches(self) -> AsyncIterator[list[Event]]:
        """The moments of the recording, each when its time has come.

        Raises:
            OSError: the recording cannot be read.
        """
        before: Event | None = None
        for moment in self._moments():
            if before is None:
                yield [_nothing_yet(moment[0])]
            else:
                await self._wait(min(LONGEST_PAUSE_S, moment[0].mono - before.mono))
            before = moment[-1]
            yield moment

    def _moments(self) -> Iterator[list[Event]]:
        moment: list[Event] = []
        for event in self._read():
            if moment and event.mono - moment[-1].mono > MOMENT_S:
                yield moment
                moment = []
            moment.append(event)
        if moment:
            yield moment

    def _read(self) -> Iterator[Event]:
        with self._events.open("rb") as file:
            for line in file:
                if (event := decode(line)) is not None:
                    yield event
                elif line.strip():
                    self.unknown_line_count += 1

    async def _wait(self, pause_s: float) -> None:
        """Let so much recorded time pass, whatever the user does with pace and pause meanwhile."""
        loop = asyncio.get_running_loop()
        while pause_s > 0 and not self._stepping:
            started_s, speed = loop.time(), 0.0 if self.paused else self.speed
            try:
                async with asyncio.timeout(pause_s / speed if speed else None):
                    await self._changed.wait()
            except TimeoutError:
                return
            self._changed.clear()
            pause_s -= (loop.time() - started_s) * speed
        self._stepping = False

    # --- controls -------------------------------------------------------------------------------------------------

    def toggle_pause(self) -> None:
        self.paused = not self.paused
        self._changed.set()

    def step(self) -> None:
        self.paused = self._stepping = True
        self._changed.set()

    def change_speed(self, factor: float) -> None:
        self.speed = min(FASTEST, max(SLOWEST, self.speed * factor))
        self._changed.set()

    # --- what a recording cannot do -------------------------------------------------------------------------------

    async def send(self, command: Command) -> CommandAnswered:
        refusal = "This is a recording: nobody takes commands."
        return CommandAnswered(time=0.0, mono=0.0, node="", attempt=0, id=command.id, ok=False, message=refusal)

    async def reconnect(self) -> bool:
        return False

    async def close(self) -> None:
        self.paused = False


def _nothing_yet(first: Event) -> ModelRestored:
    model = snapshot(SessionModel())
    return ModelRestored(time=first.time, mono=first.mono, node=first.node, attempt=0, model=model)
