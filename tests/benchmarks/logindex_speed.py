"""How fast a log of a million lines is indexed, searched, filtered and judged, and what the index costs.

Run: python tests/benchmarks/logindex_speed.py
"""

import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from vllm_probes.events import Stamp
from vllm_probes.judges.rules import load_rules
from vllm_probes.log.index import LogIndex
from vllm_probes.sensors.logfile import LogSensor

LINES = 1_000_000
WIDTH = 130
PLAIN = "(APIServer pid=3976) INFO 11-21 08:53:43 [launcher.py:195] Route: /v1/chat/completions, Methods: POST"
ALARM = "(Worker_TP0 pid=4031) ERROR 11-21 08:53:43 [worker.py:95] something went wrong and was logged"


def write_log(path: Path, lines: int) -> None:
    """One line in a hundred is an error."""
    hundred = [PLAIN.ljust(WIDTH, ".")] * 99 + [ALARM.ljust(WIDTH, ".")]
    text = ("\n".join(hundred) + "\n").encode()
    with path.open("wb") as file:
        for _ in range(lines // 100):
            file.write(text)


def timed(name: str, lines: int, action: Callable[[], object]) -> None:
    begin = time.perf_counter()
    action()
    elapsed_s = time.perf_counter() - begin
    print(f"{name:32} {lines / elapsed_s:12,.0f} lines/s {elapsed_s * 1000:10,.2f} ms")


def index_all(index: LogIndex) -> None:
    while index.refresh():
        pass


def search_all(index: LogIndex) -> None:
    resume: int | None = 0
    while resume is not None:
        resume = index.find("nowhere", resume).resume


def filter_all(index: LogIndex) -> None:
    rows = index.rows(level="error")
    while rows.refresh():
        pass


def judge_all(path: Path) -> None:
    sensor = LogSensor(path, load_rules(), str)
    stamp = Stamp(time=0.0, mono=0.0, node="here", attempt=1)
    sensor.sample(stamp)
    while sensor.behind:
        sensor.sample(stamp)
    sensor.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        write_log(path, LINES)
        index = LogIndex(path)
        timed("index", LINES, lambda: index_all(index))
        timed("search to the end", LINES, lambda: search_all(index))
        timed("filter by level", LINES, lambda: filter_all(index))
        timed("judge (LogSensor)", LINES, lambda: judge_all(path))
        timed("read 50 rows in the middle", 50, lambda: index.read(LINES // 2, 50))
        index.close()
        tracemalloc.start()
        index = LogIndex(path)
        index_all(index)
        kept, peak = tracemalloc.get_traced_memory()
        print(f"{'memory of the index':32} {kept / 1e6:.2f} MB kept, {peak / 1e6:.2f} MB at most while indexing")
        index.close()


if __name__ == "__main__":
    main()
