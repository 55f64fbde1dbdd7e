"""What a relaunch waits for: the old processes are gone, their GPU memory is back, the port is free."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import psutil

from vllm_probes.events import GateChanged
from vllm_probes.gpus import visible_indices
from vllm_probes.judges.address import address_from_command, address_from_url
from vllm_probes.keeper.catalogue import session_above
from vllm_probes.keeper.folder import Launch
from vllm_probes.keeper.stream import Stream
from vllm_probes.model import AttemptModel
from vllm_probes.rows import GpuProcess, Hold
from vllm_probes.sensors import ports, tree

LOOK_S = 0.5
GPU_BACK_BYTES = 256 << 20
"""What a GPU may use more than before the run: contexts of others come and go."""


@dataclass(frozen=True)
class _Holder:
    """A process that stands in the way."""

    pid: int
    process: str
    user: str | None
    session: str | None
    hint: str | None


class Gate:
    """Looks at what a launch would meet, and waits until nothing of it is left, or nobody wants to wait."""

    def __init__(self, stream: Stream, launch: Launch) -> None:
        self._stream, self._launch = stream, launch
        self._holds: list[Hold] = []
        self._opened = asyncio.Event()

    async def wait(self) -> None:
        """Until the way is free or `open` is called. Tells what holds the launch up whenever that changes."""
        self._opened.clear()
        while not self._opened.is_set():
            self._tell(list(self._look()))
            if not self._holds:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._opened.wait(), LOOK_S)
        self._tell([])

    def open(self) -> bool:
        """Wait no longer; False: nothing waits."""
        self._opened.set()
        return bool(self._holds)

    def forget(self) -> None:
        """Nothing waits any more: it was an earlier keeper that did."""
        attempt = self._stream.model.attempt
        if attempt and attempt.gate and attempt.gate.holds:
            self._stream.publish(GateChanged(**self._stream.stamp()))

    def foreign_shims(self) -> set[int]:
        """The shims of this user's sessions below which something holds the launch up."""
        above = [session_above(hold.pid) for hold in self._holds if hold.pid is not None]
        return {found.shim_pid for found in above if found}

    def _tell(self, holds: list[Hold]) -> None:
        if holds != self._holds:
            self._holds = holds
            self._stream.publish(GateChanged(**self._stream.stamp(), holds=holds))

    def _look(self) -> Iterator[Hold]:
        attempt = self._stream.model.attempt
        if attempt is not None:
            yield from self._survivors(attempt)
            yield from self._gpu_memory(attempt)
        yield from self._port()

    def _survivors(self, attempt: AttemptModel) -> Iterator[Hold]:
        for ref in attempt.tree_ended.survivors if attempt.tree_ended else []:
            if tree.is_running(ref.pid):
                hint = "no signal ends it while it waits for its driver or disk"
                yield Hold(kind="process", what="of the run before", pid=ref.pid, process=ref.process, hint=hint)

    def _gpu_memory(self, attempt: AttemptModel) -> Iterator[Hold]:
        gpus = self._stream.model.gpus
        if gpus.status != "ok":
            return
        for index in visible_indices(self._launch.spec.env.get("CUDA_VISIBLE_DEVICES"), gpus.cards):
            row, before = gpus.rows.get(index), attempt.gpu_before_bytes.get(index)
            if row is None or row.used_bytes is None or before is None:
                continue
            if (more := row.used_bytes - before) > GPU_BACK_BYTES:
                what = f"GPU {index}: {more / (1 << 30):.1f}G more in use than before the run"
                yield _hold("gpu_memory", what, _largest(row.processes))

    def _port(self) -> Iterator[Hold]:
        spec, endpoint = self._launch.spec, self._stream.model.endpoint
        address = address_from_url(endpoint.url) if endpoint else address_from_command(spec.argv, spec.env)
        if address is None or address.uds or not ports.is_taken(address.port):
            return
        pid = ports.listener(address.port)
        yield _hold("port", f"port {address.port}", _holder(pid) if pid else None)


def _hold(kind: Literal["gpu_memory", "port"], what: str, holder: _Holder | None) -> Hold:
    if holder is None:
        return Hold(kind=kind, what=what)
    return Hold(
        kind=kind,
        what=what,
        pid=holder.pid,
        process=holder.process,
        user=holder.user,
        session=holder.session,
        hint=holder.hint,
    )


def _largest(processes: list[GpuProcess] | None) -> _Holder | None:
    """Who has most of a GPU's memory; a process of another pid namespace has no name here."""
    ours_to_see = [process for process in processes or () if tree.is_running(process.pid)]
    if not ours_to_see:
        return None
    return _holder(max(ours_to_see, key=lambda process: process.used_bytes or 0).pid)


def _holder(pid: int) -> _Holder | None:
    try:
        process = psutil.Process(pid)
        uid, user = process.uids().real, process.username()
    except psutil.Error:
        return None
    session = session_above(pid)
    sudo = "" if uid == os.getuid() else "sudo "
    hint = None if session else f"{sudo}kill {pid} ends it"
    return _Holder(pid, tree.title(pid), user, session.name if session else None, hint)
