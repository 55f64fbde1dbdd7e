"""What a page of /metrics says about each engine, in the names of every vLLM since 0.4."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_probes.judges.latency import Histograms
from vllm_probes.rows import EngineSample, LatencyName

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

_Value = TypeVar("_Value")

_SERIES: dict[str, tuple[str, ...]] = {
    "running": ("num_requests_running",),
    "waiting": ("num_requests_waiting",),
    "kv_usage": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "prompt_tokens": ("prompt_tokens_total",),
    "generation_tokens": ("generation_tokens_total",),
    "iterations": ("iteration_tokens_total_count",),
    "preemptions": ("num_preemptions_total",),
    "prefix_queries": ("prefix_cache_queries_total", "gpu_prefix_cache_queries_total"),
    "prefix_hits": ("prefix_cache_hits_total", "gpu_prefix_cache_hits_total"),
    "finished_requests": ("request_success_total",),
    "ttft_count": ("time_to_first_token_seconds_count",),
    "ttft_sum_s": ("time_to_first_token_seconds_sum",),
    "tpot_count": ("inter_token_latency_seconds_count", "time_per_output_token_seconds_count"),
    "tpot_sum_s": ("inter_token_latency_seconds_sum", "time_per_output_token_seconds_sum"),
}
"""Field of EngineSample -> names without `vllm:`, that of 0.32 first (v1/metrics/loggers.py). All have labels."""
_HISTOGRAMS: dict[LatencyName, tuple[str, ...]] = {
    "ttft": ("time_to_first_token_seconds_bucket",),
    "tpot": ("inter_token_latency_seconds_bucket", "time_per_output_token_seconds_bucket"),
    "queue": ("request_queue_time_seconds_bucket",),
    "prefill": ("request_prefill_time_seconds_bucket",),
    "e2e": ("e2e_request_latency_seconds_bucket",),
}
"""The same for the histograms of latencies."""
_SLEEP_STATE = "engine_sleep_state"
_PREFIX = "vllm:"


def _lines_named(names: Mapping[Any, tuple[str, ...]], *more: str) -> frozenset[str]:
    return frozenset(f"{_PREFIX}{name}" for name in (*more, *(name for group in names.values() for name in group)))


_WANTED = _lines_named(_SERIES, _SLEEP_STATE)
_WANTED_BUCKETS = _lines_named(_HISTOGRAMS)
_SERIES_KEPT = 20_000
"""More than 128 engines have, which take 16 MB; eight take 1 MB."""


def parse_metrics(text: str) -> list[EngineSample]:
    """One sample for each engine of the page, in the order of their numbers; none where no vLLM speaks.

    Series that differ only in other labels (model name, finish reason) are added up.

    Raises:
        ValueError: a wanted line is not in the Prometheus text format.
    """
    totals: dict[str, dict[str, float]] = {}
    for series, value in _read(text, _WANTED):
        name = series.name.removeprefix(_PREFIX)
        if name != _SLEEP_STATE or series.labels.get("sleep_state") == "awake":
            values = totals.setdefault(series.labels.get("engine", "0"), {})
            values[name] = values.get(name, 0.0) + value
    return [_engine(engine, totals[engine]) for engine in sorted(totals, key=lambda engine: (len(engine), engine))]


def parse_histograms(text: str) -> Histograms:
    """The latencies of the page; series of all engines and other labels are added up, bucket by bucket.

    Raises:
        ValueError: a wanted line is not in the Prometheus text format.
    """
    totals: dict[str, dict[float, float]] = {}
    for series, value in _read(text, _WANTED_BUCKETS):
        bound = float(series.labels.get("le", "nan"))
        if bound > -math.inf:  # neither is NaN
            buckets = totals.setdefault(series.name.removeprefix(_PREFIX), {})
            buckets[bound] = buckets.get(bound, 0.0) + value
    found = ((latency, _present(totals, names)) for latency, names in _HISTOGRAMS.items())
    return {latency: buckets for latency, buckets in found if buckets is not None}


def _engine(engine: str, values: Mapping[str, float]) -> EngineSample:
    awake = values.get(_SLEEP_STATE)
    fields = {field: _present(values, names) for field, names in _SERIES.items()}
    return EngineSample(engine=engine, awake=None if awake is None else awake > 0, **fields)


def _present(values: Mapping[str, _Value], names: Iterable[str]) -> _Value | None:
    return next((values[name] for name in names if name in values), None)


def _read(text: str, names: Collection[str]) -> Iterator[tuple["Sample", float]]:
    """The series of each line with one of the names, and its value, where that is a finite one."""
    for line in text.split("\n"):
        if line.partition("{")[0] in names:
            series, value = _parse(line)
            if math.isfinite(value):
                yield series, value


def _parse(line: str) -> "tuple[Sample, float]":
    try:
        head, number = line.rsplit(maxsplit=1)
        if "_" in number:
            raise ValueError("Python takes 1_0 for a number; nobody else does")
        return _series(head), float(number)
    except (ValueError, IndexError) as error:  # prometheus_client 0.26 raises either where a line breaks off
        raise ValueError(f"{line[:100]!r} is not in the Prometheus text format.") from error


@lru_cache(_SERIES_KEPT)
def _series(head: str) -> "Sample":
    """Name and labels of a line without its value. They are the same in every page, and reading them is what costs."""
    from prometheus_client.parser import text_string_to_metric_families  # slow to import, and many runs serve nothing

    [family] = text_string_to_metric_families(f"{head} 0\n")
    [series] = family.samples
    if series.value or series.timestamp is not None:
        raise ValueError("there is more than one number behind the labels")
    return series
