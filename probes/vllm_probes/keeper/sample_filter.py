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
from vllm_probes.rows import GpuRow, ProcessRow

PROCESS_DRIFT_S = 60.0
PROCESS_REST_S = 5.0
RESTS_BELOW_PERCENT = 10.0
"""A process that comes to rest or wakes is news, at most every five seconds; how busy it is drifts."""
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


class SampleFilter:
    """Lets through what is worth writing; samples come trimmed to the rows that are."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[float, ProcessRow]] = {}
        self._last: dict[type[Event], Event] = {}
        self._own_clients: set[str] = set()
        self._gpus = _Gpus()
        self._gpu_status: str | None = None

    def accept(self, event: Event) -> Event | None:
        """The event as it is to be written, or None."""
        match event:
            case ProcessesSampled():
                return self._processes(event)
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
        self._rows.clear()
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

    def _processes(self, event: ProcessesSampled) -> ProcessesSampled | None:
        rows = [row for row in event.rows if self._row_is_news(event.mono, row)]
        for pid in event.gone:
            self._rows.pop(pid, None)
        for row in rows:
            self._rows[row.pid] = (event.mono, row)
        return msgspec.structs.replace(event, rows=rows) if rows or event.gone else None

    def _row_is_news(self, mono: float, row: ProcessRow) -> bool:
        if row.pid not in self._rows:
            return True
        before_mono, before = self._rows[row.pid]
        age_s = mono - before_mono
        return (
            _kind(row) != _kind(before)
            or (age_s >= PROCESS_REST_S and _rests(row) != _rests(before))
            or age_s >= PROCESS_DRIFT_S
        )


def _kind(row: ProcessRow) -> tuple[object, ...]:
    """What makes a difference at once: running and sleeping alternate all the time and count as the same."""
    return (row.process, row.role, row.rank, "S" if row.state in "RSI" else row.state, row.parent_pid)


def _rests(row: ProcessRow) -> bool:
    return row.cpu_percent < RESTS_BELOW_PERCENT


def _server_kind(sample: EndpointSampled) -> tuple[object, ...]:
    return (sample.url, sample.health, sample.status, sample.active, [engine.awake for engine in sample.engines])


def _host_kind(sample: HostSampled) -> tuple[object, ...]:
    swaps = (sample.swap_bytes_per_s or 0.0) > SWAPS_ABOVE_BYTES_PER_S
    grows = bool(sample.download_bytes_per_s)
    return (sample.oom_kill_count, sample.download_bytes is None, grows, swaps, sample.model_filesystem)


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
