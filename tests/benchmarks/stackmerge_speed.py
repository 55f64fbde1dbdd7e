"""How long it takes to classify and to merge the stacks of 128 ranks, and to find out who waits for whom.

Run: python -m tests.benchmarks.stackmerge_speed
"""

import random
import time
from collections.abc import Callable

from tests.benchmarks.measure import report
from vllm_probes.judges.culprits import Standing
from vllm_probes.judges.frames import load_frames
from vllm_probes.judges.ranksets import render
from vllm_probes.judges.stackmerge import lines, merge
from vllm_probes.judges.waits import wait_for
from vllm_probes.rows import Frame, ProcessRow, ThreadStack

RANKS, FRAMES, RUNS = 128, 40, 20
GOAL = "goal: 20 ms at most"


def stack(rank: int, kinds: int) -> ThreadStack:
    """One of so many stacks of 40 calls, which differ in the innermost ten."""
    rng = random.Random(rank % kinds)
    inner = [Frame(function=f"f{rng.randrange(99)}", file=f"vllm/layer{n}.py", line=rank) for n in range(10)]
    outer = [Frame(function=f"g{n}", file=f"vllm/worker{n}.py", line=n) for n in range(FRAMES - 10)]
    return ThreadStack(thread_id=rank + 1, frames=[*inner, *outer])


def timed_ms(action: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        action()
        found.append((time.perf_counter() - begin) * 1000)
    return found


def worker(rank: int) -> ProcessRow:
    return ProcessRow(pid=rank, parent_pid=0, started=0, process=f"Worker_TP{rank}", role="worker", rank=rank)


def main() -> None:
    table = load_frames()
    for kinds in (2, 16, RANKS):
        stacks = {f"DP{rank // 8}_TP{rank % 8}": stack(rank, kinds) for rank in range(RANKS)}
        report(f"merge {RANKS} ranks x {FRAMES} frames, {kinds} kinds", timed_ms(lambda s=stacks: merge(s)), "ms", GOAL)
        tree = merge(stacks)
        report("  the same by line", timed_ms(lambda s=stacks: merge(s, by_line=True)), "ms", GOAL)
        draw = timed_ms(lambda t=tree: [render(line.present) for line in lines(t)])
        report(f"  rank sets of its {len(tree.nodes)} lines", draw, "ms", "no goal")
        report("  classify them", timed_ms(lambda s=stacks: [*map(table.classify, s.values())]), "ms", "no goal")
    found = {
        rank: Standing(worker(rank), table.classify(one), "unknown", None) for rank, one in enumerate(stacks.values())
    }
    report("who waits for whom", timed_ms(lambda: wait_for(found)), "ms", "no goal")


if __name__ == "__main__":
    main()
