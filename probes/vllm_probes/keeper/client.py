"""The other end of the socket: find or start the keeper of a session, follow it, give it commands."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from vllm_probes import commands
from vllm_probes.events import CommandAnswered, Event, decode
from vllm_probes.keeper.attempts import start_keeper
from vllm_probes.keeper.control import READ_BYTES, short_path
from vllm_probes.keeper.folder import KeeperError, SessionFolder

START_TIMEOUT_S = 60.0
"""One that fails says so by its exit code; this is for a host on which every core spins (13 s and more measured)."""
POLL_S = 0.01
HELLO = commands.Hello()
GONE = "The keeper is gone; `vllm-tui attach` starts a new one."


class Client:
    """One connection to a keeper."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._answers: dict[int, asyncio.Future[CommandAnswered]] = {}
        self._next_id = 1
        self._gone = False

    async def lines(self) -> AsyncIterator[bytes]:
        """The keeper's lines as they come, answers to commands taken out. Ends when the keeper is gone.

        Raises:
            KeeperError: the keeper speaks another version's language.
        """
        try:
            with suppress(ConnectionError):
                while line := await self._reader.readline():
                    if line.startswith(b'{"event":"command_answered"'):
                        self._answer(decode(line))
                    else:
                        yield line
        finally:
            self._gone = True
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(KeeperError(GONE))

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Events as they come."""
        async for line in self.lines():
            if (event := decode(line)) is not None:
                yield [event]

    async def send(self, command: commands.Command) -> None:
        """Give a command, with an id of `next_id`, and do not wait for the answer."""
        with suppress(ConnectionError):
            self._writer.write(commands.encode(command))
            await self._writer.drain()

    def next_id(self) -> int:
        self._next_id += 1
        return self._next_id

    async def ask(self, command: commands.Command) -> CommandAnswered:
        """Give a command (with an id of `next_id`) and wait for the answer; `lines` must be consumed meanwhile.

        Raises:
            KeeperError: the keeper is gone.
        """
        if self._gone:
            raise KeeperError(GONE)
        future: asyncio.Future[CommandAnswered] = asyncio.get_running_loop().create_future()
        self._answers[command.id] = future
        await self.send(command)
        try:
            return await future
        finally:
            self._answers.pop(command.id, None)

    def _answer(self, event: Event | None) -> None:
        if isinstance(event, CommandAnswered) and event.id == HELLO.id and not event.ok:
            raise KeeperError(event.message)
        if isinstance(event, CommandAnswered) and (future := self._answers.get(event.id)) and not future.done():
            future.set_result(event)

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


async def connect(folder: SessionFolder, *, headless: bool = False) -> Client:
    """Connect to the keeper of a session, starting one where there is none.

    Raises:
        KeeperError: it cannot be started or does not answer; its log is named.
    """
    keeper = None
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            with short_path(folder.socket) as address:
                reader, writer = await asyncio.open_unix_connection(address, limit=READ_BYTES * 64)
            client = Client(reader, writer)
            await client.send(commands.Hello(id=HELLO.id, headless=headless))
            return client
        try:
            keeper = keeper or start_keeper(folder)
        except OSError as error:
            raise KeeperError(f"No keeper can be started in {folder.path}: {error.strerror}.") from None
        if keeper is not None and keeper.poll() not in (None, 0):
            break
        await asyncio.sleep(POLL_S)
    raise KeeperError(f"The keeper of this session did not start: see {folder.keeper_log}.")
