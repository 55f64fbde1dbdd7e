"""Where sessions live on disk, and what each file in a session folder is called.

A folder is the recording, the post-mortem and the test fixture at once. It is private (0700) and stays on this host:
never on a network file system, whose lost locks and missing sockets would break everything else.
"""

import fcntl
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import platformdirs

from vllm_probes import __version__
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.sensors import disk

MIN_FREE_BYTES = 64 << 20
"""Below this vLLM would die at start without a word: it cannot write its first log lines."""
KEPT_SESSIONS = 100

_Kind = TypeVar("_Kind")


class FolderError(Exception):
    """A session folder that cannot be made, found or read; the text says what to do."""


class KeeperError(Exception):
    """The keeper of a session does not answer; the text says what to do."""


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """`meta.json`: enough to list a session without reading its recording."""

    name: str
    host: str
    boot_id: str
    version: str
    created: float
    command: list[str]
    """Secrets removed."""
    cwd: str


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """`launch.json` (0600): what was typed and where, for the launch and every relaunch. Holds the environment."""

    spec: LaunchSpec
    levers: list[str] = []
    bare: bool = False


class SessionFolder:
    """The files of one session."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = path / "events.jsonl"
        self.keeper_log = path / "keeper.log"
        self.socket = path / "control.sock"
        self.snapshots = path / "snapshots"
        self.coredumps = path / "coredumps"

    def attempt(self, number: int) -> Path:
        """The path that `.log`, `.pid` and `.exit` of an attempt begin with."""
        return self.path / f"attempt-{number}"

    def attempt_count(self) -> int:
        return sum(1 for _ in self.path.glob("attempt-*.log"))

    def meta(self) -> Meta:
        """Raises FolderError when `meta.json` is missing or damaged."""
        return _read(self.path / "meta.json", Meta)

    def launch(self) -> Launch:
        """Raises FolderError when `launch.json` is missing or damaged."""
        return _read(self.path / "launch.json", Launch)

    def on_this_boot(self) -> bool:
        """Its processes can be ours: same host, same boot."""
        meta = self.meta()
        return meta.host == socket.gethostname() and meta.boot_id == boot_id()

    def lock(self) -> int | None:
        """Become the keeper: a descriptor that holds the lock until it is closed; None while another one has it."""
        descriptor = os.open(self.path / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def has_keeper(self) -> bool:
        if (descriptor := self.lock()) is None:
            return True
        os.close(descriptor)
        return False


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise FolderError(f"{path.parent} is not a session folder: it has no {path.name}.") from None
    except (OSError, msgspec.DecodeError) as error:
        raise FolderError(f"{path} cannot be read: {error}.") from None


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def state_folder() -> Path:
    """Where sessions are kept: the XDG state folder, or /var/tmp when that one is on a network or read-only.

    Raises:
        FolderError: neither can be written.
    """
    wanted = platformdirs.user_state_path("vllm-tui")
    for folder in (wanted, Path(f"/var/tmp/vllm-tui-{os.getuid()}")):
        if not disk.is_network_filesystem(folder) and _is_private_and_writable(folder):
            return folder
    raise FolderError(
        f"No place for the session: {wanted} cannot be written or is on a network file system, "
        "and neither can /var/tmp. Set XDG_STATE_HOME to a folder of yours on a local disk."
    )


def _is_private_and_writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return folder.stat().st_uid == os.getuid()


def create(*, spec: LaunchSpec, command: list[str], name: str | None, levers: list[str], bare: bool) -> SessionFolder:
    """A new session folder with `meta.json` and `launch.json`.

    Raises:
        FolderError: no writable local folder, too little space, or the name is taken.
    """
    root = state_folder() / "sessions"
    free_bytes = disk.free_bytes(root.parent)
    if free_bytes < MIN_FREE_BYTES:
        raise FolderError(
            f"Only {free_bytes >> 20} MB are free in {root}, and vLLM dies silently when it cannot write its log. "
            "Free some space, or set XDG_STATE_HOME to a folder on another local disk."
        )
    created = time.time()
    folder = SessionFolder(root / _free_name(root, name, spec, created))
    folder.path.mkdir(mode=0o700, parents=True)
    meta = Meta(
        name=folder.path.name,
        host=socket.gethostname(),
        boot_id=boot_id(),
        version=__version__,
        created=created,
        command=command,
        cwd=spec.cwd,
    )
    _write_private(folder.path / "launch.json", msgspec.json.encode(Launch(spec=spec, levers=levers, bare=bare)))
    _write_private(folder.path / "meta.json", msgspec.json.encode(meta))
    _forget_oldest(root)
    return folder


def _free_name(root: Path, name: str | None, spec: LaunchSpec, created: float) -> str:
    if name is not None:
        if not re.fullmatch(r"[\w.-]{1,60}", name) or name.startswith("."):
            raise FolderError(f"{name!r} is no name for a session: use letters, digits, dots, dashes and underscores.")
        if (root / name).exists():
            raise FolderError(f"There is a session called {name!r} already: choose another name, or attach to it.")
        return name
    base = f"{time.strftime('%m%d-%H%M%S', time.localtime(created))}-{Path(spec.argv[0]).name[:20]}"
    base = re.sub(r"[^\w.-]", "_", base)
    return base if not (root / base).exists() else f"{base}-{secrets.token_hex(2)}"


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _forget_oldest(root: Path) -> None:
    """Drop the oldest ended sessions of this host beyond a hundred; those of another host or boot are not ours."""
    folders = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
    for path in folders[:-KEPT_SESSIONS]:
        folder = SessionFolder(path)
        try:
            if folder.on_this_boot() and not folder.has_keeper() and is_over(folder):
                shutil.rmtree(path, ignore_errors=True)
        except FolderError:
            continue


def is_over(folder: SessionFolder) -> bool:
    """Every attempt has an exit file; an attempt without one may still run."""
    return all(log.with_suffix(".exit").exists() for log in folder.path.glob("attempt-*.log"))


def sessions() -> Iterator[SessionFolder]:
    """Every session folder of this user, newest first; damaged ones included."""
    roots = [platformdirs.user_state_path("vllm-tui"), Path(f"/var/tmp/vllm-tui-{os.getuid()}")]
    found = [path for root in roots if (root / "sessions").is_dir() for path in (root / "sessions").iterdir()]
    for path in sorted((path for path in found if path.is_dir()), key=lambda p: p.stat().st_mtime, reverse=True):
        yield SessionFolder(path)


def find(word: str | None) -> SessionFolder:
    """The session that a person means: a folder, a name, a unique beginning of one; without a word the newest live one.

    Raises:
        FolderError: none, or several.
    """
    if word is not None and (Path(word) / "meta.json").is_file():
        return SessionFolder(Path(word).resolve())
    known = list(sessions())
    if word is None:
        fitting = [folder for folder in known if folder.has_keeper() or not is_over(folder)]
        missing = "No session is running here. `vllm-tui ls` lists the ended ones, to be opened by name."
    else:
        fitting = [folder for folder in known if folder.path.name == word]
        fitting = fitting or [folder for folder in known if folder.path.name.startswith(word)]
        missing = f"There is no session called {word!r}: `vllm-tui ls` lists them."
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise FolderError(missing)
    raise FolderError("Several sessions fit; name one of: " + ", ".join(folder.path.name for folder in fitting))
