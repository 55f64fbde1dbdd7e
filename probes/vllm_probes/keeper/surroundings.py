"""What a session looks at whether an attempt runs or not: the GPUs and the host."""

from pathlib import Path

import psutil
from msgspec.structs import asdict, replace

from vllm_probes.events import SERVER_STATES, GpuFaulted, GpusSampled
from vllm_probes.judges.model_location import ModelLocation, model_location
from vllm_probes.keeper.folder import Launch
from vllm_probes.keeper.stream import Stream
from vllm_probes.rows import GpuProcess, GpuRow
from vllm_probes.sensors import gpu, tree
from vllm_probes.sensors.disk import is_network_filesystem
from vllm_probes.sensors.host import HostSensor

HEARTBEAT_S = 5.0
"""GPUs that do not change are told so: views show how old their figures are."""
HOST_EVERY = 5
"""Looks between two at the host."""


class Surroundings:
    """Looked at once a second, from the first launch to the end of the keeper."""

    def __init__(self, stream: Stream, launch: Launch) -> None:
        self._stream = stream
        self._gpus = gpu.GpuSensor(launch.gpus)
        self._gpus.start()
        self._told_mono = float("-inf")
        self._names: dict[int, tuple[str, str | None]] = {}
        self._host = HostSensor()
        self._cwd = Path(launch.spec.cwd)
        self._model = _model(launch)
        self._looks = 0

    def close(self) -> None:
        self._gpus.close()

    def look(self) -> None:
        """One look; what is new is published."""
        stamp = self._stream.stamp()
        for seen in self._gpus.sample(stamp["mono"]):
            if isinstance(seen, gpu.GpuXid):
                self._stream.publish(GpuFaulted(**stamp, **asdict(seen)))
            else:
                self._tell_gpus(seen)
        attempt = self._stream.model.attempt
        if self._looks % HOST_EVERY == 0 and attempt and not attempt.over:
            self.look_at_host()
        self._looks += 1

    def look_at_host(self) -> None:
        """One look at the host alone; whoever is about to tell of an end wants its counters as they are now."""
        model, stamp, place = self._stream.model, self._stream.stamp(), self._model
        path = self._cwd / place.path if place and place.path else None
        hub = self._cwd / place.hub if place and place.hub and model.state not in SERVER_STATES else None
        read_bytes = sum(row.read_bytes for row in model.processes.values()) if model.processes else None
        newest = max(model.processes.values(), key=lambda row: row.started, default=None)
        pid, model_id = newest.pid if newest else None, place.model_id if place else None
        self._stream.publish(self._host.sample(stamp, path, hub, read_bytes, model_id, pid))

    def _tell_gpus(self, sample: gpu.GpuSample) -> None:
        stamp = self._stream.stamp()
        news = gpu.difference(self._stream.model.gpus, sample)
        if news is None and sample.status == "ok" and stamp["mono"] - self._told_mono >= HEARTBEAT_S:
            news = replace(sample, cards=[], rows=[])
        if news is None:
            return
        self._told_mono = stamp["mono"]
        known = self._stream.model.gpus
        self._stream.publish(
            GpusSampled(
                **stamp,
                status=news.status,
                reason=news.reason,
                answered_mono=news.answered_mono,
                driver=news.driver if news.driver != known.driver else None,
                cuda=news.cuda if news.cuda != known.cuda else None,
                cards=news.cards,
                rows=[self._named(row) for row in news.rows],
            )
        )

    def _named(self, row: GpuRow) -> GpuRow:
        """With the names of those processes that are not of this run."""
        own = self._stream.model.processes
        ones = [one if one.pid in own else self._stranger(one) for one in row.processes or ()]
        return row if row.processes is None else replace(row, processes=ones)

    def _stranger(self, one: GpuProcess) -> GpuProcess:
        if one.pid not in self._names and tree.is_running(one.pid):
            self._names[one.pid] = (tree.title(one.pid), _user(one.pid))
        process, user = self._names.get(one.pid, (None, None))
        return replace(one, process=process, user=user)


def _user(pid: int) -> str | None:
    try:
        return psutil.Process(pid).username()
    except psutil.Error:
        return None


def _model(launch: Launch) -> ModelLocation | None:
    """What the server loads. A working directory that may not answer is not asked what there is in it."""
    spec, cwd = launch.spec, Path(launch.spec.cwd)
    exists = (lambda name: False) if is_network_filesystem(cwd) else (lambda name: (cwd / name).exists())
    return model_location(spec.argv, spec.env, exists)
