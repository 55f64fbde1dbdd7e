"""A live session as the app's source: one connection to its keeper."""

from collections.abc import AsyncIterator

import msgspec

from vllm_probes.commands import Command
from vllm_probes.events import CommandAnswered, Event
from vllm_probes.keeper.client import Client, connect
from vllm_probes.keeper.folder import KeeperError, SessionFolder
from vllm_tui.source import OtherVersionError


class LiveSource:
    """Connects when the app asks for the first events, so that the first frame waits for nothing."""

    live = True

    def __init__(self, folder: SessionFolder, *, readonly: bool = False) -> None:
        self.readonly = readonly
        self._folder = folder
        self._client: Client | None = None

    async def batches(self) -> AsyncIterator[list[Event]]:
        if self._client is None:
            try:
                self._client = await connect(self._folder)
            except KeeperError:
                return
        try:
            async for batch in self._client.batches():
                yield batch
        except KeeperError as error:
            raise OtherVersionError(str(error)) from None

    async def send(self, command: Command) -> CommandAnswered:
        if self._client is None:
            return _refusal(command, "The keeper does not answer yet.")
        try:
            return await self._client.ask(msgspec.structs.replace(command, id=self._client.next_id()))
        except KeeperError as error:
            return _refusal(command, str(error))

    async def reconnect(self) -> bool:
        await self.close()
        try:
            self._client = await connect(self._folder)
        except KeeperError:
            return False
        return True

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


def _refusal(command: Command, message: str) -> CommandAnswered:
    return CommandAnswered(time=0.0, mono=0.0, node="", attempt=0, id=command.id, ok=False, message=message)
