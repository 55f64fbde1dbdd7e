"""What the benchmarks share: medians, a state folder of their own, and the cost of every process of ours."""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

PROGRAM = [sys.executable, "-m", "vllm_tui"]


def report(what: str, values: Sequence[float], unit: str, goal: str) -> None:
    """One line: median, extremes, number of runs, goal."""
    median = statistics.median(values)
    print(f"{what:<48} {median:9.3f} {unit:<6} (min {min(values):.3f}, max {max(values):.3f}, n {len(values)}; {goal})")


@contextmanager
def own_state() -> Iterator[dict[str, str]]:
    """An environment whose sessions are thrown away afterwards."""
    folder = tempfile.mkdtemp(prefix="vllm-tui-benchmark-")
    try:
        yield {**os.environ, "XDG_STATE_HOME": folder}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sessions(environment: dict[str, str]) -> list[Path]:
    """The session folders made so far, oldest first."""
    return sorted(Path(environment["XDG_STATE_HOME"], "vllm-tui", "sessions").iterdir(), key=os.path.getmtime)


class Ours:
    """The view, the keeper, the shim, and what they start (py-spy): every process of ours, none of the run."""

    def __init__(self, view_pid: int, folder: Path) -> None:
        self._view_pid, self._folder = view_pid, folder

    def processes(self) -> list[psutil.Process]:
        found = [psutil.Process(self._view_pid)]
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            if str(self._folder) not in words:
                continue
            if "shim.py" in words:
                found.append(process)
            elif "vllm_probes.keeper" in words:
                found += [
                    process,
                    *(child for child in process.children() if "shim.py" not in " ".join(child.cmdline())),
                ]
        return found

    def cpu_s(self) -> float:
        """CPU seconds of all of them, reaped children included (but for what the shim reaps: that is the run)."""
        total = 0.0
        for process in self.processes():
            times = process.cpu_times()
            total += times.user + times.system
            if "shim.py" not in " ".join(process.cmdline()):
                total += times.children_user + times.children_system
        return total

    def pss_bytes(self) -> int:
        """Memory of all of them, shared pages counted once."""
        return sum(process.memory_full_info().pss for process in self.processes())


def stop_run(folder: Path) -> None:
    """End the run of a session, whatever state it is in."""
    for record in folder.glob("attempt-*.pid"):
        shim = json.loads(record.read_text())["shim"]
        if psutil.pid_exists(shim):
            for process in psutil.Process(shim).children(recursive=True):
                process.kill()
    time.sleep(0.2)
