"""Everything that is looked at while one attempt runs. Each look publishes what it saw."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from vllm_probes.events import (
    DiskSampled,
    EndpointSampled,
    FileAppeared,
    LeverChecked,
    LogRecorded,
    LogSampled,
    ProbeFinished,
    ProcessesSampled,
    StacksCaptured,
    TimeoutsRead,
)
from vllm_probes.judges.address import Address, address_from_command, address_from_url
from vllm_probes.judges.deadline import DEFAULTS_S
from vllm_probes.judges.probing import api_key
from vllm_probes.judges.rules import RuleSet
from vllm_probes.keeper.attached import members
from vllm_probes.keeper.folder import Attached, Launch, SessionFolder
from vllm_probes.keeper.lookout import Lookout
from vllm_probes.keeper.snapshots import Snapshots
from vllm_probes.keeper.stream import Stream
from vllm_probes.launch.levers import check_arrival
from vllm_probes.launch.redact import REMOVED, redact_text
from vllm_probes.model import AttemptModel
from vllm_probes.rows import ProcessRef, ProcessRow
from vllm_probes.sensors import disk, probe, processes, stacks, tree
from vllm_probes.sensors.endpoint import EndpointSensor
from vllm_probes.sensors.logfile import LogSensor

LOG_LIMIT_BYTES = 4 << 30
LOG_HEAD_BYTES = 256 << 20
"""What stays of a log that outgrows its limit: the start-up, and everything recent."""
LOG_SLICE_BYTES = 1 << 20
"""A flood is read in slices: 0.1 s each at the slowest, so that nobody waits long for an answer."""
DRAIN_S = 3.0
BEFORE_DEADLINE_S = 10.0
"""How long before vLLM gives up stacks are taken: the work may have come some seconds before it was seen."""
STRANGERS_EVERY = 5
"""Looks between two scans of the whole host, done only where the launcher's processes are not our descendants."""


class Watch:
    """The sensors of one attempt."""

    def __init__(
        self, stream: Stream, folder: SessionFolder, launch: Launch, rules: RuleSet, attached: Attached | None
    ) -> None:
        attempt = stream.model.attempt
        if attempt is None:
            raise ValueError("there is no attempt to watch")
        self._stream, self._folder, self._launch = stream, folder, launch
        self._attempt: AttemptModel = attempt
        self._log_path = folder.path / attempt.launch.log
        self._log = LogSensor(self._log_path, rules, redact_text)
        self._resume = _resume_point(stream)
        self._attached = attached
        self._processes = (
            processes.ProcessSensor(attempt.launch.shim_pid or 0)
            if attached is None
            else processes.ProcessSensor(tree.parent(attached.pid), members(attached).walk)
        )
        self._endpoint = EndpointSensor()
        self._address = address_from_url(attached.url) if attached and attached.listens and attached.url else None
        self._engine_config: Mapping[str, str] = {}
        self.vllm_version: str | None = None
        """As it says itself in the log."""
        self._looks = 0
        self._free: list[tuple[float, int]] = []
        self._lookout = Lookout(stream)
        self._snapshots = Snapshots(stream, folder)
        self._probe_clients: set[str] | None = None
        self._knows_timeouts = False
        self._foreseen_mono: float | None = None
        """The end of vLLM's patience before which stacks have been taken."""

    async def close(self) -> None:
        await self._endpoint.close()
        self._log.close()

    # --- the log ----------------------------------------------------------------------------------------------------

    def log(self) -> bool:
        """Read what was appended, at most a slice; whether anything was told."""
        events = self._log.sample(self._stream.stamp(), LOG_SLICE_BYTES)
        for event in events:
            if isinstance(event, LogRecorded):
                self._learn(event)
                if event.line_number <= self._resume.line_count:
                    continue
            if isinstance(event, LogSampled) and event.size_bytes < self._resume.size_bytes:
                continue
            self._stream.publish(event)
        return bool(events)

    async def drain_log(self) -> None:
        """Read to where the log ends now, and tell what is unfinished: the last lines tell why.

        What is left behind may write on for ever, and a long log may take long: at the deadline the end is told
        without its last lines.
        """
        end_bytes = self._log_path.stat().st_size if self._log_path.exists() else 0
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            if self._log.index.size_bytes >= end_bytes:
                break
            self.log()
            await asyncio.sleep(0)
        self.log()

    def _learn(self, event: LogRecorded) -> None:
        if url := event.fields.get("url"):
            self._address = address_from_url(url) or self._address
        self.vllm_version = event.fields.get("version") or self.vllm_version
        if "enforce_eager" in event.fields:
            self._engine_config = event.fields

    # --- processes --------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> Mapping[int, ProcessRow]:
        return self._stream.model.processes

    def look_at_processes(self) -> None:
        """One look at every process of the tree, and now and then at those that are not below us."""
        rows = self._processes.sample(self._log.process_names)
        if self._attempt.launch.not_descendants:
            rows += self._strangers({row.pid for row in rows})
        changed, gone = processes.difference(self.rows, rows)
        if changed or gone:
            self._stream.publish(ProcessesSampled(**self._stream.stamp(), rows=changed, gone=gone))
        self._looks += 1
        if not self._knows_timeouts:
            self._read_timeouts()

    def _read_timeouts(self) -> None:
        """As soon as there is an engine; where its environment cannot be read, from what our own child was given."""
        engine = next((row for row in self.rows.values() if row.role == "engine_core"), None)
        if engine is None:
            return
        self._knows_timeouts = True
        where, environ = engine.process, processes.environ(engine.pid)
        if not environ and not engine.foreign:
            where, environ = "the shim", processes.environ(self._attempt.launch.shim_pid or 0)
        if environ:
            seconds = {name: float(environ[name]) for name in DEFAULTS_S if environ.get(name, "").isdecimal()}
            self._stream.publish(TimeoutsRead(**self._stream.stamp(), seconds=seconds, where=f"environment of {where}"))

    def _strangers(self, own: set[int]) -> list[ProcessRow]:
        if self._looks % STRANGERS_EVERY:
            return [row for row in self.rows.values() if row.foreign]
        return processes.strangers(self._attempt.started, own=own)

    def running(self) -> list[ProcessRef]:
        """What runs of the tree now, as far as the last look knew it."""
        rows = [row for row in self.rows.values() if tree.is_running(row.pid)]
        return [ProcessRef(pid=row.pid, process=row.process, state=row.state) for row in rows]

    def wants_stacks(self) -> str | None:
        """Tell of quiet; why it is time to see what everybody does, None: it is not."""
        port = self._address.port if self._address and not self._address.uds else None
        is_looking = self._snapshots.are_under_way
        is_quiet = self._lookout.look(port, self._probe_clients, is_looking=is_looking)
        if is_looking:
            return None
        return "deadline" if self._is_near_the_end() else "quiet" if is_quiet else None

    def _is_near_the_end(self) -> bool:
        """Once before each time at which vLLM gives up: then the evidence goes."""
        attempt = self._stream.model.attempt
        gives_up_mono = attempt.deadline.gives_up_mono if attempt and attempt.deadline else None
        is_near = gives_up_mono is not None and self._stream.stamp()["mono"] >= gives_up_mono - BEFORE_DEADLINE_S
        if not is_near or gives_up_mono == self._foreseen_mono:
            return False
        self._foreseen_mono = gives_up_mono
        return True

    async def capture_stacks(self, reason: str, *, timeout_s: float = 5.0) -> StacksCaptured:
        """Stacks of every process, one file each, under `snapshots/`; `timeout_s` is what each may take."""
        own_pids = {row.pid for row in self.rows.values() if not row.foreign and self._attached is None}
        return await self._snapshots.take(stacks.targets(self.rows.values()), reason, timeout_s, own_pids)

    # --- the server -------------------------------------------------------------------------------------------------

    async def look_at_endpoint(self) -> None:
        """Ask the server how it is, once it is known where and that it is ours."""
        address = self._server_address()
        if address is None:
            return
        sample: EndpointSampled = await self._endpoint.sample(address, self._stream.stamp())
        self._stream.publish(sample)

    def can_probe(self) -> bool:
        """It is known where the server listens, and it has not ended."""
        return self._server_address() is not None

    async def probe(self) -> None:
        """Ask the server for one token; one that is on its way already is enough."""
        address = self._server_address()
        if address is None or self._probe_clients is not None:
            return
        clients: set[str] = set()
        self._probe_clients = clients
        try:
            lights = await probe.send(address, self._api_key(), clients)
        finally:
            self._probe_clients = None
        if self._stream.attempt == self._attempt.number:  # else it was another server that has answered
            self._stream.publish(
                ProbeFinished(
                    **self._stream.stamp(),
                    url=address.url,
                    deadline_s=probe.DEADLINE_S,
                    lights=lights,
                    own_clients=sorted(clients),
                )
            )

    def _api_key(self) -> str | None:
        keys = (api_key(argv, env) for argv, env in self._server_commands())
        return next((key for key in keys if key and key != REMOVED), None)

    def _server_address(self) -> Address | None:
        if self._attempt.ended is not None:
            return None
        if self._address is not None:
            return self._address
        for argv, env in self._server_commands():
            guess = address_from_command(argv, env)
            if guess and processes.listens(self.rows, guess):
                self._address = guess
                break
        return self._address

    def _server_commands(self) -> Iterator[tuple[list[str], dict[str, str]]]:
        """Command lines that may say where the server listens: what was typed, and what a script made of it."""
        yield self._launch.spec.argv, self._launch.spec.env
        for row in self.rows.values():
            if row.role == "api_server":
                yield tree.command_line(row.pid), processes.environ(row.pid)

    # --- levers -----------------------------------------------------------------------------------------------------

    def check_levers(self) -> None:
        """See in the real vLLM processes whether what a lever set has arrived."""
        for lever in self._attempt.launch.levers:
            known = self._attempt.arrived.get(lever)
            if known is None or not known.arrived:
                self._check_lever(lever)

    def _check_lever(self, lever: str) -> None:
        for row in [row for row in self.rows.values() if row.role in ("worker", "engine_core", "api_server")]:
            environ, argv = processes.environ(row.pid), tree.command_line(row.pid)
            seen = check_arrival(lever, environ, row.process, argv, self._engine_config)
            if seen is None:
                continue
            arrived, where = seen
            known = self._attempt.arrived.get(lever)
            if known is None or known.arrived != arrived:
                self._stream.publish(LeverChecked(**self._stream.stamp(), lever=lever, arrived=arrived, where=where))
            if arrived:
                return

    def file_appeared(self, path: Path, size_bytes: int) -> None:
        """A file came into the folder that a lever names."""
        self._stream.publish(
            FileAppeared(**self._stream.stamp(), path=str(path), kind="coredump", size_bytes=size_bytes)
        )

    # --- the disk ---------------------------------------------------------------------------------------------------

    def look_at_disk(self) -> None:
        """Watch the room that is left, and keep the log within its bound."""
        stamp = self._stream.stamp()
        free_bytes = disk.free_bytes(self._folder.path)
        self._free = [*self._free, (stamp["mono"], free_bytes)][-30:]
        log_bytes = self._log_path.stat().st_size if self._log_path.exists() else 0
        start, length = self._bound_log(log_bytes)
        full_in_s = disk.full_in_s(self._free)
        self._stream.publish(
            DiskSampled(
                **stamp,
                free_bytes=free_bytes,
                log_bytes=log_bytes,
                hole_start=start,
                hole_bytes=length,
                full_in_s=full_in_s,
            )
        )

    def _bound_log(self, log_bytes: int) -> tuple[int, int]:
        known = self._stream.model.disk
        before = (known.hole_start, known.hole_bytes) if known and known.attempt == self._stream.attempt else (0, 0)
        hole = disk.hole(log_bytes, LOG_LIMIT_BYTES, LOG_HEAD_BYTES) if self._attached is None else None
        if hole is None or hole == before or not disk.punch_hole(self._log_path, *hole):
            return before
        self._log.index.set_hole(*hole)
        return hole


class _Resume:
    """How far an earlier keeper had come with the log of this attempt."""

    def __init__(self, size_bytes: int, line_count: int) -> None:
        self.size_bytes, self.line_count = size_bytes, line_count


def _resume_point(stream: Stream) -> _Resume:
    log = stream.model.log
    size_bytes, line_count = (log.size_bytes, log.line_count) if log else (0, 0)
    return _Resume(size_bytes, max(line_count, stream.last_line_number))
