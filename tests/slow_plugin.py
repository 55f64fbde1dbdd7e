"""A plugin of vLLM that slows one rank down: entry point `vllm.general_plugins`, loaded by every process of vLLM.

Runs under the Python of real vLLM. While the file that SLOW_RANK_FILE names is there, every step of rank 1 takes three
times as long: `sleep` in it makes the rank sleep, anything else keeps it busy.
"""

import functools
import os
import time
from pathlib import Path
from typing import Any

SLOW_RANK = 1
FACTOR = 3


def register() -> None:
    """Wrap what a worker does for one step."""
    from vllm.v1.worker.gpu_worker import Worker

    execute_model = Worker.execute_model
    order = Path(os.environ["SLOW_RANK_FILE"])

    @functools.wraps(execute_model)
    def slowed(self: Any, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = execute_model(self, *arguments, **options)
        if self.rank == SLOW_RANK and order.exists():
            _dawdle((FACTOR - 1) * (time.perf_counter() - began), order.read_text())
        return result

    Worker.execute_model = slowed


def _dawdle(seconds: float, how: str) -> None:
    if how == "sleep":
        time.sleep(seconds)
        return
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def install(folder: Path) -> None:
    """Make an importable folder of it, for PYTHONPATH: this module and what tells vLLM of it."""
    facts = folder / "slow_plugin-1.dist-info"
    facts.mkdir(parents=True)
    (folder / "slow_plugin.py").write_text(Path(__file__).read_text())
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-plugin\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[vllm.general_plugins]\nslow_rank = slow_plugin:register\n")
