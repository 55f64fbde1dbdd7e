"""Real process trees with vLLM's titles that only sleep, for what is found by titles and parents alone."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import Spawn, WaitFor

NODE = """
import json, os, subprocess, time
code, children = os.environ["NODE_CODE"], json.loads(os.environ["NODE_CHILDREN"])
for title, below in children:
    env = os.environ | {"NODE_CHILDREN": json.dumps(below)}
    subprocess.Popen([title, "-c", code], executable=os.environ["NODE_PYTHON"], env=env)
time.sleep(600)
"""
WORKERS = [["VLLM::Worker_TP0", []], ["VLLM::Worker_TP1", []]]
ENGINE = [["VLLM::EngineCore", WORKERS]]
"""What stands below an API server with two ranks."""
PORT = str(20_000 + os.getpid() % 20_000)
"""Of this test process alone: a server is found by its port, those of tests that run beside this one as well."""


class TitledTree:
    """A running tree."""

    def __init__(self, root: psutil.Process) -> None:
        self.root = root
        self.pids = {process.cmdline()[0]: process.pid for process in root.children(recursive=True)}

    def kill(self, title: str) -> None:
        psutil.Process(self.pids[title]).kill()


def node_environment(children: list[Any]) -> dict[str, str]:
    """What NODE wants to have in its environment."""
    return {"NODE_CODE": NODE, "NODE_CHILDREN": json.dumps(children), "NODE_PYTHON": sys.executable}


def has_started(root: psutil.Process, children: list[Any]) -> bool:
    """Under their own titles: one that has not come to its `exec` bears that of its parent still."""
    titles = ["".join(process.cmdline()[:1]) for process in root.children(recursive=True)]
    return sorted(titles) == sorted(_titles(children))


def _titles(children: list[Any]) -> Iterator[str]:
    for title, below in children:
        yield title
        yield from _titles(below)


def start_tree(
    spawned: Spawn, wait_for: WaitFor, argv: list[str], children: list[Any] = ENGINE, **options: Any
) -> TitledTree:
    """Start `argv`, a Python program that runs NODE, and wait until all of its tree is there."""
    env = os.environ | options.pop("env", {}) | node_environment(children)
    root = psutil.Process(spawned(argv, env=env, **options).pid)
    wait_for(lambda: has_started(root, children), 20, "the tree did not start")
    return TitledTree(root)


def server_argv(folder: Path, *flags: str) -> list[str]:
    """The command line of a `vllm serve` that is NODE."""
    (folder / "vllm").write_text(NODE)
    return [sys.executable, str(folder / "vllm"), "serve", "org/model", *flags]
