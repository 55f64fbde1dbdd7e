"""The panel of the server's own figures: every row at every width, of every version, of one engine and of many."""

from typing import Any

import pytest
from textual.app import App, ComposeResult

from tests.ui_source import START_MONO, Script
from vllm_probes.events import EndpointSampled
from vllm_probes.model import SessionModel
from vllm_probes.rows import EngineSample, LatencyWindow
from vllm_tui.situation import Situation
from vllm_tui.widgets.engine import EnginePanel, EngineSummary

WIDTHS = (40, 60, 100)
LABELS = ["health", "address", "requests", "output", "prompt", "KV", "preemptions", "prefix", "TTFT", "TPOT", "queue"]
WINDOWS = [
    LatencyWindow(name="ttft", count=120, p50_s=0.21, p90_s=0.34, p99_s=1.2, finest_s=0.001),
    LatencyWindow(name="tpot", count=9000, p50_s=0.005, p90_s=0.023, p99_s=0.1, finest_s=0.01),
    LatencyWindow(name="queue", count=110, p50_s=0.15, p90_s=0.27, p99_s=4.1, finest_s=0.3),
]


def engine(label: str = "0", second: int = 0, **more: Any) -> EngineSample:
    values = {
        "running": 12, "waiting": second % 4, "kv_usage": 0.71, "generation_tokens": second * 412,
        "prompt_tokens": second * 1204, "preemptions": 7, "prefix_queries": 100, "prefix_hits": 38,
    }  # fmt: skip
    return EngineSample(engine=label, **(values | more))


def look(at: float, *engines: EngineSample, latencies: list[LatencyWindow] = WINDOWS, **more: Any) -> EndpointSampled:
    values = {"url": "http://127.0.0.1:8000", "health": "ok", "status": 200, "latency_s": 0.002} | more
    return EndpointSampled(**Script().stamp(at), engines=list(engines), latencies=latencies, **values)


def situation(*looks: EndpointSampled, now: float | None = None) -> Situation:
    model = SessionModel()
    for event in (Script().attempt_started(), *looks):
        model.apply(event)
    return Situation(model=model, now=model.mono if now is None else START_MONO + now)


def shown(moment: Situation, width: int = 60, panel: type[EnginePanel | EngineSummary] = EnginePanel) -> list[str]:
    """The rows; only what others wrote (an error, an address) may have to be cut."""
    made = panel()
    made.show(moment)
    rows = made.rows(width)
    assert all(row.cell_length <= width for row in rows[3:])
    return [row.plain.rstrip() for row in rows]


def row(rows: list[str], label: str) -> str:
    [found] = [text for text in rows if text.strip().startswith(label)]
    return found[17:]


SECONDS = [look(second, engine(second=second)) for second in range(30)]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_has_its_row(width: int) -> None:
    rows = shown(situation(*SECONDS), width)
    assert [text.split()[0] for text in rows[1:]] == LABELS
    assert row(rows, "health") == "ok  2 ms"
    assert row(rows, "requests").startswith("12 running, 1 waiting")
    assert row(rows, "output").startswith("412 tok/s")
    assert row(rows, "prompt").startswith("1,204 tok/s")
    assert row(rows, "KV cache").startswith("71 %  ━━━━━━━━━━━┄┄┄┄┄")
    assert (row(rows, "preemptions"), row(rows, "prefix hits")) == ("7", "38 %")


@pytest.mark.parametrize(
    ("width", "ttft", "tpot", "queue"),
    [
        (40, "p50 210 ms  p99 1.2 s", "p50 <10 ms  p99 100 ms", "p50 <300 ms p99 4.1 s"),
        (
            60,
            "p50 210 ms  p90 340 ms  p99 1.2 s",
            "p50 <10 ms  p90 23 ms   p99 100 ms",
            "p50 <300 ms p90 <300 ms p99 4.1 s",
        ),
        (
            100,
            "p50 210 ms  p90 340 ms  p99 1.2 s   to the first token",
            "p50 <10 ms  p90 23 ms   p99 100 ms  per token after it",
            "p50 <300 ms p90 <300 ms p99 4.1 s   before the first step",
        ),
    ],
)
def test_latencies_are_quantiles_of_the_last_minute(width: int, ttft: str, tpot: str, queue: str) -> None:
    rows = shown(situation(*SECONDS), width)
    assert [row(rows, label) for label in ("TTFT", "TPOT", "queue")] == [ttft, tpot, queue]


@pytest.mark.parametrize(
    ("width", "requests_end", "output_end"),
    [(40, "waiting", "412 tok/s    ████████"), (60, "▃▅█▁▃▅█▁▃", "████████"), (100, "last 28 s", "last 28 s")],
)
def test_histories_are_drawn_where_there_is_room(width: int, requests_end: str, output_end: str) -> None:
    rows = shown(situation(*SECONDS), width)
    assert row(rows, "requests").endswith(requests_end)
    assert row(rows, "output").endswith(output_end)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "moment",
    [
        situation(look(1, latencies=[], error="/metrics answered 404.")),
        situation(look(1, EngineSample(), latencies=[]), look(2, EngineSample(), latencies=[])),
        situation(*SECONDS, look(30, latencies=[], health="timeout", status=None, latency_s=None)),
    ],
    ids=["no metrics", "engine without figures", "no answer any more"],
)
def test_what_is_not_known_is_a_dash_in_its_place(moment: Situation, width: int) -> None:
    rows = shown(moment, width)
    assert [text.split()[0] for text in rows[1:]] == LABELS
    assert row(rows, "requests").startswith("- running, - waiting")
    assert row(rows, "output").startswith("- tok/s")
    assert [row(rows, label) for label in ("KV cache", "preemptions", "prefix hits")] == ["-"] * 3
    assert [row(rows, label) for label in ("TTFT", "TPOT", "queue")] == ["-"] * 3


def test_a_minute_without_requests_has_dashes_for_quantiles() -> None:
    idle = [LatencyWindow(name="ttft", count=0, finest_s=0.001)]
    rows = shown(situation(look(1, engine(), latencies=idle)))
    assert row(rows, "TTFT") == "p50 -       p90 -       p99 -"


def test_a_version_without_buckets_shows_means() -> None:
    counts = [
        look(second, engine(ttft_count=second, ttft_sum_s=second * 0.21, tpot_count=0, tpot_sum_s=0), latencies=[])
        for second in range(3)
    ]
    rows = shown(situation(*counts))
    assert (row(rows, "TTFT"), row(rows, "TPOT")) == ("mean 210 ms", "-")
    [summary] = shown(situation(*counts), 100, EngineSummary)
    assert summary.endswith("TTFT 210 ms · TPOT -")


def test_preemptions_are_news_for_a_minute() -> None:
    looks = [look(0, engine(preemptions=4)), look(1, engine(preemptions=7)), look(2, engine(preemptions=9))]
    assert row(shown(situation(*looks, now=10)), "preemptions") == "9     +5 in the last minute"
    assert row(shown(situation(*looks, now=61.5)), "preemptions") == "9     +2 in the last minute"
    assert row(shown(situation(*looks, now=70)), "preemptions") == "9"


def test_the_peak_of_the_kv_cache_is_that_of_the_last_minute() -> None:
    looks = [look(second, engine(kv_usage=usage)) for second, usage in ((0, 0.2), (1, 0.98), (2, 0.5))]
    assert row(shown(situation(*looks)), "KV cache").endswith("peak 98 %")
    assert row(shown(situation(*looks, now=70)), "KV cache").endswith("peak 50 %")


def engines(count: int, second: int) -> list[EngineSample]:
    return [engine(str(label), second, generation_tokens=second * 100 * (label + 1)) for label in range(count)]


@pytest.mark.parametrize(
    ("width", "first", "last"),
    [
        (40, "   engine 0     12 run   1 wait  KV 71 %", "   engine 7     12 run   1 wait  KV 71 %"),
        (
            60,
            "   engine 0     12 run   1 wait  KV 71 %    100 tok/s",
            "   engine 7     12 run   1 wait  KV 71 %    800 tok/s",
        ),
    ],
)
def test_each_of_several_engines_has_a_row(width: int, first: str, last: str) -> None:
    rows = shown(situation(*(look(second, *engines(8, second)) for second in range(2))), width)
    assert rows[0].startswith("── Engine · 8 engines ─")
    assert len(rows) == 1 + len(LABELS) + 8
    assert (rows[-8], rows[-1]) == (first, last)
    assert row(rows, "output").startswith("3,600 tok/s")


def test_many_engines_are_folded() -> None:
    rows = shown(situation(*(look(second, *engines(11, second)) for second in range(2))))
    assert len(rows) == 1 + len(LABELS) + 8
    assert rows[-2:] == [
        "   engine 6     12 run   1 wait  KV 71 %    700 tok/s",
        "   4 more       48 run   4 wait  KV 71 %  3,800 tok/s",
    ]


def test_engines_keep_their_rows_while_the_server_does_not_answer() -> None:
    answered = [look(second, *engines(3, second)) for second in range(3)]
    silent = look(3, latencies=[], health="timeout", status=None, latency_s=None)
    rows = shown(situation(*answered, silent))
    assert len(rows) == len(shown(situation(*answered)))
    assert rows[-1] == "   engine 2      - run   - wait     KV -      - tok/s"


def test_what_the_server_says_meets_no_terminal() -> None:
    hostile = [engine(f"\x1b[31m{label}[/b]", 1) for label in "ab"]
    rows = shown(situation(look(1, *hostile, url="http://h\x07", error="\x1b]0;x")))
    assert not any(char < " " or char == "\x7f" for text in rows for char in text)
    assert rows[-2].startswith("   engine ·[…   12 run")


@pytest.mark.parametrize("width", [0, 1, 17, 39, 200])
def test_no_width_is_too_small_or_too_large(width: int) -> None:
    made = EnginePanel()
    made.show(situation(*(look(second, *engines(3, second)) for second in range(3))))
    assert len(made.rows(width)) == 1 + len(LABELS) + 3


def test_the_summary_says_the_median() -> None:
    [summary] = shown(situation(*SECONDS), 80, EngineSummary)
    assert summary == " 12 running, 1 waiting · 412 tok/s · KV 71 % · TTFT 210 ms · TPOT <10 ms"


def test_the_summary_of_a_server_that_does_not_answer_is_its_health() -> None:
    silent = look(31, latencies=[], health="timeout", status=None, latency_s=None, error="No answer within 2 s.")
    assert shown(situation(*SECONDS, silent), 80, EngineSummary) == [" timeout  No answer within 2 s."]


@pytest.mark.parametrize("panel", [EnginePanel, EngineSummary])
def test_nothing_is_shown_before_the_server_is_known_and_after_its_end(panel: type[EnginePanel]) -> None:
    assert shown(situation(), panel=panel) == []
    ended = situation(*SECONDS)
    ended.model.apply(Script().command_ended(40))
    assert shown(ended, panel=panel) == []


class OnePanel(App[None]):
    def compose(self) -> ComposeResult:
        yield EnginePanel()


@pytest.mark.parametrize("width", WIDTHS)
async def test_no_row_moves_when_a_figure_becomes_unknown(width: int) -> None:
    app = OnePanel()
    async with app.run_test(size=(width, 30)) as pilot:
        panel = app.query_one(EnginePanel)
        for moment in (situation(*SECONDS), situation(*SECONDS, look(30, latencies=[]))):
            panel.show(moment)
            await pilot.pause()
            drawn = [panel.render_line(y).text for y in range(panel.size.height)]
            assert [text.split()[0] for text in drawn[1:]] == LABELS
            assert "…" not in "".join(drawn)
