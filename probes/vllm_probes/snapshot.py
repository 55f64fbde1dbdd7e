"""One shot of a running vLLM, whoever started it: the stacks of all its processes, and what they come to."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from vllm_probes.events import StacksCaptured, Stamp
from vllm_probes.judges import activity, glance
from vllm_probes.judges.activity import Activity
from vllm_probes.judges.address import Address
from vllm_probes.judges.frames import FrameTable, load_frames, main_thread
from vllm_probes.judges.glance import SeenGroup, Snapshot, frame_text
from vllm_probes.judges.ranksets import labels, natural
from vllm_probes.judges.stackmerge import merge
from vllm_probes.judges.titles import VLLM_ROLES
from vllm_probes.rows import ProcessRow
from vllm_probes.sensors import foreign, stacks, tree
from vllm_probes.sensors.close_look import CloseStack, as_stack, look_closely
from vllm_probes.sensors.foreign import Members, Run
from vllm_probes.sensors.processes import ProcessSensor

MOMENT_S = 0.15
"""Between the two looks of a short one."""
PAUSE_S = 0.1
"""Between looks that go on, at least; as long as a look takes, so that half of the time is left to others."""
METRICS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """What is looked at."""

    launcher_pid: int
    """What started it: variables that it has handed down tell nothing of a rank."""
    walk: Callable[[], list[int]]
    """Its processes, root first."""
    address: Address | None = None
    """Where its server listens; None: it has none, or not yet."""


def of_run(run: Run) -> Target:
    """A run that we did not start."""
    return Target(tree.parent(run.pid), Members(run.pids).walk, run.address if run.listens else None)


def of_shim(shim_pid: int) -> Target:
    """What one of our sessions has started."""
    address, listens = foreign.address_of(tree.descendants(shim_pid))
    return Target(shim_pid, partial(tree.descendants, shim_pid), address if listens else None)


async def take(target: Target, folder: Path, name: str | None, *, seconds: float | None = None) -> Snapshot:
    """Two looks a moment apart, one where nobody holds anybody up, or looks for so many seconds.

    The stacks of the last one stay in `folder`, to which evidence refers by `name`; None: it is going to be removed.

    Only a long one asks the server for its counters: vLLM logs a line for each request.
    """
    counters = _Counters()
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(counters.follow(target.address)) if seconds and target.address else None
        snapshot = await _observe(target, folder, name, seconds or 0.0, counters)
        if asking is not None:
            asking.cancel()
    return snapshot


async def take_closely(target: Target, *, native: bool, variables: bool) -> list[CloseStack]:
    """One look more, with native frames or local variables."""
    rows = ProcessSensor(target.launcher_pid, target.walk).sample({})
    return await look_closely(stacks.targets(rows), native=native, variables=variables)


def merged(close: Sequence[CloseStack]) -> list[SeenGroup]:
    """Processes with the same calls, those of libraries as well."""
    table = load_frames(machine=os.uname().machine)
    names = labels({stack.pid: stack.process for stack in close})
    threads = {names[stack.pid]: main_thread(table, as_stack(stack)) for stack in close}
    known = {name: thread for name, thread in threads.items() if thread is not None and thread.frames}
    return [
        SeenGroup(members=sorted(group.members, key=natural), frames=[frame_text(frame) for frame in group.frames])
        for group in merge(known).groups
    ]


async def _observe(target: Target, folder: Path, name: str | None, seconds: float, counters: "_Counters") -> Snapshot:
    sensor = ProcessSensor(target.launcher_pid, target.walk)
    table: FrameTable | None = None
    seen = glance.begin(_stamp())
    while True:
        begun_mono = time.monotonic()
        rows = {row.pid: row for row in sensor.sample({})}
        looking = asyncio.ensure_future(stacks.capture(stacks.targets(rows.values()), folder))
        await asyncio.sleep(0)
        table = table or load_frames(machine=os.uname().machine)  # while py-spy works
        files = [replace(file, file=f"{name}/{file.file}" if name and file.file else None) for file in await looking]
        captured = StacksCaptured(**_stamp(), reason="snapshot", folder=str(folder), stacks=files)
        if counters.moved():
            seen = glance.moved(table, seen, _stamp())
        serves = _serves(table, target, captured, rows.values())
        seen = glance.look(table, seen, captured, rows, serves=serves, is_counted=counters.are_known)
        enough = seen.look_count > 1 or (seen.is_calm and not seconds)
        if enough and time.monotonic() - seen.begun["mono"] >= seconds:
            return glance.conclude(table, seen)
        await asyncio.sleep(max(PAUSE_S, time.monotonic() - begun_mono) if seconds else MOMENT_S)


def _serves(table: FrameTable, target: Target, captured: StacksCaptured, rows: Iterable[ProcessRow]) -> bool:
    """The run has started: its server listens, an engine or worker of it is in its main loop, or it is no vLLM."""
    if target.address is not None or not any(row.role in VLLM_ROLES for row in rows):
        return True
    mains = (main_thread(table, file) for file in captured.stacks)
    return any(table.is_loop(frame, main=True) for thread in mains if thread for frame in thread.frames)


class _Counters:
    """Whether a server's counters move, asked beside the looks: one that does not answer holds nobody up."""

    def __init__(self) -> None:
        self._activity = Activity()
        self._told_mono: float | None = None

    async def follow(self, address: Address) -> None:
        """Ask until cancelled."""
        from vllm_probes.sensors.endpoint import EndpointSensor  # half of the time of a short look goes into HTTP

        sensor = EndpointSensor()
        try:
            while True:
                self._activity = activity.follow(self._activity, await sensor.sample(address, _stamp()))
                await asyncio.sleep(METRICS_EVERY_S)
        finally:
            await sensor.close()

    @property
    def are_known(self) -> bool:
        """The server has told them."""
        return self._activity.requests is not None

    def moved(self) -> bool:
        """Tokens came since this was asked last."""
        before, self._told_mono = self._told_mono, self._activity.moved.get("tokens")
        return self._told_mono != before


def _stamp() -> Stamp:
    return Stamp(time=time.time(), mono=time.monotonic(), node=socket.gethostname(), attempt=0)
