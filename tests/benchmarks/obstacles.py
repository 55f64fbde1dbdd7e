"""What holds a real vLLM up from outside, without a frame of ours in its stacks."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.real_vllm import RealVllm

FREEZERS, THROTTLES = Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup/blkio")
SLOW_DISK_BYTES_PER_S = 2_500_000
LARGER_MODEL = """
import sys
from transformers import LlamaConfig, LlamaForCausalLM
size = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8)
LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[1], **size)).bfloat16().save_pretrained(sys.argv[2])
"""
"""250 MB of weights, in the place of those of the tiny model."""
SLOW_BYTES_PER_S = 20_000
REPOSITORY, REVISION, ETAG = "someone/tiny", "0" * 40, "1" * 40


@dataclass(frozen=True)
class Obstacle:
    """A model that cannot be had, and what has to be there meanwhile."""

    model: str
    environment: dict[str, str]
    stands: Callable[[], AbstractContextManager[object]]

    def enter(self, stack: ExitStack) -> tuple[str, dict[str, str]]:
        stack.enter_context(self.stands())
        return self.model, self.environment


def pipe_for_weights(real: RealVllm, folder: Path) -> Obstacle:
    """A FIFO that nobody writes, in the place of the weights."""
    model = folder / "model"
    shutil.copytree(real.model, model)
    weights = next(model.glob("*.safetensors"))
    weights.unlink()
    os.mkfifo(weights)
    return Obstacle(str(model), {}, ExitStack)


def silent_hub(real: RealVllm, folder: Path) -> Obstacle:
    """A hub on loopback that accepts and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    return Obstacle(REPOSITORY, _hub(folder, listener.getsockname()[1]), lambda: listener)


def held_hub_lock(real: RealVllm, folder: Path) -> Obstacle:
    """A hub that answers, and the lock of the file that is to be downloaded held by another process: this one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lock = folder / "huggingface" / "hub" / ".locks" / f"models--{REPOSITORY.replace('/', '--')}" / f"{ETAG}.lock"

    @contextmanager
    def stands() -> Iterator[None]:
        lock.parent.mkdir(parents=True)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        server.shutdown()

    return Obstacle(REPOSITORY, _hub(folder, server.server_port), stands)


def slow_hub(real: RealVllm, folder: Path) -> Obstacle:
    """A hub that has the model, and sends its weights at 20 kB a second."""

    class Slow(_Hub):
        model = real.model

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    @contextmanager
    def stands() -> Iterator[None]:
        yield
        server.shutdown()

    return Obstacle(REPOSITORY, _hub(folder, server.server_port), stands)


def slow_disk(real: RealVllm, folder: Path) -> Obstacle:
    """Weights of 250 MB that are read from the disk at 2.5 MB a second, as vLLM reads them: by page faults.

    Raises OSError where processes cannot be throttled (blkio of cgroup v1, and no partition in between).
    """
    model = folder / "model"
    shutil.copytree(real.model, model)
    subprocess.run([str(real.python), "-c", LARGER_MODEL, str(real.model), str(model)], check=True, capture_output=True)
    return Obstacle(str(model), {}, lambda: _throttled(next(model.glob("*.safetensors"))))


@contextmanager
def _throttled(file: Path) -> Iterator[None]:
    """This process and those that it starts, while they read from the disk of the file, which is in no memory."""
    with file.open("rb") as weights:
        os.fsync(weights.fileno())
        os.posix_fadvise(weights.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        device = os.fstat(weights.fileno()).st_dev
    group = THROTTLES / f"vllm-tui-{os.getpid()}"
    group.mkdir()
    limit = f"{os.major(device)}:{os.minor(device)} {SLOW_DISK_BYTES_PER_S}"
    try:
        (group / "blkio.throttle.read_bps_device").write_text(limit)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (THROTTLES / "cgroup.procs").write_text(pid)
        group.rmdir()


def _hub(folder: Path, port: int) -> dict[str, str]:
    return {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "huggingface")}


class _Hub(BaseHTTPRequestHandler):
    """The repository as far as a download asks: its list of files, their headers, and slowly what is in them."""

    model: Path | None = None
    """None: it has headers alone."""

    def do_HEAD(self) -> None:
        self._send_headers(self._file())

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            self._send_list()
            return
        file = self._file()
        if self._send_headers(file) and file:
            self._send_slowly(file)

    def _file(self) -> Path | None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        return self.model / name if self.model else None

    def _send_headers(self, file: Path | None) -> bool:
        if file and not file.is_file():
            self.send_error(404)
            return False
        self.send_response(200)
        self.send_header("ETag", f'"{ETAG if file is None else hashlib.sha1(file.name.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(file.stat().st_size if file else 1000))
        self.end_headers()
        return True

    def _send_list(self) -> None:
        files = sorted(path.name for path in self.model.iterdir()) if self.model else ["config.json"]
        is_tree = "/tree/" in self.path
        rows = [{"type": "file", "path": name, "size": 1, "oid": ETAG} for name in files]
        siblings = [{"rfilename": name} for name in files]
        answer = rows if is_tree else {"id": REPOSITORY, "sha": REVISION, "siblings": siblings}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_slowly(self, file: Path) -> None:
        with file.open("rb") as source, suppress(ConnectionError):
            while piece := source.read(SLOW_BYTES_PER_S):
                self.wfile.write(piece)
                self.wfile.flush()
                if file.suffix == ".safetensors":
                    time.sleep(1)

    def log_message(self, format: str, *arguments: object) -> None:
        """Standard error is for the table."""


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process in a cgroup of its own that is frozen. Raises OSError where that is not allowed."""
    group = FREEZERS / f"vllm-tui-{pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        (FREEZERS / "cgroup.procs").write_text(str(pid))
        group.rmdir()
