"""One rank that differs from its tensor-parallel peers, by CPU or by its GPU.

Who waits for a peer spins, on the CPU and on a GPU alike, so the busy ones are innocent. A rank that is slow because it
computes more looks like those that wait for it: on the CPU nothing tells then.
"""

import re
from collections.abc import Mapping, Sequence

from vllm_probes.judges.limit_interval import Interval, Limit
from vllm_probes.rows import ProcessRow

SPINNING_PERCENT = 70.0
"""Of a core: a worker that waits for a peer uses at least so much. Measured: 85 to 97 % on a host that is full."""
LAGGING_SHARE = 0.6
"""A rank that uses less than this share of the CPU of every peer is not waiting for them: who waits, spins. Measured:
0.39 with a rank slowed threefold by sleeping; 0.8 to 1.2 healthy."""
WAITING_PERCENT = 90.0
"""A GPU that waits for a peer is busy: its kernel spins. Public reports of hangs show 96 to 100 %."""
BUSY_GAP_PERCENT = 30.0
"""The GPU of a rank that is late is idle for this much longer than those of its peers. Not measured."""
POWER_RATIO = 1.4
"""A GPU that draws so much more than each of its peers works while they wait. Not measured; nccl#1550 shows one that
waits at 152 of 700 W."""

_TITLE = re.compile(r"(?P<stage>.*_)TP\d+(_EP\d+)?")
"""`Worker_PP0_TP1_EP1`: v1/executor/multiproc_executor.py of 0.32."""


def slow_rank(interval: Interval) -> Limit | None:
    """The rank that its peers wait for."""
    for peers in _tensor_parallel_groups(interval):
        if found := _lagging_cpu(interval, peers) or _lagging_gpu(interval, peers):
            return found
    return None


def _tensor_parallel_groups(interval: Interval) -> list[list[ProcessRow]]:
    """Workers whose titles differ in the TP part alone: they meet in every layer."""
    groups: dict[tuple[int, str], list[ProcessRow]] = {}
    for row in interval.of_role("worker"):
        if title := _TITLE.fullmatch(row.process):
            groups.setdefault((row.parent_pid, title["stage"]), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _lagging_cpu(interval: Interval, peers: Sequence[ProcessRow]) -> Limit | None:
    """The peak of the slow one counts: a pause of the whole host hits one rank more than another."""
    used = {row.process: min(cpu, 100.0) for row in peers if (cpu := interval.cpu(row)) is not None}
    if len(used) < len(peers):
        return None
    slow, *others = sorted(used, key=lambda name: used[name])
    peak = max(interval.peaks[("cpu", row.pid)] for row in peers if row.process == slow)
    if used[others[0]] < SPINNING_PERCENT or peak > LAGGING_SHARE * used[others[0]]:
        return None
    evidence = tuple((f"CPU of {name}", f"{used[name]:.0f} %") for name in (slow, *others))
    return _slow(slow, "it sleeps while the others spin", evidence)


def _lagging_gpu(interval: Interval, peers: Sequence[ProcessRow]) -> Limit | None:
    """Nothing while the GPU of one of them is unknown."""
    index_of = {row.pid: index for index, row in interval.gpu_ranks.items()}
    indices = {row.process: index_of[row.pid] for row in peers if row.pid in index_of}
    busy = {name: span for name, index in indices.items() if (span := interval.gpu_range(index, "busy_percent"))}
    power = {name: span for name, index in indices.items() if (span := interval.gpu_range(index, "power_w"))}
    if len(busy) < len(peers):
        return None
    slow, *others = sorted(busy, key=lambda name: busy[name][1])
    least = min(busy[name][0] for name in others)
    if least >= WAITING_PERCENT and least - busy[slow][1] >= BUSY_GAP_PERCENT:
        evidence = tuple((f"GPU {indices[name]} of {name}", f"{busy[name][1]:.0f} % busy") for name in (slow, *others))
        return _slow(slow, "its GPU is idle while the others wait for it", evidence)
    all_busy = all(span[0] >= WAITING_PERCENT for span in busy.values())
    return _working_alone(power) if all_busy and len(power) == len(peers) else None


def _working_alone(power: Mapping[str, tuple[float, float]]) -> Limit | None:
    """All are busy, but one draws much more power: it works, the others spin."""
    *others, slow = sorted(power, key=lambda name: power[name][0])
    most_w = max(power[name][1] for name in others)
    if power[slow][0] < POWER_RATIO * most_w:
        return None
    evidence = ((f"power of {slow}", f"{power[slow][0]:.0f} W"), ("power of its peers", f"{most_w:.0f} W at most"))
    return _slow(slow, "its GPU works while the others wait for it", evidence)


def _slow(process: str, how: str, evidence: tuple[tuple[str, str], ...]) -> Limit:
    return Limit("slow_rank", f"{process} is slower than its peers: {how}.", evidence, process)
