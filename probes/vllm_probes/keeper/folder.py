"""Where sessions live on disk, and what each file in a session folder is called.

A folder is the recording, the post-mortem and the test fixture at once. It is private (0700) and stays on this host:
never on a network file system, whose lost locks and missing sockets would break everything else.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import platformdirs

from vllm_probes import __version__
from vllm_probes.launch.on_stall import OnStall
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.sensors import disk, tree
from vllm_probes.sensors.shims import shim_alive

MIN_FREE_BYTES = 64 << 20
"""Below this vLLM would die at start without a word: it cannot write its first log lines."""
KEPT_SESSIONS = 100
RESERVED_BYTES = 256 << 10
"""Room taken for the recording before there is anything to record: a log can fill a disk within a second."""

_Kind = TypeVar("_Kind")


class FolderError(Exception):
    """A session folder that cannot be made, found or read; the text says what to do."""


class KeeperError(Exception):
    """The keeper of a session does not answer; the text says what to do."""


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """A run that somebody else started and that a session only watches. With its start a pid names it for ever."""

    pid: int
    """Of the root of its tree."""
    start_ticks: int
    """When that began, in clock ticks since boot."""
    user: str | None
    """Whose it is; None: this user's."""
    is_vllm: bool
    url: str | None
    """Where its server listens, or will; None: not known."""
    listens: bool
    """It did already when the session began."""
    log: str | None
    """The absolute path of its log; None: no file that we can read has it."""
    log_reason: str | None
    """Why not, and what shows it: a sentence."""


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
    attached: Attached | None = None
    """None: what the session launched itself."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """`launch.json` (0600): what was typed and where, for the launch and every relaunch. Holds the environment."""

    spec: LaunchSpec
    levers: list[str] = []
    bare: bool = False
    on_stall: OnStall = OnStall()
    gpus: list[str] = []
    """The program that tells of the GPUs in the place of the one that asks the driver."""


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
        """Somebody holds the lock; looks only, and leaves nothing behind in folders of others."""
        try:
            descriptor = os.open(self.path / "keeper.lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def is_ours(self) -> bool:
        """It belongs to this user: what another one put there is neither run nor connected to."""
        return _is_ours(self.path)

    def attached(self) -> Attached | None:
        """The run that it only watches, on this boot; None: it launches its own, or cannot be read."""
        try:
            return self.meta().attached if self.on_this_boot() else None
        except FolderError:
            return None

    def is_over(self) -> bool:
        """Every attempt's command has ended, and nothing of its tree is left to run."""
        if attached := self.attached():
            return not tree.is_same(attached.pid, attached.start_ticks)
        ended = all(log.with_suffix(".exit").exists() for log in self.path.glob("attempt-*.log"))
        return ended and not any(self.shim_pids())

    def shim_pids(self) -> Iterator[int]:
        """The shims of its attempts that run."""
        for log in self.path.glob("attempt-*.log"):
            if (pid := shim_alive(log.with_suffix(""))) is not None:
                yield pid


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode)


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.convert(json.loads(path.read_bytes()), kind)
    except FileNotFoundError:
        raise FolderError(f"{path.parent} is not a session folder: it has no {path.name}.") from None
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
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
    for folder in (wanted, fallback_folder()):
        if not disk.is_network_filesystem(folder) and _is_private_and_writable(folder):
            return folder
    raise FolderError(
        f"No place for the session: {wanted} cannot be written or is on a network file system, "
        "and neither can /var/tmp. Set XDG_STATE_HOME to a folder of yours on a local disk."
    )


def fallback_folder() -> Path:
    """Where sessions are kept when the XDG state folder cannot be used: local, and kept over a restart."""
    return Path(f"/var/tmp/vllm-tui-{os.getuid()}")


def _is_private_and_writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return _is_ours(folder.resolve())


def create(launch: Launch, *, command: list[str], name: str | None, attached: Attached | None = None) -> SessionFolder:
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
    folder = SessionFolder(root / _free_name(root, name, launch.spec, created))
    folder.path.mkdir(mode=0o700, parents=True)
    meta = Meta(
        name=folder.path.name,
        host=socket.gethostname(),
        boot_id=boot_id(),
        version=__version__,
        created=created,
        command=[_text(word) for word in command],
        cwd=_text(launch.spec.cwd),
        attached=attached,
    )
    _write_private(folder.path / "launch.json", launch)
    _write_private(folder.path / "meta.json", meta)
    disk.reserve(folder.events, RESERVED_BYTES)
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


def _text(word: str) -> str:
    """A word of the command line to be shown: bytes that are no UTF-8 become `?`."""
    return word.encode(errors="replace").decode()


def _write_private(path: Path, record: msgspec.Struct) -> None:
    """As ASCII JSON: arguments and paths that are no UTF-8 come back from it as they were."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        json.dump(msgspec.to_builtins(record), file)


def _forget_oldest(root: Path) -> None:
    """Drop the oldest ended sessions of this host beyond a hundred; those of another host or boot are not ours."""
    folders = sorted((path for path in root.iterdir() if _is_ours(path)), key=_changed)
    for path in folders[:-KEPT_SESSIONS]:
        folder = SessionFolder(path)
        try:
            if folder.on_this_boot() and not folder.has_keeper() and folder.is_over():
                shutil.rmtree(path, ignore_errors=True)
        except FolderError:
            continue


def sessions() -> Iterator[SessionFolder]:
    """Every session folder of this user, newest first; damaged ones included."""
    roots = [platformdirs.user_state_path("vllm-tui") / "sessions", fallback_folder() / "sessions"]
    found = [path for root in roots if _is_ours(root.resolve()) for path in root.iterdir() if _is_ours(path)]
    for path in sorted(found, key=_changed, reverse=True):
        yield SessionFolder(path)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # it is being forgotten
        return 0.0


def find(word: str | None) -> SessionFolder:
    """The session that a person means: a folder, a name, a unique beginning of one; without a word the newest live one.

    Raises:
        FolderError: none, or several.
    """
    if word is not None and (Path(word) / "meta.json").is_file():
        return SessionFolder(Path(word).resolve())
    known = list(sessions())
    if word is None:
        fitting = live_sessions()
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


def live_sessions() -> list[SessionFolder]:
    """Those of this user on this boot that run or are kept, newest first."""
    return [folder for folder in sessions() if _may_run(folder)]


def _may_run(folder: SessionFolder) -> bool:
    try:
        return folder.on_this_boot() and (folder.has_keeper() or not folder.is_over())
    except FolderError:
        return False
