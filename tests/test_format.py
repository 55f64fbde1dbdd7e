"""Numbers, times, graphs and untrusted text on the screen."""

import unicodedata
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.events import State
from vllm_tui import format as formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.21, "210 ms"),
        (1.5, "1.5 s"),
        (9.96, "9.9 s"),
        (14.9, "14 s"),
        (60, "1:00"),
        (286, "4:46"),
        (7390, "2:03:10"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (761, "0:12:41"), (-3, "0:00:00"), (360000, "100:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert formats.clock(seconds) == text


@pytest.mark.parametrize(
    ("byte_count", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1K"), (12 << 20, "12M"), (9 << 30, "9.0G"), (640 << 30, "640G")],
)
def test_size(byte_count: int, text: str) -> None:
    assert formats.size(byte_count) == text


def test_unknown_is_a_dash() -> None:
    assert [formats.number(None), formats.percent(None), formats.latency(None)] == ["-", "-", "-"]


@pytest.mark.parametrize(("code", "signal", "text"), [
    (1, None, "ended with code 1"), (None, 9, "was killed (SIGKILL)"),
    (None, 63, "was killed (signal 63)"), (None, None, "ended"),
])  # fmt: skip
def test_ending(code: int | None, signal: int | None, text: str) -> None:
    assert formats.ending(code, signal) == text


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["/opt/vllm/bin/vllm", "serve", "meta-llama/Llama-3.1-8B", "-tp", "8"], "vllm serve Llama-3.1-8B -tp 8"),
        (["python3", "-m", "vllm.entrypoints.openai.api_server", "--model=/models/tiny/"], "api_server --model=tiny"),
        (["curl", "http://127.0.0.1:8000/health"], "curl http://127.0.0.1:8000/health"),
        (["python", "run.py", "--json", '{"a/b": 1}'], """python run.py --json '{"a/b": 1}'"""),
        (["/bin/bash", "-c", "cd /srv/x; exit 3"], "bash -c 'cd /srv/x; exit 3'"),
        (["./a\x1b[31m.sh"], "'a·[31m.sh'"),
        ([], ""),
    ],
)
def test_short_command(argv: list[str], text: str) -> None:
    assert formats.short_command(argv) == text


@given(st.text())
def test_printable_leaves_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = formats.printable(text)
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)
    assert len(shown) == len(text.replace("\t", "    "))


@given(st.lists(st.none() | st.floats(0, 1e9)), st.integers(1, 80), st.integers(1, 6))
def test_graph_fills_its_box(values: list[float | None], width: int, height: int) -> None:
    rows = formats.graph(values, width, height)
    assert [len(row) for row in rows] == [width] * height
    assert set("".join(rows)) <= set(formats.BLOCKS)


@pytest.mark.parametrize(
    ("values", "row"), [([0, 1, 50, 100], "▁▁▄█"), ([None, 3, None, 0], " █ ▁"), ([0, 0], "▁▁"), ([None], " ")]
)
def test_graph_shows_small_values_and_leaves_gaps_where_nothing_is_known(values: list[float | None], row: str) -> None:
    assert formats.graph(values, len(values), 1) == [row]


@pytest.mark.parametrize(
    ("argv", "name"),
    [(["/bin/bash", "-c", "exit 3"], "bash"), (["python", "/srv/run.py"], "run.py"), ([], "The command")],
)
def test_program_name(argv: list[str], name: str) -> None:
    assert formats.program_name(argv) == name


@given(st.floats(-1, 2), st.integers(0, 60))
def test_bar_is_as_wide_as_asked(fraction: float, width: int) -> None:
    assert len(formats.bar(fraction, width)) == width


def test_every_state_has_a_look_of_its_own_word() -> None:
    assert set(formats.STATE_LOOKS) == set(get_args(State))
