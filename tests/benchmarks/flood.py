"""1,000,000 log lines as fast as the child can write: `python -m tests.benchmarks.flood`."""

import hashlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.measure import PROGRAM, Ours, own_state, report, sessions, stop_run
from tests.terminal import Terminal

LINES = 1_000_000
CHILD = """
import os, sys, time
sys.stdin = None
time.sleep(2)
head = "(EngineCore pid=4013) INFO 11-21 08:53:42 [core.py:402] request %09d "
out = open(1, "wb", buffering=1 << 20, closefd=False)
for n in range(1_000_000):
    out.write((head % n).ljust(129, ".").encode() + b"\\n")
out.flush()
time.sleep(1000)
"""


def expected_digest() -> str:
    head = "(EngineCore pid=4013) INFO 11-21 08:53:42 [core.py:402] request %09d "
    digest = hashlib.sha256()
    for n in range(LINES):
        digest.update((head % n).ljust(129, ".").encode() + b"\n")
    return digest.hexdigest()


def answer_s(terminal: Terminal, key: str, effect: Callable[[str], bool]) -> float:
    """From a key to its effect on the screen."""
    begin = time.monotonic()
    terminal.type(key)
    terminal.wait(effect, 30)
    return time.monotonic() - begin


def in_title(words: str) -> Callable[[str], bool]:
    return lambda text: any(words in line for line in text.splitlines() if "── Log" in line)


def main() -> None:
    with own_state() as environment:
        terminal = Terminal([*PROGRAM, "--", sys.executable, "-c", CHILD], environment, columns=200, rows=50)
        terminal.wait("Log", 30)
        folder = sessions(environment)[-1]
        ours = Ours(terminal.child.pid, folder)
        terminal.pump(1.0)
        before_mb = ours.pss_bytes() / 1e6
        terminal.wait("request 000", 30)
        latencies, pages, begin = [], [], time.monotonic()
        while "1,000,000 lines" not in terminal.text and time.monotonic() - begin < 120:
            latencies.append(answer_s(terminal, "k", in_title("· line ")))
            latencies.append(answer_s(terminal, "G", in_title("following")))
            if len(latencies) % 20 == 0:
                pages.append(answer_s(terminal, "?", lambda text: "go to the next match" in text))
                answer_s(terminal, "q", in_title("following"))
        shown_s = time.monotonic() - begin
        terminal.pump(2.0)
        log: Path = folder / "attempt-1.log"
        same = hashlib.sha256(log.read_bytes()).hexdigest() == expected_digest()
        terminal.type("g")
        terminal.wait("request 000000000", 10)
        terminal.type("G")
        terminal.wait("request 000999999", 10)
        print(f"log byte-identical: {same}; first and last line reachable; all shown after {shown_s:.1f} s")
        report("key press to its effect", latencies, "s", "goal 0.100 at the 99th percentile")
        report("a whole page (help)", pages, "s", "no goal")
        print(f"  99th percentile: {statistics.quantiles(latencies, n=100)[98]:.3f} s")
        terminal.pump(30.0)
        report("memory growth", [ours.pss_bytes() / 1e6 - before_mb], "MB", "goal 50 MB")
        stop_run(folder)
        terminal.close()


if __name__ == "__main__":
    main()
