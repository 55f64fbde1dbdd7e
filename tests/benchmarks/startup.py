"""From Enter to the child's first instruction and to the first frame: `python -m tests.benchmarks.startup`."""

import sys
import time
from pathlib import Path

from tests.benchmarks.measure import PROGRAM, own_state, report, sessions, stop_run
from tests.terminal import Terminal

RUNS = 9


def one_run() -> tuple[float, float]:
    """Seconds to the child's start and to the first frame."""
    with own_state() as environment:
        started = Path(environment["XDG_STATE_HOME"], "started")
        begin = time.time()
        terminal = Terminal(
            [*PROGRAM, "--", "sh", "-c", f"date +%s.%N > {started}; exec sleep 100"], environment, columns=200, rows=50
        )
        terminal.wait("Log", 30)
        first_frame_s = time.time() - begin
        terminal.pump(0.5)
        child_s = float(started.read_text()) - begin
        stop_run(sessions(environment)[-1])
        terminal.close()
        return child_s, first_frame_s


def main() -> None:
    runs = [one_run() for _ in range(RUNS + 1)][1:]
    report("child's first instruction after Enter", [child for child, _ in runs], "s", "goal 0.150")
    report("first frame after Enter", [frame for _, frame in runs], "s", "goal 0.500")


if __name__ == "__main__":
    sys.exit(main())
