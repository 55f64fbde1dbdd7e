"""What the table of GPUs says of a hang: who does nothing, who may still be at work, and the whole in one line."""

from collections.abc import Mapping

from vllm_probes.gpus import GpuModel, residents
from vllm_probes.rows import GpuCard, GpuRow, ProcessRow

IDLE_GPU_PERCENT, BUSY_GPU_PERCENT = 5.0, 95.0
WORKING_POWER = 0.4
"""Share of a GPU's power limit. Spinning takes about a sixth of it (public reports of H100); not measured."""
USUAL_LIMIT_W = 500.0
"""Where the driver does not tell the limit."""


def gpus_idle(
    cards: Mapping[int, GpuCard], rows: Mapping[int, GpuRow], processes: Mapping[int, ProcessRow]
) -> dict[int, bool]:
    """rank -> whether its GPU does nothing; ranks of which nobody can tell are missing."""
    found: dict[int, bool] = {}
    for index, ones in residents(GpuModel(cards=dict(cards), rows=dict(rows)), processes).items():
        gpu = rows.get(index)
        for one in ones:
            if gpu is not None and gpu.busy_percent is not None and one.row.rank is not None:
                found[one.row.rank] = gpu.busy_percent <= IDLE_GPU_PERCENT
    return found


def gpus_work(cards: Mapping[int, GpuCard], rows: Mapping[int, GpuRow]) -> bool:
    """One that only spins in a collective takes little power; where power is not known it may be more than that."""
    shares = [
        row.power_w / (card.power_limit_w if (card := cards.get(index)) and card.power_limit_w else USUAL_LIMIT_W)
        for index, row in rows.items()
        if row.power_w is not None
    ]
    return not shares or any(share >= WORKING_POWER for share in shares)


def gpu_picture(gpus: Mapping[int, GpuRow]) -> str:
    """`GPU 5 at 0 %, the others busy at up to 118 W`; empty where they do not differ that much."""
    rows = [row for row in gpus.values() if row.busy_percent is not None and row.power_w is not None]
    idle = [row for row in rows if (row.busy_percent or 0.0) <= IDLE_GPU_PERCENT]
    busy = [row for row in rows if (row.busy_percent or 0.0) >= BUSY_GPU_PERCENT]
    if not busy or len(idle) + len(busy) < len(rows):
        return ""
    watts = max(row.power_w or 0.0 for row in busy)
    if not idle:
        return f"all at {BUSY_GPU_PERCENT:.0f} % or more and up to {watts:.0f} W"
    names = ", ".join(str(row.index) for row in idle)
    return f"GPU {names} at 0 %, the others busy at up to {watts:.0f} W"
