"""What the server says about itself: health, requests, tokens a second, caches, latencies."""

from collections.abc import Sequence

from textual.content import Content

from vllm_probes.model import SessionModel
from vllm_probes.rates import EngineRates, total
from vllm_probes.rows import EngineSample
from vllm_tui.format import bar, duration, graph, latency, number, percent, plural, printable
from vllm_tui.situation import Situation
from vllm_tui.widgets.rows import LABEL_WIDTH, Panel, joined, rule

BAR_WIDTH = 16
WIDE = 54
SPAN_WIDTH = 12
STALE_AFTER_S = 5.0


class EnginePanel(Panel):
    """One labelled row for each figure; no rows before the server is known."""

    def rows(self, width: int) -> list[Content]:
        model = self._situation.model
        if model.endpoint is None or not self._situation.command_runs:
            return []
        count = len(model.endpoint.engines)
        note = f" · {plural(count, 'engine')}" if count > 1 else ""
        title = Content.assemble(("Engine", "bold"), (note, "dim"))
        return [rule(title, width), *(labelled(*row) for row in figures(self._situation, width))]


class EngineSummary(Panel):
    """The same in one row, for a screen that has no room for a panel."""

    def rows(self, width: int) -> list[Content]:
        model = self._situation.model
        if model.endpoint is None or not model.endpoint.engines or not self._situation.command_runs:
            return []
        rates = latest(model)
        parts = [
            requests(model.endpoint.engines),
            tokens_per_s(rates),
            f"KV {percent(mean(model.endpoint.engines, 'kv_usage'))}",
            f"TTFT {latency(last_known(model, 'ttft_s'))}",
            f"TPOT {latency(last_known(model, 'tpot_s'))}",
        ]
        return [Content.assemble(" ", joined(parts)).truncate(width, ellipsis=True)]


def labelled(label: str, value: Content) -> Content:
    return Content.assemble("   ", (label.ljust(LABEL_WIDTH), "dim"), value)


def figures(situation: Situation, width: int) -> list[tuple[str, Content]]:
    """(label, value) of each row."""
    model = situation.model
    assert model.endpoint is not None
    engines = model.endpoint.engines
    rows = [("health", health(situation)), ("address", Content(printable(model.endpoint.url)))]
    if not engines:
        return rows
    hits = ratio(engines, "prefix_hits", "prefix_queries")
    return [
        *rows,
        ("requests", Content(requests(engines))),
        ("output", throughput(model.rates, max(0, width - LABEL_WIDTH - 5))),
        ("KV cache", with_bar(mean(engines, "kv_usage"))),
        ("prefix hits", Content(percent(hits))),
        ("TTFT", Content(f"{latency(last_known(model, 'ttft_s')):<9} to the first token")),
        ("TPOT", Content(f"{latency(last_known(model, 'tpot_s')):<9} per token after it")),
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


def requests(engines: Sequence[EngineSample]) -> str:
    """`12 running, 3 waiting`."""
    return f"{number(total(engines, 'running'))} running, {number(total(engines, 'waiting'))} waiting"


def tokens_per_s(rates: EngineRates | None) -> str:
    return f"{number(rates.tokens_per_s if rates else None)} tok/s"


def throughput(rates: Sequence[EngineRates], width: int) -> Content:
    """Tokens a second, now and over the last minute or so; where there is room, it says over how long."""
    text = f"{tokens_per_s(rates[-1] if rates else None):<12}"
    span_width = SPAN_WIDTH if width >= WIDE else 0
    graph_width = min(60, width - len(text) - span_width)
    if graph_width < 8 or not rates:
        return Content(text)
    shown = rates[-graph_width:]
    [line] = graph([rate.tokens_per_s for rate in shown], len(shown), 1)
    span = f"  last {duration(shown[-1].mono - shown[0].mono)}" if span_width and len(shown) > 1 else ""
    return Content.assemble(text, (line, "$text-primary"), (span, "dim"))


def with_bar(fraction: float | None) -> Content:
    text = f"{percent(fraction):<6}"
    return Content(text) if fraction is None else Content.assemble(text, (bar(fraction, BAR_WIDTH), "$text-primary"))


def latest(model: SessionModel) -> EngineRates | None:
    return model.rates[-1] if model.rates else None


def last_known(model: SessionModel, field: str) -> float | None:
    """A mean of the latest interval in which a request got that far."""
    known = (value for rate in reversed(model.rates) if (value := getattr(rate, field)) is not None)
    return next(known, None)


def mean(engines: Sequence[EngineSample], field: str) -> float | None:
    telling = [engine for engine in engines if getattr(engine, field) is not None]
    known = total(telling, field)
    return None if known is None else known / len(telling)


def ratio(engines: Sequence[EngineSample], part: str, whole: str) -> float | None:
    parts, wholes = total(engines, part), total(engines, whole)
    return parts / wholes if wholes and parts is not None else None
