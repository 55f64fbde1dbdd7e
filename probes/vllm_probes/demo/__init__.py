"""A self-contained incident: real processes with real stacks, shaped like vLLM 0.32 with eight ranks, that really hang.

Standard library only; needs neither vLLM nor a GPU. The folder `vllm` beside this file mirrors the paths and function
names of vLLM where they are seen from outside: in titles, log lines, /metrics and stacks. After it has served for
20 seconds, one worker that the demo draws at random takes a lock twice, just before the collective. Nobody outside is
told which one. Its eight GPUs are simulated: the ranks that wait keep them spinning, while they poll themselves, to
leave the host's cores alone.
"""

import socket
import sys
from pathlib import Path

MODEL = "demo/Llama-3.1-8B"


def demo_command(port: int | None = None) -> list[str]:
    """The command line of the demo, a `vllm serve` like any other; without a port a free one is chosen."""
    vllm = Path(__file__).with_name("vllm")
    serve = ["serve", MODEL, "--tensor-parallel-size", "8", "--port", str(port or _free_port())]
    return [sys.executable, str(vllm), *serve]


def gpu_command(command: list[str]) -> list[str]:
    """The program that speaks for the simulated GPUs of a demo with this command line."""
    return [sys.executable, "-m", "vllm_probes.demo.gpus", command[-1]]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
