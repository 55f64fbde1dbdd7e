"""One line of the source of a running program, which says what a frame of its stack alone does not."""

import asyncio
from contextlib import suppress

MAX_CHARACTERS = 200
WAIT_S = 0.5
"""A file system that does not answer may be the very reason for a hang: whoever reads from it must not wait with it."""


async def source_line(pid: int, file: str, line: int) -> str | None:
    """As the process itself sees the file, without blanks at both ends; None: it cannot be read."""
    if line <= 0 or not file.startswith("/"):
        return None
    try:
        reader = await asyncio.create_subprocess_exec(
            *("sed", "-n", "-e", f"{line}{{p;q}}", f"/proc/{pid}/root{file}"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return None
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            printed, _ = await reader.communicate()
            return printed.decode(errors="replace").strip()[:MAX_CHARACTERS] or None
    with suppress(ProcessLookupError):
        reader.kill()
    return None
