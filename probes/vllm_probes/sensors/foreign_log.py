"""Where a run that we did not start writes its log: the file behind its standard output, or who else has it."""

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from vllm_probes.sensors import processes, tree

_STREAMS = (1, 2)
"""Standard output first: it is where vLLM logs (logger.py of 0.32), unless somebody configured it otherwise."""
_CONTAINER = re.compile(r"(docker|libpod|cri-containerd|crio)[-/](?:.*/)?([0-9a-f]{64})")
"""Runtime and id in a line of /proc/PID/cgroup: `docker-ID.scope`, `/docker/ID`."""
_SHOWS = {"docker": "docker logs -f", "libpod": "podman logs -f", "cri-containerd": "crictl logs -f"}
_TERMINAL = re.compile(r"/dev/(pts/\d+|tty\w*|console)")


class LogPlace(NamedTuple):
    """Either a file to read, or a sentence that says whose the log is and what shows it."""

    path: Path | None
    reason: str | None = None


class _Stream(NamedTuple):
    """One open descriptor of a process."""

    name: str
    """What it stands for: a path, `pipe:[…]`, `socket:[…]`."""
    link: str
    """Its place in /proc."""


def log_of(pids: Collection[int]) -> LogPlace:
    """The log of a run, from the standard output of its processes, the first of `pids` first.

    The file is named as this process can open it, also that of a container and one that was deleted.
    """
    streams = [(pid, stream) for pid in pids for stream in _streams(pid)]
    files = (path for _, stream in streams if (path := _file(stream)) is not None)
    if (path := next(files, None)) is not None:
        return LogPlace(path)
    if not streams:
        return LogPlace(None, _unreadable(next(iter(pids), 0)))
    pid, stream = streams[0]
    return LogPlace(None, _reason(pid, stream, pids))


def _streams(pid: int) -> Iterator[_Stream]:
    for number in _STREAMS:
        link = f"/proc/{pid}/fd/{number}"
        try:
            yield _Stream(os.readlink(link), link)
        except OSError:
            continue


def _file(stream: _Stream) -> Path | None:
    """The path of a regular file; None for anything else.

    By its own name if that leads to the same file here, through the root of the process where it is in another mount
    namespace, else through the descriptor, which is there as long as the process.
    """
    try:
        opened = os.stat(stream.link)
    except OSError:
        return None
    if not stat.S_ISREG(opened.st_mode) or not os.access(stream.link, os.R_OK):
        return None
    inside = f"{stream.link.rpartition('/fd/')[0]}/root{stream.name}"
    for path in (stream.name, inside):
        try:
            if os.path.samestat(os.stat(path), opened):
                return Path(path)
        except OSError:
            continue
    return Path(stream.link)


def _reason(pid: int, stream: _Stream, pids: Collection[int]) -> str:
    if (shown := _container_command(pid)) is not None:
        return f"Its log is kept by the container runtime: `{shown}` shows it."
    if stream.name.startswith("socket:") and _is_journal(pid, stream):
        return f"Its log goes to the journal: `journalctl -f {' '.join(f'_PID={one}' for one in pids)}` shows it."
    if stream.name.startswith("pipe:"):
        return _pipe_reason(stream.name, pids)
    if _TERMINAL.fullmatch(stream.name):
        return f"Its log goes to the terminal {stream.name} and is kept nowhere: {_NEXT_TIME}."
    if stream.name == "/dev/null":
        return f"Its log is thrown away (/dev/null): {_NEXT_TIME}."
    return f"Its log goes to {stream.name}, which nobody else can read: {_NEXT_TIME}."


_NEXT_TIME = "started with `>FILE 2>&1` it could be read here"


def _container_command(pid: int) -> str | None:
    """What shows the log of the container that a process is in, from the cgroup it is in as we see it."""
    own = tree.read("/proc/self/cgroup")
    theirs = tree.read(f"/proc/{pid}/cgroup")
    found = _CONTAINER.search(theirs.decode(errors="replace")) if theirs != own else None
    if found is None:
        return None
    return f"{_SHOWS.get(found[1], 'crictl logs -f')} {found[2][:12]}"


def _is_journal(pid: int, stream: _Stream) -> bool:
    """systemd tells a service device and inode of the socket that leads to the journal (systemd.exec(5))."""
    told = processes.environ(pid).get("JOURNAL_STREAM", "").partition(":")[2]
    return stream.name == f"socket:[{told}]"


def _pipe_reason(pipe: str, pids: Collection[int]) -> str:
    """Who is at the other end: every process that we may look into is searched."""
    for pid in (int(name) for name in tree.listing("/proc") if name.isdecimal()):
        opened = _opened(pid) if pid not in pids else []
        if (pipe, os.O_RDONLY) not in opened:
            continue
        files = [
            name for name, access in opened if access != os.O_RDONLY and name.startswith("/") and _is_regular(name)
        ]
        written = f" It writes {', '.join(files)}: try `--log {files[0]}`." if files else ""
        return f"Its log goes through a pipe to {tree.title(pid)} (pid {pid}), which alone has it.{written}"
    return "Its log goes through a pipe to a process that cannot be seen from here: `--log FILE` says where it ends up."


def _opened(pid: int) -> list[tuple[str, int]]:
    """What each of its descriptors stands for, and O_RDONLY, O_WRONLY or O_RDWR (`flags` of /proc/PID/fdinfo)."""
    found = []
    for number in tree.listing(f"/proc/{pid}/fd"):
        flags = tree.read(f"/proc/{pid}/fdinfo/{number}").partition(b"flags:")[2].split()
        try:
            found.append((os.readlink(f"/proc/{pid}/fd/{number}"), int(flags[0], 8) & os.O_ACCMODE if flags else -1))
        except OSError:
            continue
    return found


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _unreadable(pid: int) -> str:
    return (
        f"Where its log goes may not be seen: it is another user's. `sudo ls -l /proc/{pid}/fd/1` tells, "
        "and `--log FILE` makes it known here."
    )
