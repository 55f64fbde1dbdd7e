"""HTTP/1.1 as far as the demo needs it, with the access lines of uvicorn."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True)
class Response:
    """Status, body and its type."""

    status: HTTPStatus = HTTPStatus.OK
    body: bytes = b""
    content_type: str = "application/json"


Handler = Callable[[str, str, bytes], Awaitable[Response]]
"""Method, path without query, body."""


async def serve_connection(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection until either side ends it."""
    host, port = writer.get_extra_info("peername")[:2]
    # Cancelled at the end of the server: asyncio would log a connection's task that ends as cancelled.
    with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        while True:
            method, target, body = await _read_request(reader)
            response = await handler(method, target.partition("?")[0], body)
            status = f"{response.status.value} {response.status.phrase}"
            print(f'INFO:     {host}:{port} - "{method} {target} HTTP/1.1" {status}', flush=True)
            head = f"HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-type: {response.content_type}\r\n"
            writer.write(f"{head}content-length: {len(response.body)}\r\n\r\n".encode() + response.body)
            await writer.drain()
    writer.close()


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    return method, target, await reader.readexactly(int(headers.get("content-length", "0")))
