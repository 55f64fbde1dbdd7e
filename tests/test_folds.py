"""What a folded view of a log leaves out, and what it says of that."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.log.folds import FIRST_LINES, message_of
from vllm_probes.log.index import LogIndex

FRAMES = [f'  File "app.py", line {number}, in f' for number in range(1, 9)]
TRACEBACK = ["Traceback (most recent call last):", *FRAMES, "ValueError: no"]


def info(text: str, rank: int = 0, second: int = 0) -> str:
    return f"(Worker_TP{rank} pid={10 + rank}) INFO 11-21 08:00:{second:02} [core.py:7] {text}"


def access(port: int, status: int = 200) -> str:
    return f'INFO:     127.0.0.1:{port} - "POST /v1/completions HTTP/1.1" {status} OK'


def folded(folder: Path, *lines: str, end: str = "\n") -> list[tuple[str, int, int]]:
    """Text, times and lines left out of every row."""
    (folder / "log").write_bytes("".join(f"{line}{end}" for line in lines).encode())
    index = LogIndex(folder / "log")
    index.refresh()
    rows = index.rows(is_folded=True)
    rows.refresh()
    return [(line.text, line.times, line.hidden_count) for line in rows.read(0, rows.line_count)]


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        ([info("up", rank, rank) for rank in range(8)], [(info("up"), 8)]),
        ([access(port) for port in range(5)], [(access(0), 5)]),
        ([access(1), access(2), access(3, 500), access(4)], [(access(1), 2), (access(3, 500), 1), (access(4), 1)]),
        ([info("step 1"), info("step 2"), info("step 1")], [(info(f"step {one}"), 1) for one in (1, 2, 1)]),
        (["", "", info("x")], [("", 1), ("", 1), (info("x"), 1)]),
        (["(Worker_TP0 pid=10) hello", "(Worker_TP1 pid=11) hello"], [("(Worker_TP0 pid=10) hello", 2)]),
    ],
)
def test_the_same_message_again(tmp_path: Path, lines: list[str], rows: list[tuple[str, int]]) -> None:
    assert folded(tmp_path, *lines) == [(text, times, 0) for text, times in rows]


def test_a_record_shows_its_first_lines_and_its_last(tmp_path: Path) -> None:
    first = [(text, 1, 0) for text in TRACEBACK[: FIRST_LINES - 1]]
    last = [(TRACEBACK[FIRST_LINES - 1], 1, len(TRACEBACK) - FIRST_LINES - 1), (TRACEBACK[-1], 1, 0)]
    assert folded(tmp_path, *TRACEBACK, info("next")) == [*first, *last, (info("next"), 1, 0)]
    short = TRACEBACK[: FIRST_LINES + 1]
    assert folded(tmp_path, *short) == [(text, 1, 0) for text in short]


def test_records_of_several_processes_line_by_line_in_turn(tmp_path: Path) -> None:
    lines = [f"(Worker_TP{rank} pid={rank}) {text}" for text in TRACEBACK for rank in (1, 2)]
    rows = folded(tmp_path, *lines)
    assert [text for text, _, _ in rows if "ValueError" in text] == lines[-2:-1], "the second says the same"
    assert sum(hidden + times for _, times, hidden in rows) == len(lines)


def test_a_message_with_line_breaks_is_one_record(tmp_path: Path) -> None:
    """NewLineFormatter repeats the prefix, and ends all lines but the last with a carriage return."""
    lines = [info(f"part {part}") + ("\r" if part < 9 else "") for part in range(10)]
    assert [hidden for _, _, hidden in folded(tmp_path, *lines, info("another"))] == [0, 0, 6, 0, 0]


def test_the_prefix_says_nothing() -> None:
    assert message_of(info("up", 1, 5).encode()) == message_of(info("up", 3, 9).encode())
    assert message_of(info("up").encode()) != message_of(info("down").encode())
    assert message_of(info("up").encode()) != message_of(info("up").replace("INFO", "ERROR").encode())


LINES = st.sampled_from([*TRACEBACK, info("a"), info("a", 1), info("b"), access(1), access(2), "", "plain", "  more"])


@given(st.lists(LINES, max_size=60))
def test_every_line_is_shown_or_counted(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    rows = folded(tmp_path_factory.mktemp("log"), *lines)
    assert sum(times + hidden for _, times, hidden in rows) == len(lines)
