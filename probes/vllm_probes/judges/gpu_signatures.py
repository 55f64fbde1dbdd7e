"""What the GPUs of a run look like when something is wrong with it, for the verdict on a hang.

A signature is evidence and no verdict: a kernel that waits for its peers is as busy as one that computes, so what
counts is how GPUs differ from each other and from how this run was while its tokens moved. What is unknown never makes
a signature. No GPU has been at hand to measure the thresholds; what they rest on is said at each.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from vllm_probes.gpus import GpuModel, residents, strangers, visible_to_run
from vllm_probes.rows import Evidence, GpuCard, GpuProcess, GpuRow, ProcessRow

Kind = Literal["spin", "asymmetric", "parked", "throttling", "held_memory"]

FULL_PERCENT = 95.0
"""At least so busy is busy all the time. Not measured; public reports of hangs show 96 to 100 % (vllm#8087: 100 %)."""
ZERO_PERCENT = 1.0
"""At most so busy is idle. Not measured; reports of a rank that never came show 0 % (nccl#1550)."""
STILL_MEMORY_PERCENT = 5.0
"""A kernel that only spins hardly touches memory. Not measured; a decoding model is far above."""
LOW_SHARE_OF_BASELINE = 0.7
"""Below this share of the power while tokens moved is low. Not measured: a spin draws little more than idle, a model
that computes keeps within some percent of its own power."""
LOW_SHARE_OF_LIMIT = 0.35
"""Before there is a baseline: low is below this part of the way from idle to the limit. Not measured; nccl#1550 shows a
spin at 152 of 700 W beside idle GPUs at 130 W."""
WORKING_PERCENT = 50.0
"""Less busy than this a GPU tells nothing about the power of this model, nor about clocks that hold it up. Chosen."""
WEIGHT_OF_THE_LATEST = 0.2
"""Of a new sample in a baseline: a new kind of load has taken over after some ten samples. Chosen, not measured."""
HELD_BYTES = 512 << 20
"""Less memory than this is nobody's model: a desktop, a monitor, a bare CUDA context. Not measured."""
HARMFUL_THROTTLING = frozenset(("hot", "power brake", "hardware slowdown"))
"""In the words of `GpuRow.throttle`. Not `power cap`: GPUs at full load run into their power limit all the time."""


class Baseline(msgspec.Struct, frozen=True):
    """The power of each GPU, by NVML index, in two situations of this run."""

    working_w: Mapping[int, float] = {}
    """While tokens moved and it was at work."""
    idle_w: Mapping[int, float] = {}
    """While it did nothing."""


class Scene(msgspec.Struct, frozen=True):
    """What the signatures are looked for in; the GPUs that the run does not use are not in it."""

    rows: Mapping[int, GpuRow]
    """Of the GPUs that processes of the run compute on."""
    cards: Mapping[int, GpuCard]
    strangers: Mapping[int, list[GpuProcess]]
    """Processes of others on the GPUs that the run may use."""
    baseline: Baseline
    progressing: bool | None
    """Whether the run gets on (tokens, bytes, steps of a start); None: not known."""
    pending: bool | None
    """Whether it has work to do; None: not known."""
    since: float | None = None
    """Unix seconds of the last progress."""


class Signature(NamedTuple):
    """One thing that is wrong. `indices`: the GPUs that show it, of `asymmetric` the suspects alone."""

    kind: Kind
    indices: tuple[int, ...]
    evidence: tuple[Evidence, ...]


def learn(baseline: Baseline, rows: Iterable[GpuRow], *, progressing: bool | None) -> Baseline:
    """The baseline with one more sample in it: averages in which the latest samples count most."""
    working, idle = dict(baseline.working_w), dict(baseline.idle_w)
    for row in rows:
        if row.power_w is None or row.busy_percent is None:
            continue
        if row.busy_percent <= ZERO_PERCENT:
            _blend(idle, row.index, row.power_w)
        elif progressing and row.busy_percent >= WORKING_PERCENT:
            _blend(working, row.index, row.power_w)
    return Baseline(working, idle)


def scene(
    gpus: GpuModel,
    processes: Mapping[int, ProcessRow],
    baseline: Baseline,
    *,
    progressing: bool | None,
    pending: bool | None,
    since: float | None = None,
    later_pids: Collection[int] = (),
) -> Scene:
    """What is known of the GPUs of a run. `later_pids`: strangers that are known to have started after it."""
    visible = visible_to_run(processes, gpus.cards)
    others = strangers(gpus, processes)
    used = sorted(index for index, ones in residents(gpus, processes).items() if ones)
    return Scene(
        rows={index: gpus.rows[index] for index in used if index in gpus.rows},
        cards=gpus.cards,
        strangers={
            index: [process for process in others.get(index, []) if process.pid not in later_pids] for index in visible
        },
        baseline=baseline,
        progressing=progressing,
        pending=pending,
        since=since,
    )


def signatures(scene: Scene) -> list[Signature]:
    """Everything that is wrong, what names a GPU for a hang first."""
    looks = (_asymmetric, _spin, _parked, _throttling, _held_memory)
    return [found for look in looks if (found := look(scene))]


def is_throttled(row: GpuRow) -> bool:
    """Whether something holds its clocks down that does not belong to full load."""
    return bool(HARMFUL_THROTTLING.intersection(row.throttle))


# --- one function for each signature ----------------------------------------------------------------------------------


def _asymmetric(scene: Scene) -> Signature | None:
    """Some wait in a kernel for those that never launched theirs.

    Where more GPUs are idle than busy nobody is named: the busy ones show as `spin`. One that is neither means that
    something still moves.
    """
    known = {index: row.busy_percent for index, row in scene.rows.items() if row.busy_percent is not None}
    zeros = tuple(index for index, busy in known.items() if busy <= ZERO_PERCENT)
    full = [index for index, busy in known.items() if busy >= FULL_PERCENT]
    if scene.progressing is not False or not zeros or len(zeros) > len(full) or len(zeros) + len(full) < len(known):
        return None
    return Signature("asymmetric", zeros, _evidence(scene, (*zeros, *full)))


def _spin(scene: Scene) -> Signature | None:
    """Busy at low power without touching memory: a kernel that waits."""
    spinning = tuple(index for index, row in scene.rows.items() if _spins(scene, row))
    if scene.progressing is not False or not spinning:
        return None
    return Signature("spin", spinning, _evidence(scene, spinning))


def _spins(scene: Scene, row: GpuRow) -> bool:
    if row.busy_percent is None or row.memory_busy_percent is None or row.power_w is None:
        return False
    low_w = _low_power_w(scene, row.index)
    is_busy = row.busy_percent >= FULL_PERCENT
    return is_busy and row.memory_busy_percent <= STILL_MEMORY_PERCENT and low_w is not None and row.power_w < low_w


def _low_power_w(scene: Scene, index: int) -> float | None:
    """What the power of this GPU must be below to be low; None where there is nothing to compare with."""
    working_w = scene.baseline.working_w.get(index)
    if working_w is not None:
        return LOW_SHARE_OF_BASELINE * working_w
    card = scene.cards.get(index)
    if card is None or card.power_limit_w is None:
        return None
    idle_w = scene.baseline.idle_w.get(index, 0.0)
    return idle_w + LOW_SHARE_OF_LIMIT * (card.power_limit_w - idle_w)


def _parked(scene: Scene) -> Signature | None:
    """Nobody has launched anything while there is work: the fault is on the CPU side."""
    busy = [row.busy_percent for row in scene.rows.values()]
    idle = bool(busy) and all(percent is not None and percent <= ZERO_PERCENT for percent in busy)
    if scene.progressing is not False or not scene.pending or not idle:
        return None
    return Signature("parked", tuple(scene.rows), _evidence(scene, scene.rows))


def _throttling(scene: Scene) -> Signature | None:
    held = tuple(
        index
        for index, row in scene.rows.items()
        if row.busy_percent is not None and row.busy_percent >= WORKING_PERCENT and is_throttled(row)
    )
    if not held:
        return None
    reasons = {index: HARMFUL_THROTTLING.intersection(scene.rows[index].throttle) for index in held}
    evidence = [Evidence(signal=f"GPU {index} throttled", value=", ".join(sorted(reasons[index]))) for index in held]
    return Signature("throttling", held, tuple(evidence))


def _held_memory(scene: Scene) -> Signature | None:
    """Somebody else has memory where the run wants to live."""
    holders = [
        (index, process)
        for index, processes in scene.strangers.items()
        for process in processes
        if process.used_bytes is not None and process.used_bytes >= HELD_BYTES
    ]
    if not holders:
        return None
    evidence = [Evidence(signal=f"GPU {index} memory of others", value=_holder(one)) for index, one in holders]
    return Signature("held_memory", tuple(dict.fromkeys(index for index, _ in holders)), tuple(evidence))


# --- words ------------------------------------------------------------------------------------------------------------


def _evidence(scene: Scene, indices: Iterable[int]) -> tuple[Evidence, ...]:
    return tuple(Evidence(signal=f"GPU {index}", value=_picture(scene, index), since=scene.since) for index in indices)


def _picture(scene: Scene, index: int) -> str:
    """`100 % busy, memory 0 %, 152 of 700 W (410 W while tokens moved)`, as far as it is known."""
    row, card = scene.rows[index], scene.cards.get(index)
    parts = [] if row.busy_percent is None else [f"{row.busy_percent:.0f} % busy"]
    if row.memory_busy_percent is not None:
        parts.append(f"memory {row.memory_busy_percent:.0f} %")
    if row.power_w is not None:
        limit = "" if card is None or card.power_limit_w is None else f" of {card.power_limit_w:.0f}"
        working_w = scene.baseline.working_w.get(index)
        before = "" if working_w is None else f" ({working_w:.0f} W while tokens moved)"
        parts.append(f"{row.power_w:.0f}{limit} W{before}")
    return ", ".join(parts)


def _holder(process: GpuProcess) -> str:
    who = f"{process.process or 'a process that cannot be seen'} (pid {process.pid})"
    owner = f" of {process.user}" if process.user else ""
    return f"{(process.used_bytes or 0) / (1 << 30):.1f} GiB: {who}{owner}"


def _blend(averages: dict[int, float], index: int, value: float) -> None:
    before = averages.get(index, value)
    averages[index] = before + WEIGHT_OF_THE_LATEST * (value - before)
