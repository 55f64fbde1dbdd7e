"""Plays the stages of `startup.toml`."""

import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_probes.demo.log_format import capture_bar, log_at, shards_bar
from vllm_probes.demo.options import Options

_STAGES = tomllib.loads(Path(__file__).with_name("startup.toml").read_text())
_BARS = {"shards": shards_bar, "capture": capture_bar}


def stages() -> frozenset[str]:
    """The names of all stages."""
    return frozenset(_STAGES)


def play(stage: str, options: Options, rank: int = 0) -> None:
    """Print the lines of one stage at their pace, or only let the time pass where another rank prints them."""
    names = {
        "model": options.model,
        "port": options.port,
        "typed": options.typed,
        "world_size": options.tensor_parallel_size,
        "enforce_eager": options.enforce_eager,
        "rank": rank,
    }
    for entry in _entries(stage, options.enforce_eager):
        time.sleep(entry.get("wait_s", 0.0) / options.pace)
        is_printed = rank == 0 or entry.get("all_ranks", False)
        if "bar" in entry:
            _play_bar(entry, options.pace, is_printed)
        elif is_printed:
            log_at(entry["at"], entry["text"].format(**names), entry.get("level", "INFO"))


def _entries(stage: str, enforce_eager: bool) -> Iterator[dict[str, Any]]:
    return (entry for entry in _STAGES[stage] if entry.get("eager", enforce_eager) == enforce_eager)


def _play_bar(entry: dict[str, Any], pace: float, is_printed: bool) -> None:
    bar, total, each_s = _BARS[entry["bar"]], entry["total"], entry["each_s"]
    for done in range(total + 1):
        if is_printed:
            sys.stderr.write(bar(entry["text"], done, total, done * each_s))
            sys.stderr.flush()
        if done < total:
            time.sleep(each_s / pace)
