"""What is written of the samples.

A day of 1 Hz samples would be hundreds of megabytes, so a sample is written when it says something new: a difference
in kind at once, drifting numbers now and then. What is not written is not judged either; that keeps a recording
without its conclusions equal to one with them.
"""

import msgspec

from vllm_probes.events import (
    DiskSampled,
    EndpointSampled,
    Event,
    GpusSampled,
    HostSampled,
    LogSampled,
    ProcessesSampled,
)
from vllm_probes.judges.titles import VLLM_ROLES
from vllm_probes.rows import GpuRow, ProcessRow

PROCESS_DRIFT_S = 60.0
PROCESS_REST_S = 5.0
RESTS_BELOW_PERCENT = 10.0
"""A process that comes to rest or wakes is news, at most every five seconds; how busy it is drifts …"""
PROCESS_STEP_PERCENT = 15.0
PROCESS_STEP_S = 10.0
"""… unless a part of vLLM is so much busier or less busy over ten seconds than was written: what limits a run is judged
by that, and a single second tells nothing."""
ENDPOINT_DRIFT_S = 10.0
LOG_DRIFT_S = 5.0
DISK_DRIFT_S = 60.0
HOST_DRIFT_S = 60.0
DOWNLOAD_DRIFT_S = 10.0
GPU_DRIFT_S = 60.0
GPU_REST_S = 5.0
GPU_SETTLES_S = 5.0
"""A GPU that flickers between busy and idle is no news until it has come to stay."""
GPU_POWER_STEP = 0.25
"""Power that has come to stay this much higher or lower is news: a kernel that spins draws little."""
SWAPS_ABOVE_BYTES_PER_S = 1e6
MEMORY_PRESSURE_PERCENT = 10.0


class SampleFilter:
    """Lets through what is worth writing; samples come trimmed to the rows that are."""

    def __init__(self) -> None:
        self._processes = _Processes()
        self._last: dict[type[Event], Event] = {}
        self._own_clients: set[str] = set()
        self._gpus = _Gpus()
        self._gpu_status: str | None = None

    def accept(self, event: Event) -> Event | None:
        """The event as it is to be written, or None."""
        match event:
            case ProcessesSampled():
                return self._processes_sampled(event)
            case EndpointSampled():
                return self._keep_if(event, self._server_is_news(event), ENDPOINT_DRIFT_S)
            case GpusSampled():
                return self._gpus_sampled(event)
            case HostSampled():
                return self._host(event)
            case LogSampled():
                return self._keep_if(event, False, LOG_DRIFT_S)
            case DiskSampled():
                return self._keep_if(event, False, DISK_DRIFT_S)
            case _:
                return event

    def reset(self) -> None:
        """A new attempt: everything is news again."""
        self._processes = _Processes()
        self._last.clear()
        self._own_clients.clear()

    def _keep_if(self, event: Event, different: bool, drift_s: float) -> Event | None:
        before = self._last.get(type(event))
        if before is None or different or event.mono - before.mono >= drift_s:
            self._last[type(event)] = event
            return event
        return None

    def _server_is_news(self, event: EndpointSampled) -> bool:
        new_clients = not self._own_clients.issuperset(event.own_clients)
        self._own_clients.update(event.own_clients)
        before = self._last.get(EndpointSampled)
        return new_clients or not isinstance(before, EndpointSampled) or _server_kind(before) != _server_kind(event)

    def _host(self, event: HostSampled) -> Event | None:
        before = self._last.get(HostSampled)
        different = not isinstance(before, HostSampled) or _host_kind(before) != _host_kind(event)
        return self._keep_if(event, different, HOST_DRIFT_S if event.download_bytes is None else DOWNLOAD_DRIFT_S)

    def _gpus_sampled(self, event: GpusSampled) -> Event | None:
        rows = self._gpus.news(event)
        status, self._gpu_status = self._gpu_status, event.status
        return msgspec.structs.replace(event, rows=rows) if rows or event.cards or status != event.status else None

    def _processes_sampled(self, event: ProcessesSampled) -> ProcessesSampled | None:
        rows = self._processes.news(event)
        return msgspec.structs.replace(event, rows=rows) if rows or event.gone else None


class _Processes:
    """The rows of processes that are worth writing."""

    def __init__(self) -> None:
        self._mono = 0.0
        self._now: dict[int, ProcessRow] = {}
        self._written: dict[int, tuple[float, ProcessRow]] = {}
        self._moved: set[int] = set()
        """Of which something was told since they were written."""
        self._used: dict[int, tuple[float, float]] = {}
        """Since when, and percent times seconds."""

    def news(self, event: ProcessesSampled) -> list[ProcessRow]:
        """Of all processes: what was no news when it came may be by now, though nothing more is told of it."""
        for pid in event.gone:
            self._forget(pid)
        for pid, (since, used) in self._used.items():
            self._used[pid] = since, used + self._now[pid].cpu_percent * (event.mono - self._mono)
        self._mono = event.mono
        for row in event.rows:
            self._now[row.pid] = row
            self._moved.add(row.pid)
            self._used.setdefault(row.pid, (event.mono, 0.0))
        rows = [found for row in self._now.values() if (found := self._as_written(row))]
        self._written |= {row.pid: (event.mono, row) for row in rows}
        self._moved -= {row.pid for row in rows}
        return rows

    def _forget(self, pid: int) -> None:
        self._now.pop(pid, None)
        self._written.pop(pid, None)
        self._used.pop(pid, None)
        self._moved.discard(pid)

    def _as_written(self, row: ProcessRow) -> ProcessRow | None:
        """None: no news. Where nothing else is new, how busy it was over ten seconds stands in the row."""
        if row.pid not in self._written:
            return row
        written_mono, written = self._written[row.pid]
        age_s = self._mono - written_mono
        since, used = self._used[row.pid]
        if _kind(row) != _kind(written) or (age_s >= PROCESS_REST_S and _rests(row) != _rests(written)):
            self._used[row.pid] = self._mono, 0.0
            return row
        if self._mono - since < PROCESS_STEP_S:
            return None
        self._used[row.pid] = self._mono, 0.0
        mean = msgspec.structs.replace(row, cpu_percent=round(used / (self._mono - since), 1))
        steps = row.role in VLLM_ROLES and abs(mean.cpu_percent - written.cpu_percent) >= PROCESS_STEP_PERCENT
        return mean if steps or (row.pid in self._moved and age_s >= PROCESS_DRIFT_S) else None


def _kind(row: ProcessRow) -> tuple[object, ...]:
    """What makes a difference at once: running and sleeping alternate all the time and count as the same."""
    return (row.process, row.role, row.rank, "S" if row.state in "RSI" else row.state, row.parent_pid)


def _rests(row: ProcessRow) -> bool:
    return row.cpu_percent < RESTS_BELOW_PERCENT


def _server_kind(sample: EndpointSampled) -> tuple[object, ...]:
    return (sample.url, sample.health, sample.status, sample.active, [engine.awake for engine in sample.engines])


def _host_kind(sample: HostSampled) -> tuple[object, ...]:
    swaps = (sample.swap_bytes_per_s or 0.0) > SWAPS_ABOVE_BYTES_PER_S
    is_short = (sample.memory_pressure_percent or 0.0) >= MEMORY_PRESSURE_PERCENT
    grows = bool(sample.download_bytes_per_s)
    return (sample.oom_kill_count, sample.download_bytes is None, grows, swaps, is_short, sample.model_filesystem)


class _Gpus:
    """The rows of GPUs that are worth writing."""

    def __init__(self) -> None:
        self._now: dict[int, GpuRow] = {}
        self._moved_mono: dict[int, float] = {}
        self._told: dict[int, tuple[float, GpuRow]] = {}

    def news(self, event: GpusSampled) -> list[GpuRow]:
        """Of all GPUs: one that is not in the event may have come to rest."""
        for row in event.rows:
            before = self._now.get(row.index)
            if before is None or _activity(before) != _activity(row) or _power_differs(before, row):
                self._moved_mono[row.index] = event.mono
            self._now[row.index] = row
        rows = [row for row in self._now.values() if self._is_news(event.mono, row)]
        if any(self._age_s(event.mono, row) >= GPU_DRIFT_S for row in rows):  # one line for all, not one for each
            rows = [row for row in self._now.values() if self._age_s(event.mono, row) >= GPU_REST_S]
        self._told |= {row.index: (event.mono, row) for row in rows}
        return rows

    def _is_news(self, mono: float, row: GpuRow) -> bool:
        if row.index not in self._told:
            return True
        _, told = self._told[row.index]
        age_s = self._age_s(mono, row)
        settled = age_s >= GPU_REST_S and mono - self._moved_mono[row.index] >= GPU_SETTLES_S
        return (
            row.error != told.error
            or _pids(row) != _pids(told)
            or (settled and (_activity(row) != _activity(told) or _power_differs(told, row)))
            or (age_s >= GPU_DRIFT_S and row != told)
        )

    def _age_s(self, mono: float, row: GpuRow) -> float:
        """Since it was written; one that never was is as old as can be."""
        return mono - self._told[row.index][0] if row.index in self._told else float("inf")


def _activity(row: GpuRow) -> tuple[object, ...]:
    """Idle, at work, or busy all the time, and what slows it down."""
    busy = row.busy_percent
    return (None if busy is None else (busy >= 5) + (busy >= 90), row.throttle)


def _power_differs(before: GpuRow, now: GpuRow) -> bool:
    if before.power_w is None or now.power_w is None:
        return before.power_w is not now.power_w
    return abs(now.power_w - before.power_w) > GPU_POWER_STEP * before.power_w


def _pids(row: GpuRow) -> list[int]:
    return sorted(process.pid for process in row.processes or ())
