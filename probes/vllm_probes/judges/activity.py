"""When each thing of a run moved last, from the samples as they come: what the hang detector is told of quiet."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from vllm_probes.events import (
    AttemptStarted,
    EndpointSampled,
    Event,
    GpusSampled,
    HostSampled,
    LogSampled,
    ProcessesSampled,
)
from vllm_probes.rates import total
from vllm_probes.rows import EngineSample, ProcessRow

BYTES_STEP = 1 << 20
"""Less than this is talk among processes and no data: an idle tree moves some kB a second (measured)."""
FAULT_BYTES = 128 << 10
"""What a page fault reads from a file at least, by the kernel's read-ahead (VM_READAHEAD_PAGES). A file that is mapped,
as weights are (safetensors), is read by faults alone: on a file system in user space nothing else tells of that."""
GPU_STEP_BYTES = 64 << 20
_COUNTERS = ("prompt_tokens", "generation_tokens", "iterations", "finished_requests")


class EngineActivity(NamedTuple):
    """One engine, as its counters tell."""

    tokens: float
    """All its counters together: whatever moves, changes them."""
    has_work: bool
    moved_mono: float | None
    """When they moved last, or when work came to them at rest; None: they have not since somebody looks."""


class Activity(msgspec.Struct, frozen=True):
    """What has been counted so far."""

    moved: Mapping[str, float] = {}
    """As in `activity_sampled`."""
    is_attached: bool = False
    """It was found running: its processes and its log were there before anybody looked, and have not moved so."""
    requests: float | None = None
    unanswered: bool = False
    """As in `activity_sampled`, both."""
    engines: Mapping[str, EngineActivity] = {}
    content_lines: int = 0
    transferred: Mapping[int, int] = {}
    """pid -> bytes read and written when they last counted as a movement, by whatever way; one may count twice."""
    gpu_bytes: Mapping[int, int] = {}
    download_bytes: int = 0

    @property
    def is_counted(self) -> bool:
        """Its requests and tokens can be seen, or could be if it did not hang."""
        return self.requests is not None or self.unanswered

    @property
    def moved_mono(self) -> float:
        """When anything moved last."""
        return max(self.moved.values(), default=float("-inf"))


def follow(activity: Activity, event: Event) -> Activity:
    """The activity after one more event, whether it is written or not."""
    match event:
        case AttemptStarted():
            return Activity(moved={"start": event.mono}, is_attached=event.attached_pid is not None)
        case EndpointSampled():
            return _endpoint_sampled(activity, event)
        case LogSampled():
            return _log_sampled(activity, event)
        case ProcessesSampled():
            return _processes_sampled(activity, event)
        case GpusSampled():
            return _gpus_sampled(activity, event)
        case HostSampled() if (event.download_bytes or 0) != activity.download_bytes:
            return replace(_moved(activity, "download", event.mono), download_bytes=event.download_bytes or 0)
        case _:
            return activity


def _moved(activity: Activity, what: str, mono: float) -> Activity:
    return replace(activity, moved={**activity.moved, what: mono})


def _endpoint_sampled(activity: Activity, event: EndpointSampled) -> Activity:
    if not event.engines:
        was_unanswered = activity.unanswered and event.health != "ok"
        unanswered = activity.requests is None and (was_unanswered or event.health == "timeout")
        return replace(activity, unanswered=unanswered)
    engines = {one.engine: _engine_activity(activity.engines.get(one.engine), one, event.mono) for one in event.engines}
    waiting, running = total(event.engines, "waiting"), total(event.engines, "running")
    requests = None if waiting is None and running is None else (waiting or 0.0) + (running or 0.0)
    activity = replace(activity, engines=engines, requests=requests, unanswered=False)
    moved_mono = _tokens_moved_mono(engines)
    return activity if moved_mono is None else _moved(activity, "tokens", moved_mono)


def _engine_activity(before: EngineActivity | None, sample: EngineSample, mono: float) -> EngineActivity:
    tokens = sum(getattr(sample, name) or 0.0 for name in _COUNTERS)
    has_work = bool(sample.running or sample.waiting)
    if before is None:
        return EngineActivity(tokens, has_work, None)
    begins = has_work and not before.has_work
    return EngineActivity(tokens, has_work, mono if begins or tokens != before.tokens else before.moved_mono)


def _tokens_moved_mono(engines: Mapping[str, EngineActivity]) -> float | None:
    """Of the engine with work that has stood still the longest: others may serve while one replica hangs."""
    known = [(one.has_work, one.moved_mono) for one in engines.values() if one.moved_mono is not None]
    at_work = [mono for has_work, mono in known if has_work]
    return min(at_work) if at_work else max((mono for _, mono in known), default=None)


def _log_sampled(activity: Activity, event: LogSampled) -> Activity:
    content_lines = event.line_count - event.heartbeat_count
    if content_lines == activity.content_lines:
        return activity
    is_news = activity.content_lines or not activity.is_attached
    return replace(_moved(activity, "log", event.mono) if is_news else activity, content_lines=content_lines)


def _processes_sampled(activity: Activity, event: ProcessesSampled) -> Activity:
    known = {pid: count for pid, count in activity.transferred.items() if pid not in event.gone}
    new = {row.pid: _transferred(row) for row in event.rows if row.pid not in known}
    grown = {
        row.pid: count for row in event.rows if (count := _transferred(row)) - known.get(row.pid, count) >= BYTES_STEP
    }
    if grown:
        activity = _moved(activity, "bytes", event.mono)
    if new and (known or not activity.is_attached):
        activity = _moved(activity, "children", event.mono)
    if any(row.pid in new and row.role == "compiler" for row in event.rows):
        activity = _moved(activity, "compilers", event.mono)
    return replace(activity, transferred={**known, **new, **grown})


def _transferred(row: ProcessRow) -> int:
    return row.read_bytes + row.written_bytes + row.disk_read_bytes + FAULT_BYTES * row.major_faults


def _gpus_sampled(activity: Activity, event: GpusSampled) -> Activity:
    used = {row.index: row.used_bytes for row in event.rows if row.used_bytes is not None}
    grown = {
        index: count for index, count in used.items() if abs(count - activity.gpu_bytes.get(index, 0)) >= GPU_STEP_BYTES
    }
    if not grown:
        return activity
    return replace(_moved(activity, "gpu_memory", event.mono), gpu_bytes={**activity.gpu_bytes, **grown})
