"""What the server says about itself: health, requests, tokens a second, caches, latencies, and each of several engines.

Every row has its place from the moment that the server is known, and a dash where a version or a look does not tell.
"""

from collections.abc import Sequence

from textual.content import Content

from vllm_probes.model import SessionModel
from vllm_probes.rates import EngineRates, mean, total
from vllm_probes.rows import EngineSample, LatencyName, LatencyWindow
from vllm_tui.format import UNKNOWN, bar, duration, graph, latency, number, percent, plural, printable
from vllm_tui.situation import Situation
from vllm_tui.widgets.rows import LABEL_WIDTH, Panel, cell, joined, rule

INDENT = "   "
BAR_WIDTH = 16
PEAK_FROM_WIDTH = 33
SPAN_FROM_WIDTH = 56
SPAN_WIDTH = 12
MIN_GRAPH_WIDTH, MAX_GRAPH_WIDTH = 8, 60
REQUESTS_WIDTH, RATE_WIDTH = 24, 13
QUANTILE_WIDTH = 12
ENGINE_WIDTH, COLUMN_WIDTHS = 10, (9, 9, 9, 13)
"""Name of an engine; running, waiting, KV cache, tokens a second."""
MAX_ENGINE_ROWS = 8
STALE_AFTER_S = 5.0
MINUTE_S = 60.0
LATENCIES: dict[LatencyName, tuple[str, str]] = {
    "ttft": ("TTFT", "to the first token"),
    "tpot": ("TPOT", "per token after it"),
    "queue": ("queue", "before the first step"),
}
"""Label of a row, and what is measured."""
MEANS: dict[LatencyName, str] = {"ttft": "ttft_s", "tpot": "tpot_s"}
"""Fields of EngineRates."""


class EnginePanel(Panel):
    """One labelled row for each figure; no rows before the server is known."""

    def rows(self, width: int) -> list[Content]:
        model = self._situation.model
        if model.endpoint is None or not self._situation.command_runs:
            return []
        engines = each_engine(model)
        note = f" · {plural(len(engines), 'engine')}" if engines else ""
        title = rule(Content.assemble(("Engine", "bold"), (note, "dim")), width)
        labelled = [labelled_row(*row) for row in figures(self._situation, width)]
        return [title, *labelled, *engine_rows(engines, now_rates(model), width)]


class EngineSummary(Panel):
    """The same in one row, for a screen that has no room for a panel."""

    def rows(self, width: int) -> list[Content]:
        model = self._situation.model
        if model.endpoint is None or not self._situation.command_runs:
            return []
        engines = model.endpoint.engines
        parts = [
            requests(engines),
            tokens_per_s(now_rates(model), "tokens_per_s"),
            f"KV {percent(mean(engines, 'kv_usage'))}",
            f"TTFT {middle(model, 'ttft')}",
            f"TPOT {middle(model, 'tpot')}",
        ]
        row = joined(parts) if engines else health(self._situation)
        return [Content.assemble(" ", row).truncate(width, ellipsis=True)]


def labelled_row(label: str, value: Content) -> Content:
    return Content.assemble(INDENT, (label.ljust(LABEL_WIDTH), "dim"), value)


def figures(situation: Situation, width: int) -> list[tuple[str, Content]]:
    """(label, value) of each row, all engines together."""
    model = situation.model
    assert model.endpoint is not None
    engines, history, minute = model.endpoint.engines, model.rates, last_minute(situation)
    room = width - len(INDENT) - LABEL_WIDTH
    return [
        ("health", health(situation)),
        ("address", Content(printable(model.endpoint.url))),
        ("requests", with_graph(requests(engines).ljust(REQUESTS_WIDTH), history, "waiting", room)),
        ("output", throughput(model, "tokens_per_s", room)),
        ("prompt", throughput(model, "prompt_tokens_per_s", room)),
        ("KV cache", kv_cache(mean(engines, "kv_usage"), minute, room)),
        ("preemptions", preemptions(engines, minute)),
        ("prefix hits", Content(percent(ratio(engines, "prefix_hits", "prefix_queries")))),
        *((label, quantiles(model, name, note, room)) for name, (label, note) in LATENCIES.items()),
    ]


def health(situation: Situation) -> Content:
    """`ok  2 ms`; old news is marked as such."""
    endpoint = situation.model.endpoint
    assert endpoint is not None
    style = "$text-success" if endpoint.health == "ok" else "bold $text-error"
    detail = [latency(endpoint.latency_s)] if endpoint.latency_s is not None else []
    if endpoint.status is not None and endpoint.health != "ok":
        detail.append(f"HTTP {endpoint.status}")
    if endpoint.error:
        detail.append(printable(endpoint.error))
    if (age_s := situation.now - endpoint.mono) > STALE_AFTER_S:
        detail.append(f"{duration(age_s)} ago")
    return Content.assemble((endpoint.health, style), "  ", (" · ".join(detail), "dim"))


# --- requests, tokens, caches ---------------------------------------------------------------------------------------


def requests(engines: Sequence[EngineSample]) -> str:
    """`12 running, 3 waiting`."""
    return f"{number(total(engines, 'running'))} running, {number(total(engines, 'waiting'))} waiting"


def tokens_per_s(rates: EngineRates | None, field: str) -> str:
    return f"{number(getattr(rates, field) if rates else None)} tok/s"


def throughput(model: SessionModel, field: str, width: int) -> Content:
    """Tokens a second, now and over the last minute or so."""
    return with_graph(tokens_per_s(now_rates(model), field).ljust(RATE_WIDTH), model.rates, field, width)


def with_graph(text: str, history: Sequence[EngineRates], field: str, width: int) -> Content:
    """What is now, and how it was where there is room; where there is more, it says over how long."""
    span_width = SPAN_WIDTH if width >= SPAN_FROM_WIDTH else 0
    graph_width = min(MAX_GRAPH_WIDTH, width - len(text) - span_width - 2)
    if graph_width < MIN_GRAPH_WIDTH or not history:
        return Content(text.rstrip())
    shown = history[-graph_width:]
    [line] = graph([getattr(rates, field) for rates in shown], len(shown), 1)
    span = f"  last {duration(shown[-1].mono - shown[0].mono)}" if span_width and len(shown) > 1 else ""
    return Content.assemble(text, (line, "$text-primary"), (span, "dim"))


def kv_cache(fraction: float | None, minute: Sequence[EngineRates], width: int) -> Content:
    text = f"{percent(fraction):<6}"
    if fraction is None:
        return Content(text)
    peak = max([fraction, *(rates.kv_usage for rates in minute if rates.kv_usage is not None)])
    note = f"  peak {percent(peak)}" if width >= PEAK_FROM_WIDTH else ""
    return Content.assemble(text, (bar(fraction, BAR_WIDTH), "$text-primary"), (note, "dim"))


def preemptions(engines: Sequence[EngineSample], minute: Sequence[EngineRates]) -> Content:
    """How many since the server began; those of the last minute say that the KV cache is too small for the load."""
    lately = sum(rates.preemptions or 0 for rates in minute)
    note = f"+{number(lately)} in the last minute" if lately else ""
    return Content.assemble(f"{number(total(engines, 'preemptions')):<6}", (note, "bold $text-warning"))


def ratio(engines: Sequence[EngineSample], part: str, whole: str) -> float | None:
    parts, wholes = total(engines, part), total(engines, whole)
    return parts / wholes if wholes and parts is not None else None


# --- latencies ------------------------------------------------------------------------------------------------------


def quantiles(model: SessionModel, name: LatencyName, note: str, width: int) -> Content:
    """`p50 210 ms  p90 340 ms  p99 1.2 s` of the last minute; the mean where the version has no buckets."""
    window = window_of(model, name)
    if window is None:
        mean_s = latest_mean_s(model, name)
        return Content(UNKNOWN if mean_s is None else f"mean {duration(mean_s)}")
    known = {"p50": window.p50_s, "p90": window.p90_s, "p99": window.p99_s}
    if len(known) * QUANTILE_WIDTH - 1 > width:
        del known["p90"]
    cells = [cell(f"{label} {bounded(value, window)}", QUANTILE_WIDTH) for label, value in known.items()]
    has_room = len(known) * QUANTILE_WIDTH + len(note) < width
    return Content.assemble(*cells, (note if has_room else "", "dim")).rstrip()


def middle(model: SessionModel, name: LatencyName) -> str:
    """The median of the last minute, else the mean."""
    window = window_of(model, name)
    return bounded(window.p50_s, window) if window else latency(latest_mean_s(model, name))


def bounded(value_s: float | None, window: LatencyWindow) -> str:
    """`<300 ms` in the lowest bucket: no more is known."""
    is_below = value_s is not None and window.finest_s is not None and value_s <= window.finest_s
    return f"<{latency(window.finest_s)}" if is_below else latency(value_s)


def window_of(model: SessionModel, name: LatencyName) -> LatencyWindow | None:
    latencies = model.endpoint.latencies if model.endpoint else []
    return next((window for window in latencies if window.name == name), None)


# --- each of several engines ----------------------------------------------------------------------------------------


def each_engine(model: SessionModel) -> Sequence[EngineSample]:
    """Those of the last look, or the names of those before it when it told nothing; none where there is only one."""
    engines = model.endpoint.engines if model.endpoint else []
    if not engines and model.rates:
        engines = [EngineSample(engine=engine) for engine in model.rates[-1].engines]
    return engines if len(engines) > 1 else []


def engine_rows(engines: Sequence[EngineSample], rates: EngineRates | None, width: int) -> list[Content]:
    """One row for each; of many the last row tells the rest together."""
    shown = len(engines) if len(engines) <= MAX_ENGINE_ROWS else MAX_ENGINE_ROWS - 1
    rows = [engine_row(f"engine {printable(one.engine)}", [one], rates, width) for one in engines[:shown]]
    rest = engines[shown:]
    return [*rows, engine_row(f"{len(rest)} more", rest, rates, width)] if rest else rows


def engine_row(name: str, engines: Sequence[EngineSample], rates: EngineRates | None, width: int) -> Content:
    """`engine 0  12 run  3 wait  KV 71 %  412 tok/s`, as many columns as there is room for."""
    tokens = [value for one in engines if (value := rates.engines.get(one.engine) if rates else None) is not None]
    texts = (
        f"{number(total(engines, 'running'))} run",
        f"{number(total(engines, 'waiting'))} wait",
        f"KV {percent(mean(engines, 'kv_usage'))}",
        f"{number(sum(tokens) if tokens else None)} tok/s",
    )
    row = Content.assemble(INDENT, cell(name, ENGINE_WIDTH, "dim"))
    for text, column_width in zip(texts, COLUMN_WIDTHS, strict=True):
        if row.cell_length + column_width <= width:
            row += cell(text, column_width, right=True)
    return row


# --- which rates ----------------------------------------------------------------------------------------------------


def now_rates(model: SessionModel) -> EngineRates | None:
    """What the last look told; None where it told nothing."""
    latest = model.rates[-1] if model.rates else None
    return latest if latest and model.endpoint and latest.mono == model.endpoint.mono else None


def last_minute(situation: Situation) -> list[EngineRates]:
    return [rates for rates in situation.model.rates if rates.mono > situation.now - MINUTE_S]


def latest_mean_s(model: SessionModel, name: LatencyName) -> float | None:
    """Over the latest interval in which a request got that far; None where the last look told nothing."""
    if name not in MEANS or not now_rates(model):
        return None
    return next(
        (mean_s for rates in reversed(model.rates) if (mean_s := getattr(rates, MEANS[name])) is not None), None
    )
