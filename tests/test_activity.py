"""What moves, and when a run has fallen quiet."""

from typing import Any

import pytest

from vllm_probes.events import (
    AttemptStarted,
    EndpointSampled,
    Event,
    GpusSampled,
    HostSampled,
    LogSampled,
    ProcessesSampled,
    Stamp,
)
from vllm_probes.judges.activity import Activity, follow
from vllm_probes.rows import EngineSample, GpuRow, ProcessRow


def stamp(mono: float) -> Stamp:
    return Stamp(time=mono, mono=mono, node="n", attempt=1)


def after(*events: Event) -> Activity:
    activity = follow(Activity(), AttemptStarted(**stamp(0), command=["x"], levers=[], log="l", shim_pid=1))
    for event in events:
        activity = follow(activity, event)
    return activity


def server(mono: float, tokens: float, running: float | None = 1.0) -> EndpointSampled:
    engine = EngineSample(generation_tokens=tokens, running=running)
    return EndpointSampled(**stamp(mono), url="u", health="ok", engines=[engine])


def process(mono: float, read_bytes: int, pid: int = 7) -> ProcessesSampled:
    row = ProcessRow(pid=pid, parent_pid=1, started=0, process="p", read_bytes=read_bytes)
    return ProcessesSampled(**stamp(mono), rows=[row])


def mapped(mono: float, **counts: int) -> ProcessesSampled:
    """A process that reads by page faults alone."""
    row = ProcessRow(pid=7, parent_pid=1, started=0, process="p", state="D", **counts)
    return ProcessesSampled(**stamp(mono), rows=[row])


def log(mono: float, lines: int, heartbeats: int = 0) -> LogSampled:
    return LogSampled(**stamp(mono), size_bytes=lines, line_count=lines, heartbeat_count=heartbeats)


@pytest.mark.parametrize(
    ("events", "what", "mono"),
    [
        ([server(1, 5), server(2, 5), server(3, 6), server(4, 6)], "tokens", 3),
        ([server(1, 5), server(2, 5)], "tokens", None),
        ([log(1, 4), log(2, 5, 1), log(3, 6, 2)], "log", 1),
        ([process(1, 0), process(2, 1 << 19), process(3, 1 << 20)], "bytes", 3),
        ([process(1, 0), process(2, 100), process(3, 200)], "bytes", None),
        ([mapped(1), mapped(2, disk_read_bytes=1 << 19), mapped(3, disk_read_bytes=1 << 20)], "bytes", 3),
        ([mapped(1), mapped(2, major_faults=7), mapped(3, major_faults=8)], "bytes", 3),
        ([process(1, 0), process(2, 0, pid=8)], "children", 2),
        ([HostSampled(**stamp(1)), HostSampled(**stamp(2), download_bytes=5)], "download", 2),
        ([GpusSampled(**stamp(1), rows=[GpuRow(index=0, used_bytes=1 << 30)])], "gpu_memory", 1),
    ],
)
def test_what_counts_as_a_movement(events: list[Event], what: str, mono: float | None) -> None:
    assert after(*events).moved.get(what) == mono


def test_requests_are_those_of_the_gauges() -> None:
    assert after(server(1, 5, 3.0)).requests == 3.0
    assert after(server(1, 5, None)).requests is None


def test_a_look_that_fails_says_nothing() -> None:
    failed: dict[str, Any] = {"url": "u", "health": "timeout"}
    assert after(server(1, 5), EndpointSampled(**stamp(2), **failed)).requests == 1.0


def test_what_was_there_before_anybody_looked_has_not_moved() -> None:
    started = AttemptStarted(**stamp(0), command=["x"], levers=[], log="l", shim_pid=None, attached_pid=7)
    activity = follow(Activity(), started)
    for event in (log(1, 90), process(1, 1 << 30)):
        activity = follow(activity, event)
    assert dict(activity.moved) == {"start": 0}
    for event in (log(2, 91), process(2, 0, pid=8)):
        activity = follow(activity, event)
    assert dict(activity.moved) == {"start": 0, "log": 2, "children": 2}


def test_a_server_that_never_tells_its_gauges_and_does_not_answer() -> None:
    silent = EndpointSampled(**stamp(1), url="u", health="timeout")
    assert after(silent).is_counted
    assert not after(silent, EndpointSampled(**stamp(2), url="u", health="ok")).is_counted
    assert not after(EndpointSampled(**stamp(1), url="u", health="refused")).is_counted
    assert after(silent, EndpointSampled(**stamp(2), url="u", health="refused")).is_counted
    assert not after(server(1, 5), silent).unanswered


def test_a_new_attempt_begins_anew() -> None:
    activity = follow(
        after(server(1, 5), server(2, 6)), AttemptStarted(**stamp(9), command=["x"], levers=[], log="l", shim_pid=1)
    )
    assert dict(activity.moved) == {"start": 9}


def replicas(mono: float, *engines: tuple[float, float]) -> EndpointSampled:
    """(tokens, running) of each."""
    samples = [
        EngineSample(engine=str(at), generation_tokens=tokens, running=running)
        for at, (tokens, running) in enumerate(engines)
    ]
    return EndpointSampled(**stamp(mono), url="u", health="ok", engines=samples)


def test_a_replica_that_stands_still_is_not_hidden_by_one_that_serves() -> None:
    activity = Activity()
    for at in range(1, 30):
        activity = follow(activity, replicas(at, (min(at, 10), 1.0), (at, 1.0)))
    assert activity.moved["tokens"] == 10


def test_a_replica_without_work_does_not_count() -> None:
    activity = Activity()
    for at in range(1, 30):
        activity = follow(activity, replicas(at, (min(at, 10), float(at < 12)), (at, 1.0)))
    assert activity.moved["tokens"] == 29


def test_work_that_comes_to_an_engine_at_rest_counts_from_then() -> None:
    activity = Activity()
    for at in range(1, 30):
        activity = follow(activity, replicas(at, (5, float(at >= 20)), (7, 0.0)))
    assert activity.moved["tokens"] == 20
