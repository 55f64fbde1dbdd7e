"""The stack files of a session folder, one a process: what `py-spy dump --json` wrote, or the same of another rung."""

from pathlib import Path

import msgspec


class Frame(msgspec.Struct, frozen=True):
    """One call, as py-spy 0.4 writes it."""

    name: str
    filename: str = ""
    short_filename: str | None = None
    line: int = 0

    @property
    def place(self) -> str:
        """`file:line`, without the folders that every frame of this installation shares."""
        return f"{self.short_filename or self.filename}:{self.line}"

    @property
    def own(self) -> bool:
        """Code of vLLM or of a package, not of the standard library."""
        packaged = "site-packages" in self.filename
        return packaged or ("/lib/python3" not in self.filename and not self.filename.startswith("<"))

    @property
    def brief(self) -> str:
        """`acquire (lock.py:12)`."""
        return f"{self.name} ({self.place.rpartition('/')[2]})"


class Thread(msgspec.Struct, frozen=True):
    """One thread, innermost call first."""

    thread_id: int
    thread_name: str | None = None
    os_thread_id: int | None = None
    active: bool = False
    owns_gil: bool | None = None
    frames: list[Frame] = []


def innermost(thread: Thread) -> Frame | None:
    """The innermost call outside the standard library, else the innermost of all."""
    return next((frame for frame in thread.frames if frame.own), next(iter(thread.frames), None))


_DECODER = msgspec.json.Decoder(list[Thread])


def read_threads(path: Path) -> list[Thread]:
    """The threads of one process, the main thread first.

    Raises:
        OSError: the file is not there any more or cannot be read.
        msgspec.DecodeError: it is not what py-spy writes.
    """
    threads = _DECODER.decode(path.read_bytes())
    return sorted(threads, key=lambda thread: thread.thread_name != "MainThread")
