"""A session with a real keeper, and a view of it for tests."""

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

from vllm_probes import commands
from vllm_probes.events import Event
from vllm_probes.keeper.attempts import first_attempt, start_keeper
from vllm_probes.keeper.client import Client
from vllm_probes.keeper.folder import Launch, SessionFolder, create
from vllm_probes.launch.spec import LaunchSpec

Kind = TypeVar("Kind", bound=Event)


def started(argv: list[str], name: str) -> tuple[SessionFolder, int]:
    """A session with its command and its keeper; the pid of the shim."""
    folder = create(Launch(spec=LaunchSpec(argv=argv, env=dict(os.environ), cwd="/")), command=argv, name=name)
    shim = first_attempt(folder, folder.launch()).start()
    start_keeper(folder)
    return folder, shim.pid


class View:
    """A view that asks, and waits for what comes of it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for batch in self.client.batches():
            for event in batch:
                self._events.put_nowait(event)

    async def until(
        self, kind: type[Kind], condition: Callable[[Kind], bool] = lambda event: True, *, wait_s: float = 20
    ) -> Kind:
        async with asyncio.timeout(wait_s):
            while True:
                event = await self._events.get()
                if isinstance(event, kind) and condition(event):
                    return event

    async def ask(self, command: commands.Command) -> tuple[bool, str]:
        answer = await self.client.ask(command)
        return answer.ok, answer.message

    async def close(self) -> None:
        self._reading.cancel()
        await self.client.close()
