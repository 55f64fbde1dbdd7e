"""Counters, gauges and histograms in the Prometheus text format."""

from bisect import bisect_left
from collections.abc import Iterator


class Metric:
    """One series with a value; `kind` is `counter` or `gauge`. A counter's exposed name ends in `_total`."""

    def __init__(self, kind: str, name: str, **labels: str) -> None:
        self.kind = kind
        self.name = name
        self.value = 0.0
        self._labels = labels

    def lines(self, labels: dict[str, str]) -> Iterator[str]:
        name = f"{self.name}_total" if self.kind == "counter" else self.name
        yield f"{name}{_braces(labels | self._labels)} {self.value}"


class Histogram:
    """Observations in buckets with these upper bounds, and one without."""

    kind = "histogram"

    def __init__(self, name: str, *bounds: float) -> None:
        self.name = name
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, labels: dict[str, str]) -> Iterator[str]:
        below = 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            below += count
            yield f"{self.name}_bucket{_braces(labels | {'le': bound})} {float(below)}"
        yield f"{self.name}_count{_braces(labels)} {float(below)}"
        yield f"{self.name}_sum{_braces(labels)} {self._sum}"


def exposition(metrics: list[Metric | Histogram], labels: dict[str, str]) -> str:
    """The page; series of one family stand together, under one TYPE line."""
    lines: list[str] = []
    for metric in metrics:
        name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
        header = f"# TYPE {name} {metric.kind}"
        if header not in lines:
            lines.append(header)
        lines += metric.lines(labels)
    return "\n".join(lines) + "\n"


def _braces(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"
