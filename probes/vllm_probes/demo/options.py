"""The command line of the demo: the few flags that change something; any other flag of vLLM is taken and ignored."""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What `serve` was asked for."""

    model: str
    port: int
    tensor_parallel_size: int
    enforce_eager: bool
    pace: float
    """How many times faster than a real incident everything happens."""
    typed: dict[str, object]
    """The flags that differ from their defaults, as vLLM logs them."""


def parse(argv: list[str]) -> Options:
    """Read `serve MODEL [flags]`; wrong values end the process with a usage message and code 2."""
    parser = argparse.ArgumentParser(prog="vllm_probes.demo", allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model_tag")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--pace", type=float, default=1.0)
    known, _ = parser.parse_known_args(argv)
    typed = {name: value for name, value in vars(known).items() if value != parser.get_default(name)}
    typed = {name: value for name, value in typed.items() if name not in ("command", "pace")}
    return Options(
        model=known.model_tag,
        port=known.port,
        tensor_parallel_size=known.tensor_parallel_size,
        enforce_eager=known.enforce_eager,
        pace=known.pace,
        typed=typed | {"model": known.model_tag},
    )
