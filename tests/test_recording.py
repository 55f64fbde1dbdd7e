"""The recording: what is written, what is left out, and what a crash in the middle of a line does."""

import os
import resource
from pathlib import Path

from vllm_probes.events import Stamp, StateChanged, decode
from vllm_probes.keeper.recording import Recorder, read_events
from vllm_probes.rows import ProcessRow


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
