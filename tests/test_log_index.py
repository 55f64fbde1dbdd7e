"""The line index against the plain way of doing it: reading the whole file."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_probes.log.heads import PLAIN_LINES
from vllm_probes.log.index import LINE_LIMIT_BYTES, LogIndex
from vllm_probes.log.line import clean
from vllm_probes.log.rows import LEFT_OUT_LINES, FilteredRows, LogRows
from vllm_probes.log.writers import Writers

INFO = "(APIServer pid=10) INFO 11-21 08:52:59 [model.py:733] Resolved architecture: LlamaForCausalLM"
ERROR = "(Worker_TP1 pid=12) ERROR 11-21 08:53:00 [worker.py:9] it broke"
WARNING = "(EngineCore pid=11) WARNING 11-21 08:53:00 [cpu.py:224] Triton is not installed."


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "attempt-1.log"


@pytest.fixture
def index(log: Path) -> Iterator[LogIndex]:
    index = LogIndex(log)
    yield index
    index.close()


def write(path: Path, *lines: str | bytes, end: bytes = b"\n") -> None:
    with path.open("ab") as file:
        file.write(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + end)


def refresh(index: LogIndex) -> None:
    while index.refresh():
        pass


def texts(rows: LogRows) -> list[str]:
    return [line.text for line in rows.read(0, rows.line_count)]


def follow(rows: FilteredRows) -> list[str]:
    while rows.refresh():
        pass
    return texts(rows)


def lines_of(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines[:-1] if not lines[-1] else lines


def test_a_file_that_does_not_exist_yet_has_no_rows(index: LogIndex, log: Path) -> None:
    assert index.refresh() is False
    assert (index.line_count, index.read(0, 10), index.next_alarm(-1)) == (0, [], None)
    write(log, "first")
    refresh(index)
    assert texts(index) == ["first"]


def test_an_unfinished_line_is_visible_and_grows(index: LogIndex, log: Path) -> None:
    write(log, "one", "tw", end=b"")
    refresh(index)
    assert texts(index) == ["one", "tw"]
    write(log, "o")
    refresh(index)
    assert texts(index) == ["one", "two"]
    assert index.read(1, 1)[0].number == 2


LINES = st.lists(st.binary(max_size=60) | st.sampled_from([b"x" * 9000, b"", b"\r", ERROR.encode()]), max_size=40)


@settings(max_examples=80)
@given(chunks=st.lists(LINES, max_size=5), budget=st.integers(1, 20_000))
def test_rows_are_the_lines_however_the_file_grew(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[bytes]], budget: int
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    index = LogIndex(log)
    data = b""
    for chunk in chunks:
        data += b"\n".join(chunk)
        log.write_bytes(data)
        while index.refresh(budget_bytes=budget):
            pass
    expected = [clean(line) for line in lines_of(data)]
    assert texts(index) == expected
    assert [line.number for line in index.read(0, index.line_count)] == list(range(1, len(expected) + 1))
    index.close()


def test_any_window_of_a_long_log(index: LogIndex, log: Path) -> None:
    write(log, *(f"line {number}" for number in range(50_000)))
    refresh(index)
    for first in (0, 63, 64, 8191, 25_000, 49_990):
        assert [line.text for line in index.read(first, 20)] == [
            f"line {number}" for number in range(first, min(first + 20, 50_000))
        ]
    assert index.read(50_000, 5) == []
    assert index.block_count < 200


def test_a_budget_bounds_one_call(index: LogIndex, log: Path) -> None:
    write(log, *["x" * 99] * 100)
    assert index.refresh(budget_bytes=1000) is True
    assert (index.size_bytes, index.pending_bytes, index.line_count) == (1000, 9000, 10)


def test_a_replay_takes_the_file_to_end_earlier(index: LogIndex, log: Path) -> None:
    write(log, "one", "two", "three")
    assert index.refresh(limit_bytes=4) is False
    assert texts(index) == ["one"]
    index.refresh(limit_bytes=9)
    assert texts(index) == ["one", "two", "t"]
    index.refresh(limit_bytes=4)
    assert (texts(index), index.generation) == (["one"], 1)


def test_how_far_a_line_reaches_that_is_not_indexed_yet(index: LogIndex, log: Path) -> None:
    write(log, "one", "two", "three", "unfinished", end=b"")
    assert index.bytes_through(1) == 0
    index.refresh(limit_bytes=5)
    assert [index.bytes_through(number) for number in (0, 1, 2, 3, 4)] == [5, 5, 8, 14, 5]


def test_a_truncated_file_begins_anew(index: LogIndex, log: Path) -> None:
    write(log, "one", ERROR, "three")
    refresh(index)
    log.write_bytes(b"new\n")
    refresh(index)
    assert (texts(index), index.generation, index.error_count) == (["new"], 1, 0)


def test_a_replaced_file_begins_anew_even_when_it_is_longer(index: LogIndex, log: Path) -> None:
    write(log, "one")
    refresh(index)
    write(log.with_suffix(".new"), "another", "file")
    os.replace(log.with_suffix(".new"), log)
    refresh(index)
    assert (texts(index), index.generation) == (["another", "file"], 1)


def test_a_deleted_file_stays_readable(index: LogIndex, log: Path) -> None:
    write(log, "one")
    refresh(index)
    log.unlink()
    refresh(index)
    assert texts(index) == ["one"]


def test_a_huge_line_is_cut_and_can_be_had_whole(index: LogIndex, log: Path) -> None:
    write(log, "before", b"x" * 10_000_000 + b"end", "after")
    refresh(index)
    before, huge, after = index.read(0, 3)
    assert (before.text, before.cut, after.text, after.cut) == ("before", False, "after", False)
    assert huge.cut
    assert len(huge.text) == LINE_LIMIT_BYTES
    assert len(index.read_whole(2).text) == 4 << 20
    assert index.read_whole(3).text == "after"


@pytest.mark.parametrize("length", [LINE_LIMIT_BYTES, LINE_LIMIT_BYTES + 1, LINE_LIMIT_BYTES + 9000])
def test_the_limit_of_a_line_is_exact(index: LogIndex, log: Path, length: int) -> None:
    write(log, b"y" * length, "next")
    refresh(index)
    line = index.read(0, 1)[0]
    assert (len(line.text), line.cut) == (LINE_LIMIT_BYTES, length > LINE_LIMIT_BYTES)
    assert index.read_whole(1).text == "y" * length


def test_no_such_line(index: LogIndex) -> None:
    with pytest.raises(IndexError, match="has 0 lines"):
        index.read_whole(1)


def test_a_bar_that_overwrote_itself_for_hours_shows_where_it_is_now(index: LogIndex, log: Path) -> None:
    bars = b"".join(b"\rFetching: %3d%%|###" % (step % 100) for step in range(20_000))
    write(log, bars + b"\rFetching: 100%|#####", end=b"")
    refresh(index)
    assert texts(index) == ["Fetching: 100%|#####"]


# --- alarms ---------------------------------------------------------------------------------------------------------

ALARMS = [
    ERROR,
    "CRITICAL 06-10 21:32:17 engine.py:88] old form",
    "\x1b[0;36m(A pid=1)\x1b[0;0m \x1b[31mERROR\x1b[0m \x1b[90m11-21 09:15:08\x1b[0m \x1b[90m[t.py:12]\x1b[0m x",
    "(APIServer pid=716) (EngineCore_DP0 pid=1101) ERROR 01-29 10:27:47 [core.py:710] nested",
    "ERROR:    Exception in ASGI application",
    "[rank0]:[E321 02:07:08.408271257 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective operation timeout",
    "[E ProcessGroupNCCL.cpp:475] [Rank 4] Watchdog caught collective operation timeout",
    "E1121 00:02:25.387000 473 torch/distributed/run.py:793] failed",
    '{"asctime": "x", "levelname": "ERROR", "message": "json"}',
    "2025-05-16T13:12:16.645427617Z ERROR 05-16 13:12:16 [core_client.py:425] with a stamp in front",
]
QUIET = [
    INFO,
    WARNING,
    "(APIServer pid=1) INFO 11-21 08:53:00 [a.py:1] an ERROR is mentioned",
    "plain text about CRITICAL FATAL ERROR things",
    "[W1121 08:53:17.149477575 utils.cpp:68] Warning: NUMA binding",
    "",
]


@pytest.mark.parametrize("line", ALARMS)
def test_alarms(index: LogIndex, log: Path, line: str) -> None:
    write(log, INFO, line, INFO)
    refresh(index)
    assert (index.next_alarm(-1), index.next_alarm(1), index.next_alarm(3, backwards=True)) == (1, None, 1)
    assert (index.error_count, index.read(1, 1)[0].level in ("error", "critical")) == (1, True)


@pytest.mark.parametrize("line", QUIET)
def test_no_alarm(index: LogIndex, log: Path, line: str) -> None:
    write(log, line, line)
    refresh(index)
    assert (index.next_alarm(-1), index.error_count) == (None, 0)


def test_warnings_are_counted(index: LogIndex, log: Path) -> None:
    write(log, WARNING, INFO, "[W1121 08:53:17.149477575 utils.cpp:68] Warning: NUMA", "WARNING:  uvicorn's")
    refresh(index)
    assert index.warning_count == 3


TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "/opt/vllm/bin/vllm", line 6, in <module>',
    "    sys.exit(main())",
    "             ^^^^^^",
    "OSError: [Errno 98] Address already in use",
]


@pytest.mark.parametrize(
    "prefix", ["", "(APIServer pid=10) ", "[rank0]: ", "2026-05-01 21:27:19.056 | (APIServer pid=1) "]
)
def test_the_alarm_of_a_bare_traceback_is_the_exception(index: LogIndex, log: Path, prefix: str) -> None:
    write(log, INFO, *(prefix + line for line in TRACEBACK), INFO)
    refresh(index)
    assert (index.next_alarm(-1), index.next_alarm(5), index.error_count) == (5, None, 1)
    assert [line.level for line in index.read(0, 7)] == ["info", *["error"] * 5, "info"]


def test_indented_lines_outside_of_tracebacks_are_none(index: LogIndex, log: Path) -> None:
    write(log, INFO, "  goes on", *TRACEBACK, "  goes on", INFO, "", *TRACEBACK[:2], INFO, *TRACEBACK[:3], end=b"")
    refresh(index)
    levels = [line.level for line in index.read(0, 14)]
    assert levels == ["info", None, *["error"] * 5, None, "info", None, None, None, "info", None]


def test_the_last_line_of_a_folded_record_is_its_own(index: LogIndex, log: Path) -> None:
    headed = [f"{ERROR} {text}" for text in ("Traceback (most recent call last):", *"abcd", "OSError: no")]
    bare = [*TRACEBACK[:3], *TRACEBACK[2:3] * 9, TRACEBACK[-1], "  and more of it", "and more"]
    talk = ["Process EngineCore:", "/usr/lib/a.py:254: UserWarning: leaked", "  warnings.warn("]
    write(log, *(f"{text}\r" for text in headed[:-1]), headed[-1], talk[0], *bare, *talk[1:])
    refresh(index)
    shown = follow(index.rows(is_folded=True))
    assert shown == [*headed[:3], headed[-1], talk[0], *bare[:3], bare[-1], *talk[1:]]
    assert follow(index.rows(level="error")) == [*headed, *bare]


def test_a_folded_record_can_be_had_whole(index: LogIndex, log: Path) -> None:
    inside = [[f'  File "/{rank}.py", line {number}, in f' for number in range(1200)] for rank in range(2)]
    ranks = [
        [f"(Worker_TP{rank} pid=2{rank}) {text}" for text in [TRACEBACK[0], *inside[rank][:60], f"OSError: {rank}"]]
        for rank in range(2)
    ]
    write(log, INFO, *(line for pair in zip(*ranks, strict=True) for line in pair), TRACEBACK[0], *inside[0], "Error")
    refresh(index)
    rows = index.rows(is_folded=True)
    follow(rows)
    shown = [line for line in rows.read(0, rows.line_count) if line.hidden_count]
    assert [line.hidden_count for line in shown] == [58, 57, 1198]
    for line, rank in zip(shown, ranks, strict=False):
        assert [line.text, *(one.text for one in rows.left_out(line))] == rank[rank.index(line.text) :]
    assert len(rows.left_out(shown[-1])) == LEFT_OUT_LINES
    assert rows.left_out(rows.read(0, 1)[0]) == []


def test_a_traceback_may_be_interrupted_and_arrive_in_pieces(index: LogIndex, log: Path) -> None:
    for line in [INFO, *TRACEBACK[:2], INFO, ERROR, *TRACEBACK[2:3] * 500, *TRACEBACK[3:], "  goes on"]:
        write(log, line)
        refresh(index)
    assert (index.next_alarm(-1), index.next_alarm(4), index.error_count) == (4, 506, 2)
    levels = [line.level for line in index.read(0, 508)]
    assert levels == ["info", "error", "error", "info", *["error"] * 503, None]


def test_one_record_over_many_lines_is_one_alarm(index: LogIndex, log: Path) -> None:
    head = "(EngineCore pid=7) ERROR 11-21 09:01:55 [core.py:1512] "
    write(
        log,
        head + "fatal\r",
        head + "Traceback (most recent call last):\r",
        head + "ValueError: x",
        head + "next record",
    )
    refresh(index)
    assert (index.next_alarm(-1), index.next_alarm(0), index.error_count) == (0, 3, 2)


def test_many_alarms_across_chunks(index: LogIndex, log: Path) -> None:
    write(log, *((ERROR if number % 7 == 3 else INFO) for number in range(30_000)))
    refresh(index)
    row, found = -1, []
    while (row := index.next_alarm(row)) is not None:  # type: ignore[assignment]
        found.append(row)
    assert found == list(range(3, 30_000, 7))


def test_alarms_have_numbers(index: LogIndex, log: Path) -> None:
    write(log, ERROR, INFO, ERROR)
    refresh(index)
    assert [index.alarm_number(line) for line in range(4)] == [1, None, 2, None]
    assert index.alarm_count == 2


# --- our own requests -----------------------------------------------------------------------------------------------


def access(client: str, path: str = "/health") -> str:
    return f'INFO:     {client} - "GET {path} HTTP/1.1" 200 OK'


@pytest.mark.parametrize(
    "line",
    [
        access("127.0.0.1:53210"),
        access("127.0.0.1:53210", "/metrics"),
        "(APIServer pid=1) " + access("127.0.0.1:53210"),
        '\x1b[32mINFO\x1b[0m:     127.0.0.1:53210 - "\x1b[1mGET /health HTTP/1.1\x1b[0m" \x1b[32m200 OK\x1b[0m',
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_answers_to_our_own_requests_are_no_rows(index: LogIndex, log: Path, line: str, late: bool) -> None:
    other = access("10.0.0.9:53210")
    write(log, INFO, line, other, ERROR)
    if late:
        refresh(index)
    index.hide_clients(["127.0.0.1:53210"])
    refresh(index)
    assert texts(index) == [INFO, other, ERROR]
    assert [line.number for line in index.read(0, 3)] == [1, 3, 4]
    assert (index.next_alarm(-1), index.row_from(3), index.row_from(1)) == (2, 2, 1)


def test_what_a_user_asks_stays(index: LogIndex, log: Path) -> None:
    line = 'INFO:     127.0.0.1:53210 - "POST /v1/completions HTTP/1.1" 200 OK'
    index.hide_clients(["127.0.0.1:53210"])
    write(log, line)
    refresh(index)
    assert texts(index) == [line]


@settings(max_examples=40)
@given(ours=st.lists(st.booleans(), max_size=60), known_at=st.integers(0, 60))
def test_rows_and_lines_agree_whatever_is_hidden(
    tmp_path_factory: pytest.TempPathFactory, ours: list[bool], known_at: int
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    index = LogIndex(log)
    for number, own in enumerate(ours):
        if number == known_at:
            index.hide_clients(["1.1.1.1:1"])
        write(log, access("1.1.1.1:1" if own else f"2.2.2.2:{number}"))
        refresh(index)
    index.hide_clients(["1.1.1.1:1"])
    assert [line.number - 1 for line in index.read(0, 99)] == [at for at, own in enumerate(ours) if not own]
    assert [index.row_from(index.line_of(row)) for row in range(index.line_count)] == list(range(index.line_count))
    index.close()


# --- search ---------------------------------------------------------------------------------------------------------


def search(rows: LogRows, needle: str, start: int, backwards: bool = False) -> int | None:
    at: int | None = start
    while at is not None:
        found = rows.find(needle, at, backwards=backwards, budget_bytes=1)
        if found.row is not None:
            return found.row
        assert found.resume != at
        at = found.resume
    return None


def test_search_ignores_case_and_goes_both_ways(index: LogIndex, log: Path) -> None:
    write(log, *(f"Line {number} Ünïcode \x1b[31mred\x1b[0mdish\tx" for number in range(3000)))
    refresh(index)
    assert search(index, "LINE 2999", 0) == 2999
    assert search(index, "line 5 ", 2999, backwards=True) == 5
    assert search(index, "üNÏcode", 7) == 7
    assert search(index, "reddish", 8) == 8
    assert search(index, "nowhere", 0) is None
    assert search(index, "line 5 ", 6) is None
    assert index.find("", 0) == (None, None)
    assert index.find("x", 99_999) == (None, None)


@settings(max_examples=40)
@given(
    lines=st.lists(st.text(alphabet="abB\t ", max_size=6), min_size=1, max_size=50),
    needle=st.text(alphabet="abAB ", min_size=1, max_size=2),
    data=st.data(),
)
def test_search_finds_what_a_plain_search_finds(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], needle: str, data: st.DataObject
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    write(log, *lines, "end")
    index = LogIndex(log)
    refresh(index)
    start = data.draw(st.integers(0, len(lines)))
    hits = [row for row, text in enumerate(texts(index)) if needle.lower() in text.lower()]
    assert search(index, needle, start) == next((row for row in hits if row >= start), None)
    assert search(index, needle, start, backwards=True) == next((row for row in reversed(hits) if row <= start), None)
    index.close()


# --- filters --------------------------------------------------------------------------------------------------------

MIXED = [
    INFO,
    "  a line of the record before",
    ERROR,
    "and more of it",
    "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.0s/it]",
    WARNING,
    *TRACEBACK,
    INFO,
]


def test_a_level_filter_keeps_whole_records(index: LogIndex, log: Path) -> None:
    write(log, *MIXED)
    refresh(index)
    assert follow(index.rows(level="error")) == [*MIXED[2:4], *TRACEBACK]
    assert follow(index.rows(level="warning")) == [*MIXED[2:4], WARNING, *TRACEBACK]
    assert follow(index.rows(level="info")) == MIXED
    assert follow(index.rows()) == MIXED


@pytest.mark.parametrize(("pid", "expected"), [(12, MIXED[2:4]), (1, []), (120, [])])
def test_a_process_filter(index: LogIndex, log: Path, pid: int, expected: list[str]) -> None:
    write(log, *MIXED)
    refresh(index)
    assert follow(index.rows(pid=pid)) == expected


ENDLESS = [f"slow line {number}" for number in range(300)]
C_ERROR = [
    "[rank0]:[E321 02:07:08.408271257 ProcessGroupNCCL.cpp:1414] thread terminated: CUDA error: illegal access",
    "CUDA kernel errors might be asynchronously reported at some other API call.",
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
    "",
    "Exception raised from c10_cuda_check_implementation at CUDAException.cpp:43 (most recent call first):",
    *(f"frame #{number}: c10::Error::Error() + 0x96 (0x7f in libc10.so)" for number in range(60)),
]
CHAINED = [*TRACEBACK, "", "During handling of the above exception, another exception occurred:", "", *TRACEBACK]
DEEP = [TRACEBACK[0], *['  File "a.py", line 1, in f'] * 500, TRACEBACK[-1]]


@pytest.mark.parametrize("record", [[ERROR], C_ERROR, CHAINED, DEEP, [ERROR, *["  indented"] * 50]])
def test_a_record_ends_where_another_writer_goes_on(index: LogIndex, log: Path, record: list[str]) -> None:
    write(log, INFO, *record, *ENDLESS, INFO)
    refresh(index)
    shown = follow(index.rows(level="error"))
    assert shown[: len(record)] == record
    assert shown[len(record) :] == ENDLESS[: len(shown) - len(record)]
    assert len(shown) <= len(record) + PLAIN_LINES


def test_what_a_process_says_after_its_error_is_no_error(index: LogIndex, log: Path) -> None:
    chatter = ["(Worker_TP1 pid=12) " + text for text in ENDLESS]
    write(log, ERROR, *chatter)
    refresh(index)
    assert follow(index.rows(level="error")) == [ERROR, *chatter[:PLAIN_LINES]]
    assert follow(index.rows(pid=12)) == [ERROR, *chatter]


def test_endless_plain_output_belongs_to_no_process(index: LogIndex, log: Path) -> None:
    write(log, ERROR, *ENDLESS, INFO, ERROR)
    refresh(index)
    assert follow(index.rows(pid=12)) == [ERROR, *ENDLESS[:PLAIN_LINES], ERROR]


def test_a_traceback_goes_on_after_the_records_of_others(index: LogIndex, log: Path) -> None:
    write(log, *TRACEBACK[:2], INFO, MIXED[4], *TRACEBACK[2:], INFO)
    refresh(index)
    assert follow(index.rows(level="error")) == TRACEBACK


def test_tracebacks_of_ranks_keep_apart(index: LogIndex, log: Path) -> None:
    both = [f"[rank{rank}]: {line}" for line in TRACEBACK for rank in (0, 1)]
    write(log, *both, INFO)
    refresh(index)
    assert follow(index.rows(level="error")) == both


def test_an_unfinished_line_is_judged_without_ending_the_record(index: LogIndex, log: Path) -> None:
    rows = index.rows(level="error")
    write(log, *TRACEBACK[:2], "    sys", end=b"")
    for more in (".exit", "(main())\n", TRACEBACK[-1], "\n"):
        refresh(index)
        follow(rows)
        write(log, more, end=b"")
    refresh(index)
    assert follow(rows) == [*TRACEBACK[:2], "    sys.exit(main())", TRACEBACK[-1]]


# --- who writes -----------------------------------------------------------------------------------------------------


def writers(index: LogIndex) -> dict[int, str]:
    found = Writers(index)
    while found.refresh(budget_bytes=1):
        pass
    return found.names


def test_writers_are_in_the_order_of_their_first_line_and_have_their_last_name(index: LogIndex, log: Path) -> None:
    write(
        log, ERROR.replace("Worker_TP1", "Worker"), "plain", INFO, *[INFO] * 500, ERROR, "(nobody pid=x) (see pid=99)"
    )
    refresh(index)
    assert list(writers(index).items()) == [(12, "Worker_TP1"), (10, "APIServer")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("killed (python pid=99)", {}),
        ("\x1b[0;36m(A pid=1)\x1b[0;0m \x1b[31mERROR\x1b[0m x", {1: "A"}),
        (
            "(APIServer pid=716) (EngineCore_DP0 pid=1101) ERROR 01-29 10:27:47 [core.py:710] x",
            {1101: "EngineCore_DP0"},
        ),
        ("(RayWorkerWrapper pid=5, ip=10.0.0.2) WARNING x", {5: "RayWorkerWrapper"}),
        ("(VllmWorker rank=7 pid=410) x", {410: "VllmWorker"}),
        ("vllm-1  | (APIServer pid=1) INFO 11-21 08:52:59 [a.py:1] compose", {1: "APIServer"}),
        ("2026-05-01 21:27:19.056 | (APIServer pid=1) x", {1: "APIServer"}),
        ('{"levelname": "INFO", "message": "json", "processName": "MainProcess", "process": 7}', {7: "MainProcess"}),
        ('{"processName": 1', {}),
    ],
)
def test_a_writer_is_who_the_filter_finds(index: LogIndex, log: Path, line: str, expected: dict[int, str]) -> None:
    write(log, line)
    refresh(index)
    assert writers(index) == expected
    assert all(follow(index.rows(pid=pid)) for pid in expected)


def test_writers_of_a_truncated_log_are_forgotten(index: LogIndex, log: Path) -> None:
    write(log, ERROR)
    refresh(index)
    found = Writers(index)
    found.refresh()
    log.write_text(INFO[:30] + "\n")
    refresh(index)
    found.refresh()
    assert found.names == {10: "APIServer"}


def test_prefixed_continuations_of_two_processes_keep_apart(index: LogIndex, log: Path) -> None:
    first, second = "(APIServer pid=1) ", "(EngineCore pid=2) "
    write(
        log, first + TRACEBACK[0], second + "chatter", first + TRACEBACK[1], second + "chatter", first + TRACEBACK[-1]
    )
    refresh(index)
    assert follow(index.rows(level="error")) == [first + TRACEBACK[0], first + TRACEBACK[1], first + TRACEBACK[-1]]


def test_a_filter_follows_a_growing_file(index: LogIndex, log: Path) -> None:
    rows = index.rows(level="error")
    write(log, INFO, ERROR)
    refresh(index)
    assert follow(rows) == [ERROR]
    write(log, "more of it", INFO, ERROR, end=b"")
    refresh(index)
    assert follow(rows) == [ERROR, "more of it", ERROR]
    write(log, "!")
    refresh(index)
    assert follow(rows) == [ERROR, "more of it", ERROR + "!"]
    assert [line.number for line in rows.read(0, 9)] == [2, 3, 5]
    assert (rows.next_alarm(-1), rows.next_alarm(0), rows.next_alarm(2, backwards=True)) == (0, 2, 0)
    assert (search(rows, "more", 0), search(rows, "resolved", 0)) == (1, None)


def test_a_filter_is_computed_within_a_budget(index: LogIndex, log: Path) -> None:
    write(log, *[INFO, ERROR] * 1000)
    refresh(index)
    rows = index.rows(level="error")
    assert rows.refresh(budget_bytes=1) is True
    assert 0 < rows.line_count < 1000
    assert rows.pending_lines == 2000 - 2 * rows.line_count
    assert len(follow(rows)) == 1000


def test_a_filter_forgets_late_hidden_lines_and_truncated_files(index: LogIndex, log: Path) -> None:
    rows = index.rows(level="info")
    write(log, INFO, access("1.1.1.1:1"), INFO)
    refresh(index)
    assert len(follow(rows)) == 3
    index.hide_clients(["1.1.1.1:1"])
    assert follow(rows) == [INFO, INFO]
    log.write_bytes(b"")
    refresh(index)
    assert follow(rows) == []


def test_filtered_steps_skip_alarms_of_others(index: LogIndex, log: Path) -> None:
    write(log, *[ERROR] * 5, "(Other pid=3) " + ERROR.partition(") ")[2], *[ERROR] * 5)
    refresh(index)
    rows = index.rows(pid=3)
    follow(rows)
    assert (rows.next_alarm(-1), rows.next_alarm(0), rows.next_alarm(1, backwards=True)) == (0, None, 0)


# --- the hole -------------------------------------------------------------------------------------------------------


def punch(path: Path, start: int, length: int) -> None:
    """What FALLOC_FL_PUNCH_HOLE leaves to be read."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(length))


@settings(max_examples=60)
@given(
    count=st.integers(2, 400),
    bounds=st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.9)),
    known=st.booleans(),
    width=st.sampled_from([5, 130, 3000]),
)
def test_a_hole_is_one_row(
    tmp_path_factory: pytest.TempPathFactory, count: int, bounds: tuple[float, float], known: bool, width: int
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    write(log, *(f"{number} ".ljust(width, "x") for number in range(count)), "end")
    size = log.stat().st_size - len("end\n")
    start = int(min(bounds) * size)
    length = max(int(max(bounds) * size) - start, 1)
    before = log.read_bytes()
    index = LogIndex(log)
    if known:
        refresh(index)
    punch(log, start, length)
    index.set_hole(start, length)
    refresh(index)
    shown = texts(index)
    kept_before = lines_of(before[:start] + b"\n")[: before[:start].count(b"\n")]
    behind = before[start + length :]
    kept_behind = lines_of(behind)[1:]
    assert shown == [
        *map(clean, kept_before),
        f"… {length:,} bytes removed here to bound the log …",
        *map(clean, kept_behind),
    ]
    if known:
        numbers = [line.number for line in index.read(0, index.line_count)]
        assert numbers[-1] == count + 1
        assert numbers[len(kept_before) + 1 :] == list(range(count + 2 - len(kept_behind), count + 2))
    index.close()


def test_a_hole_grows_and_takes_alarms_and_hidden_lines_with_it(index: LogIndex, log: Path) -> None:
    lines = [INFO, *[ERROR, access("1.1.1.1:1")] * 300, INFO, *[ERROR] * 3]
    write(log, *lines)
    index.hide_clients(["1.1.1.1:1"])
    refresh(index)
    rows = index.rows(level="error")
    follow(rows)
    start = len(INFO) + 1 + len(ERROR) + 1
    for length in (5000, 9000, 20_000):
        punch(log, start, length)
        index.set_hole(start, length)
        refresh(index)
        assert [line.text for line in index.read(0, 3)][:2] == [INFO, ERROR]
        assert re.match(f"… {length:,} bytes removed", index.read(2, 1)[0].text)
        assert texts(index)[-4:] == [INFO, *[ERROR] * 3]
        assert index.read(index.line_count - 1, 1)[0].number == len(lines)
        assert [line for line in follow(rows) if line != ERROR] == []
        assert index.next_alarm(index.line_count, backwards=True) == index.line_count - 1


def test_reading_skips_the_hole(index: LogIndex, log: Path) -> None:
    write(log, "begin")
    with log.open("r+b") as file:
        file.seek(6 + (20 << 30))
        file.write(b"\nend\n")
    index.set_hole(6, 20 << 30)
    index.refresh()
    assert texts(index) == ["begin", "… 21,474,836,480 bytes removed here to bound the log …", "end"]
