"""The keeper's Unix socket: JSON lines, events out and commands in.

A slow view never slows the keeper: what it cannot take in is dropped, and it gets the whole model again once it has
caught up. A headless view reads the recording instead, at its own pace, and misses nothing.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from vllm_probes import commands
from vllm_probes.events import CommandAnswered, Event, ModelRestored, encode

MAX_BACKLOG_BYTES = 4 << 20
READ_BYTES = 1 << 20
HELLO_TIMEOUT_S = 10.0


class Host(Protocol):
    """What the socket needs of the keeper."""

    def restored(self) -> ModelRestored: ...

    def answered(self, command: commands.Command, ok: bool, message: str) -> CommandAnswered: ...

    async def obey(self, command: commands.AnyCommand) -> tuple[bool, str]:
        """Whether it is done or under way, and a sentence for the person who asked."""


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for a socket that fits into the 108 bytes of an address, however deep its folder is."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def peer_uid(connection: socket.socket) -> int:
    """User id of the other end (SO_PEERCRED: pid, uid, gid)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


class View:
    """One connected view that follows the live stream."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.lagging = False

    @property
    def backlog_bytes(self) -> int:
        return self.writer.transport.get_write_buffer_size()

    def send(self, line: bytes) -> None:
        self.lagging = self.lagging or self.backlog_bytes > MAX_BACKLOG_BYTES
        if not self.lagging:
            self.writer.write(line)


class ControlServer:
    """Accepts views of this user and hands their commands to the host."""

    def __init__(self, path: Path, recording: Path, host: Host) -> None:
        self._path, self._recording, self._host = path, recording, host
        self._views: set[View] = set()
        self._connections = 0
        self._recorded = asyncio.Condition()

    @property
    def connection_count(self) -> int:
        return self._connections

    async def start(self) -> asyncio.Server:
        """Listen; a socket that a killed keeper left behind is replaced (the caller holds the session's lock)."""
        self._path.unlink(missing_ok=True)
        with short_path(self._path) as address:
            server = await asyncio.start_unix_server(self._serve, path=address, limit=READ_BYTES)
        self._path.chmod(0o600)
        return server

    def broadcast(self, event: Event) -> None:
        """Send an event to every live view."""
        if self._views:
            line = encode(event)
            for view in self._views:
                view.send(line)

    async def recorded(self) -> None:
        """Tell headless views that the recording has grown, and lagging ones everything once they have caught up."""
        async with self._recorded:
            self._recorded.notify_all()
        for view in self._views:
            if view.lagging and view.backlog_bytes == 0:
                view.lagging = False
                view.send(encode(self._host.restored()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, TimeoutError, asyncio.LimitOverrunError, ValueError):
                await self._converse(reader, writer)
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if peer_uid(writer.get_extra_info("socket")) != os.getuid():
            return
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = commands.decode(await reader.readline())
        if not isinstance(hello, commands.Hello) or hello.protocol != commands.PROTOCOL:
            writer.write(encode(self._host.answered(hello or commands.Hello(), False, commands.OTHER_VERSION)))
            await writer.drain()
            return
        self._connections += 1
        try:
            await (self._follow_recording if hello.headless else self._follow_live)(reader, writer)
        finally:
            self._connections -= 1

    async def _follow_live(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        view = View(writer)
        view.send(encode(self._host.restored()))
        self._views.add(view)
        try:
            await self._obey(reader, writer)
        finally:
            self._views.discard(view)

    async def _follow_recording(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        obeying = asyncio.ensure_future(self._obey(reader, writer))
        copying = asyncio.ensure_future(self._copy_recording(writer))
        await _until_first(obeying, copying)

    async def _copy_recording(self, writer: asyncio.StreamWriter) -> None:
        with self._recording.open("rb") as file:
            while True:
                while chunk := file.read(READ_BYTES):
                    writer.write(chunk)
                    await writer.drain()
                async with self._recorded:
                    await self._recorded.wait()

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            command = commands.decode(line)
            if command is None:
                answer = self._host.answered(commands.unknown(line), False, commands.OTHER_VERSION)
            else:
                answer = self._host.answered(command, *await self._host.obey(command))
            writer.write(encode(answer))
            await writer.drain()


async def _until_first(*tasks: "asyncio.Future[None]") -> None:
    """Wait until one of them is done, then end the rest."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
