"""Clients of the demo's own server: real connections with real requests, so that there is something to hang."""

import asyncio
import json
import random

MAX_OUTSTANDING = 12
"""A hung server does not gather connections without end."""


async def send_requests(port: int, model: str) -> None:
    """Send completion requests of different lengths for ever, several at a time."""
    free_places = asyncio.Semaphore(MAX_OUTSTANDING)
    async with asyncio.TaskGroup() as clients:
        while True:
            await free_places.acquire()
            clients.create_task(_request(port, model)).add_done_callback(lambda _: free_places.release())
            await asyncio.sleep(random.uniform(0.1, 0.6))


async def _request(port: int, model: str) -> None:
    prompt = "word " * random.randint(80, 400)
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": random.randint(40, 120)}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: demo\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
