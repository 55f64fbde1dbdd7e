"""What keeps a serving run from being faster, told once it has held for a while; a hint and never more.

A pure fold like `state`: what was held since the last look at the server is averaged, each look closes one interval
(`limit_interval`), and what limited it (`limit_signals`) has to stay the same for a while before it is told or taken
back. Without load nothing is told.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from vllm_probes.events import (
    AttemptStarted,
    CommandEnded,
    Conclusion,
    EndpointSampled,
    Event,
    GpusSampled,
    HostSampled,
    LimitChanged,
    LogRecorded,
    ProcessesSampled,
    StopRequested,
    TreeEnded,
    stamp_of,
)
from vllm_probes.gpus import GpuModel, residents
from vllm_probes.judges.limit_interval import GPU_ROWS, Interval, Key, Limit
from vllm_probes.judges.limit_signals import find
from vllm_probes.rows import DebugSetting, Evidence, GpuCard, GpuRow, ProcessRow

WINDOW_S = 15.0
"""A limit is told when it has been the same for this long …"""
AGREEING = 2
"""… and over so many intervals: a single one may hold what a process did in the first moment of the load …"""
CLEAR_S = 30.0
"""… and while there is load taken back when none has been there for this long: one odd look spoils two intervals."""
SHORTEST_S = 5.0
"""Looks that follow each other faster, because something else was news, make one interval."""
LONGEST_S = 30.0
"""Nobody knows what happened between looks that are further apart: the recording has one every ten seconds."""
KNOWN_SHARE = 0.8
"""What was unknown for more than the rest of an interval is unknown."""
COMPILED_S = 30.0
"""vLLM tells of each kernel once, when it is compiled: for so long its requests may have waited for that."""

COMPILATION_RULE = "jit-during-inference"
SHUTDOWN_RULE = "shutdown"


class Mean(NamedTuple):
    """Of a value that holds until the next one."""

    weighted: float = 0.0
    """Value times seconds."""
    known_s: float = 0.0
    most: float = 0.0

    def hold(self, value: float, seconds: float) -> "Mean":
        return Mean(self.weighted + value * seconds, self.known_s + seconds, max(self.most, value))


class Candidate(msgspec.Struct, frozen=True):
    """What limited the latest intervals without a break; without a limit, nothing did."""

    limit: Limit | None
    since: float
    """Unix seconds …"""
    since_mono: float
    """… and the same: where the first of these intervals began."""
    intervals: int = 1

    @property
    def key(self) -> tuple[str, str] | None:
        return (self.limit.name, self.limit.culprit) if self.limit else None


class Memory(msgspec.Struct, frozen=True):
    """What the judge knows; GPUs and host are told when they change, whatever attempt it is."""

    is_open: bool = False
    """An attempt runs, and nobody has asked for its end."""
    settings: tuple[DebugSetting, ...] = ()
    processes: Mapping[int, ProcessRow] = {}
    cards: Mapping[int, GpuCard] = {}
    gpus: Mapping[int, GpuRow] = {}
    """Empty while the driver does not answer."""
    gpu_rows: Mapping[int, tuple[GpuRow, ...]] = {}
    """The latest that were told since the load began."""
    host: HostSampled | None = None
    compiled: LogRecorded | None = None
    look: EndpointSampled | None = None
    """Where the interval began; None: the server is not at work."""
    held: Mapping[Key, Mean] = {}
    """Since `look`."""
    mono: float = 0.0
    """Until when that is."""
    candidate: Candidate | None = None
    told: tuple[str, str] | None = None


Result = tuple[Memory, list[Conclusion]]


def step(memory: Memory, event: Event) -> Result:
    """One observation in, conclusions out. Anything else changes nothing."""
    match event:
        case AttemptStarted():
            return _attempt_started(memory, event)
        case StopRequested() | CommandEnded() | TreeEnded():
            return _close(memory, event)
        case LogRecorded():
            return _log_recorded(memory, event)
        case ProcessesSampled():
            memory = _pass_time(memory, event)
            rows = {pid: row for pid, row in memory.processes.items() if pid not in event.gone}
            return replace(memory, processes=rows | {row.pid: row for row in event.rows}), []
        case GpusSampled():
            return _gpus_sampled(memory, event), []
        case HostSampled():
            return replace(_pass_time(memory, event), host=event), []
        case EndpointSampled() if memory.is_open:
            return _endpoint_sampled(_pass_time(memory, event), event)
        case _:
            return memory, []


# --- the course of an attempt -----------------------------------------------------------------------------------------


def _attempt_started(memory: Memory, event: AttemptStarted) -> Result:
    _, conclusions = _rest(memory, event)
    known = Memory(cards=memory.cards, gpus=memory.gpus, host=memory.host)
    return replace(known, is_open=True, settings=tuple(event.debug_settings), mono=event.mono), conclusions


def _close(memory: Memory, event: Event) -> Result:
    memory, conclusions = _rest(memory, event)
    return replace(memory, is_open=False), conclusions


def _rest(memory: Memory, event: Event) -> Result:
    """No load any more: nothing limits it."""
    conclusions: list[Conclusion] = [LimitChanged(**stamp_of(event), limit=None)] if memory.told else []
    return replace(memory, look=None, held={}, gpu_rows={}, candidate=None, told=None), conclusions


def _log_recorded(memory: Memory, event: LogRecorded) -> Result:
    if event.rule == SHUTDOWN_RULE:
        return _close(memory, event)
    return (replace(memory, compiled=event) if event.rule == COMPILATION_RULE else memory), []


def _gpus_sampled(memory: Memory, event: GpusSampled) -> Memory:
    if event.status != "ok":
        return replace(memory, gpus={}, gpu_rows={})
    cards = {card.index: card for card in event.cards}
    rows = {row.index: row for row in event.rows}
    told = {index: (*memory.gpu_rows.get(index, ()), row)[-GPU_ROWS:] for index, row in rows.items()}
    return replace(
        memory,
        cards={**memory.cards, **cards},
        gpus={**memory.gpus, **rows},
        gpu_rows={**memory.gpu_rows, **told} if memory.look else {},
    )


# --- what was held ----------------------------------------------------------------------------------------------------


def _pass_time(memory: Memory, event: Event) -> Memory:
    """What is known holds until the next sample of it."""
    seconds = event.mono - memory.mono
    if memory.look is None or seconds <= 0.0:
        return replace(memory, mono=event.mono)
    held = dict(memory.held)
    for key, value in _values(memory):
        held[key] = held.get(key, Mean()).hold(value, seconds)
    return replace(memory, held=held, mono=event.mono)


def _values(memory: Memory) -> Iterator[tuple[Key, float]]:
    for pid, row in memory.processes.items():
        yield ("cpu", pid), row.cpu_percent
    if memory.host and memory.host.swap_bytes_per_s is not None:
        yield ("swap", 0), memory.host.swap_bytes_per_s
    if memory.host and memory.host.memory_pressure_percent is not None:
        yield ("memory_pressure", 0), memory.host.memory_pressure_percent


# --- the server -------------------------------------------------------------------------------------------------------


def _endpoint_sampled(memory: Memory, event: EndpointSampled) -> Result:
    seconds = event.mono - memory.look.mono if memory.look else 0.0
    if event.health != "ok" or not event.engines:
        return _rest(memory, event) if seconds > LONGEST_S else (memory, [])
    if not event.active:
        return _rest(memory, event)
    if memory.look is None or not 0.0 <= seconds <= LONGEST_S:
        memory, conclusions = _rest(memory, event)
        return replace(memory, look=event), conclusions
    if seconds < SHORTEST_S:
        return memory, []
    memory = _judge(memory, _interval(memory, memory.look, event), memory.look)
    memory = replace(memory, look=event, held={})
    return _tell(memory, event)


def _interval(memory: Memory, before: EndpointSampled, after: EndpointSampled) -> Interval:
    seconds = after.mono - before.mono
    is_fresh = memory.compiled is not None and after.mono - memory.compiled.mono <= COMPILED_S
    known = {key: mean for key, mean in memory.held.items() if mean.known_s >= KNOWN_SHARE * seconds}
    return Interval(
        seconds=seconds,
        before=before.engines,
        after=after.engines,
        means={key: mean.weighted / mean.known_s for key, mean in known.items()},
        peaks={key: mean.most for key, mean in known.items()},
        processes=memory.processes,
        gpu_ranks=_gpu_ranks(memory),
        gpu_rows=memory.gpu_rows,
        settings=memory.settings,
        compiled=memory.compiled.message if is_fresh and memory.compiled else None,
    )


def _gpu_ranks(memory: Memory) -> dict[int, ProcessRow]:
    gpus = GpuModel(cards=dict(memory.cards), rows=dict(memory.gpus))
    found = residents(gpus, memory.processes)
    ranks = {
        index: [one.row for one in ones if one.row.role == "worker"]
        or [one.row for one in ones if one.row.role == "engine_core"]
        for index, ones in sorted(found.items())
    }
    return {index: rows[0] for index, rows in ranks.items() if rows}


def _judge(memory: Memory, interval: Interval, began: EndpointSampled) -> Memory:
    found = Candidate(find(interval), began.time, began.mono)
    before = memory.candidate
    if before is not None and before.key == found.key:
        found = replace(found, since=before.since, since_mono=before.since_mono, intervals=before.intervals + 1)
    return replace(memory, candidate=found)


def _tell(memory: Memory, event: Event) -> Result:
    candidate = memory.candidate
    if candidate is None or candidate.key == memory.told or candidate.intervals < AGREEING:
        return memory, []
    if event.mono - candidate.since_mono < (WINDOW_S if candidate.limit else CLEAR_S):
        return memory, []
    return replace(memory, told=candidate.key), [_changed(candidate, event)]


def _changed(candidate: Candidate, event: Event) -> LimitChanged:
    limit = candidate.limit
    if limit is None:
        return LimitChanged(**stamp_of(event), limit=None)
    evidence = [Evidence(signal=signal, value=value, since=candidate.since) for signal, value in limit.evidence]
    return LimitChanged(**stamp_of(event), limit=limit.name, summary=limit.summary, evidence=evidence)
