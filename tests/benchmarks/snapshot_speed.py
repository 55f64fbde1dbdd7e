"""How long the stacks of real Python processes take, and the CPU for it, and the whole command `vllm-tui snapshot`,
which looks twice: `python -m tests.benchmarks.snapshot_speed`.

Each process has eight threads that wait. Those of vLLM have more, of which py-spy sees three to five: what it takes
for one is the same (measured).
"""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.measure import report
from vllm_probes.rows import ProcessRef
from vllm_probes.sensors.stacks import capture

RUNS = 15
GOALS = {4: "goal 0.1", 64: "goal 1"}
COMMAND_GOALS = {4: "goal 0.6", 64: "no goal"}
WAITING = """
import asyncio, threading
def work(): threading.Event().wait()
for number in range(7): threading.Thread(target=work, name=f"worker-{number}").start()
print("ready", flush=True)
work()
"""


class Cost(NamedTuple):
    elapsed_s: float
    own_cpu_s: float
    """Of this process, as it would be the keeper's."""
    py_spy_cpu_s: float


@contextmanager
def waiting(count: int) -> Iterator[list[ProcessRef]]:
    """So many processes, which have come to where they stay."""
    processes = [subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout
            process.stdout.readline()
        yield [ProcessRef(pid=process.pid, process="Worker") for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def snapshot(targets: Sequence[ProcessRef]) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        begin, own_s, children_s = time.monotonic(), time.process_time(), children_cpu_s()
        files = asyncio.run(capture(targets, Path(folder)))
        cost = Cost(time.monotonic() - begin, time.process_time() - own_s, children_cpu_s() - children_s)
    if errors := [file.error for file in files if file.error]:
        raise SystemExit(f"{len(errors)} of {len(files)} processes gave no stacks: {errors[0]}")
    return cost


def command(root: int) -> float:
    """Seconds of `vllm-tui snapshot PID` for the tree below this process, which is their parent."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "vllm_tui", "snapshot", str(root), "--json"], check=True, capture_output=True)
    return time.monotonic() - begin


@contextmanager
def tree(count: int) -> Iterator[int]:
    """The pid of a process with so many others below it, itself included in the count."""
    children = "import subprocess, sys; own = [subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=-1)"
    program = f"{children} for _ in range({count - 1})]; [one.stdout.readline() for one in own]\n{WAITING}"
    root = subprocess.Popen([sys.executable, "-c", program, WAITING], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert root.stdout
        root.stdout.readline()
        yield root.pid
    finally:
        os.killpg(root.pid, signal.SIGKILL)
        root.communicate()


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    for count, goal in GOALS.items():
        with waiting(count) as targets:
            costs = [snapshot(targets) for _ in range(RUNS)]
        report(f"stacks of {count} processes", [cost.elapsed_s for cost in costs], "s", goal)
        report("  CPU of the keeper", [cost.own_cpu_s for cost in costs], "s", "no goal")
        report("  CPU of py-spy", [cost.py_spy_cpu_s for cost in costs], "s", "no goal")
    for count, goal in COMMAND_GOALS.items():
        with tree(count) as root:
            report(f"the command on {count} processes", [command(root) for _ in range(RUNS)], "s", goal)


if __name__ == "__main__":
    main()
