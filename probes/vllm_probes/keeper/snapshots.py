"""Stacks of every process, one file each, in the session folder: taken, told, and forgotten when they say nothing."""

import shutil
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path

from msgspec.structs import replace

from vllm_probes.events import StacksCaptured
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.keeper.stream import Stream
from vllm_probes.launch.redact import redact_text
from vllm_probes.rows import ProcessRef, StackFile
from vllm_probes.sensors import stacks

QUIET_FOLDERS = 40
"""A run may be quiet for days: of looks that no verdict rests on, the files of so many are kept."""


class Snapshots:
    """Those of one attempt."""

    def __init__(self, stream: Stream, folder: SessionFolder) -> None:
        self._stream, self._folder = stream, folder
        self._under_way = 0
        self._quiet: deque[Path] = deque()

    @property
    def are_under_way(self) -> bool:
        return self._under_way > 0

    async def take(
        self, targets: Sequence[ProcessRef], reason: str, timeout_s: float, own_pids: Collection[int]
    ) -> StacksCaptured:
        """One look, published; `timeout_s` is what each process may take. `own_pids` may be asked by a signal."""
        self._under_way += 1
        try:
            captured = await self._look(targets, reason, timeout_s, own_pids)
        finally:
            self._under_way -= 1
        self._stream.publish(captured)
        if reason == "quiet":
            self._forget_old_looks(self._folder.path / captured.folder)
        return captured

    async def _look(
        self, targets: Sequence[ProcessRef], reason: str, timeout_s: float, own_pids: Collection[int]
    ) -> StacksCaptured:
        stamp = self._stream.stamp()
        folder = self._folder.snapshots / f"{stamp['attempt']}-{stamp['time'] * 1000:.0f}-{reason}"
        name = str(folder.relative_to(self._folder.path))
        is_close = reason != "stop"
        files = await stacks.capture(targets, folder, timeout_s=timeout_s, own_pids=own_pids, closely=is_close)
        told = [_recorded(file, name) for file in files]
        return StacksCaptured(**self._stream.stamp(), reason=reason, folder=name, stacks=told)

    def _forget_old_looks(self, latest: Path) -> None:
        self._quiet.append(latest)
        attempt = self._stream.model.attempt
        verdicts = attempt.hang if attempt else []
        told = {Path(one.file).parent.name for verdict in verdicts for one in verdict.evidence if one.file}
        while len(self._quiet) > QUIET_FOLDERS:
            oldest = self._quiet.popleft()
            if oldest.name not in told:
                shutil.rmtree(oldest, ignore_errors=True)


def _recorded(file: StackFile, folder: str) -> StackFile:
    threads = [replace(one, source=redact_text(one.source)) if one.source else one for one in file.threads]
    return replace(file, file=f"{folder}/{file.file}" if file.file else None, threads=threads)
