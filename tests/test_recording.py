"""The recording: what is written, what is left out, and what a crash in the middle of a line does."""

import os
import resource
from pathlib import Path

from vllm_probes.events import EndpointSampled, LogSampled, ProcessesSampled, Stamp, StateChanged, decode
from vllm_probes.keeper.recording import Recorder, SampleFilter, read_events
from vllm_probes.rows import EngineSample, ProcessRow


def stamp(mono: float) -> Stamp:
    return Stamp(time=1000.0 + mono, mono=mono, node="n", attempt=1)


def row(pid: int, **fields: object) -> ProcessRow:
    return ProcessRow(pid=pid, parent_pid=1, started=0.0, process=f"p{pid}", **fields)  # type: ignore[arg-type]


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "events.jsonl")
    written = [StateChanged(**stamp(n), state="idle") for n in range(5)]
    for event in written:
        recorder.write(event)
    recorder.close()
    assert list(read_events(tmp_path / "events.jsonl")) == written


def test_a_torn_last_line_is_skipped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = StateChanged(**stamp(1), state="idle")
    recorder = Recorder(path)
    recorder.write(whole)
    recorder.close()
    with path.open("ab") as file:
        file.write(b'{"event":"state_chan')
    recorder = Recorder(path)
    recorder.write(whole)
    recorder.close()
    assert list(read_events(path)) == [whole, None, whole]


def test_what_found_no_room_on_the_disk_is_written_when_there_is_some(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = StateChanged(**stamp(1), state="idle")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    pid = os.fork()
    if pid == 0:  # a limit on the size of files stands for the full disk, in a process of its own
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        recorder = Recorder(path)
        recorder.write(event)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limit[1]))
        recorder.write(event)
        torn = recorder.error is not None
        recorder.write(event)
        full = recorder.error is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        recorder.write(event)
        os._exit(0 if torn and full and recorder.error is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [decode(line) for line in path.read_bytes().splitlines()] == [event] * 4


def test_drifting_numbers_are_written_now_and_then() -> None:
    sample_filter = SampleFilter()
    accepted = [
        sample_filter.accept(ProcessesSampled(**stamp(n), rows=[row(7, cpu_percent=50.0 + n % 3, rss_bytes=n)]))
        for n in range(300)
    ]
    assert 4 <= sum(event is not None for event in accepted) <= 6


def test_a_difference_in_kind_is_written_at_once() -> None:
    sample_filter = SampleFilter()
    sample_filter.accept(ProcessesSampled(**stamp(0), rows=[row(7), row(8)]))
    changes = [row(7, state="T"), row(7, state="T", rank=1), row(9)]
    for n, changed in enumerate(changes, 1):
        event = sample_filter.accept(ProcessesSampled(**stamp(n), rows=[changed, row(8, rss_bytes=n)]))
        assert isinstance(event, ProcessesSampled)
        assert event.rows == [changed]


def test_running_and_sleeping_in_turns_is_no_difference() -> None:
    sample_filter = SampleFilter()
    states = [sample_filter.accept(ProcessesSampled(**stamp(n), rows=[row(7, state="RS"[n % 2])])) for n in range(10)]
    assert [event is not None for event in states] == [True] + [False] * 9


def test_coming_to_rest_is_written_soon() -> None:
    sample_filter = SampleFilter()
    busy = [90.0] * 20 + [0.0] * 20
    accepted = [
        n
        for n, cpu in enumerate(busy)
        if sample_filter.accept(ProcessesSampled(**stamp(n), rows=[row(7, cpu_percent=cpu)]))
    ]
    assert accepted == [0, 20]


def test_pids_that_are_gone_are_always_written() -> None:
    sample_filter = SampleFilter()
    sample_filter.accept(ProcessesSampled(**stamp(0), rows=[row(7)]))
    event = sample_filter.accept(ProcessesSampled(**stamp(1), rows=[], gone=[7]))
    assert isinstance(event, ProcessesSampled)
    assert event.gone == [7]


def test_the_server_is_written_when_its_kind_changes_and_every_ten_seconds() -> None:
    sample_filter = SampleFilter()

    def sample(mono: float, *, active: bool) -> EndpointSampled:
        engines = [EngineSample(generation_tokens=mono)]
        return EndpointSampled(**stamp(mono), url="u", health="ok", active=active, engines=engines)

    accepted = [mono for mono in range(40) if sample_filter.accept(sample(mono, active=mono >= 15))]
    assert accepted == [0, 10, 15, 25, 35]


def test_the_log_is_written_every_five_seconds() -> None:
    sample_filter = SampleFilter()
    events = [LogSampled(**stamp(mono / 10), size_bytes=mono, line_count=mono) for mono in range(200)]
    assert [event.mono for event in events if sample_filter.accept(event)] == [0.0, 5.0, 10.0, 15.0]
