"""What a page of /metrics says about each engine, in the names of every vLLM since 0.4."""

import math
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from vllm_probes.rows import EngineSample

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

_SLEEP_STATE = "engine_sleep_state"
_WANTED = frozenset(f"vllm:{name}" for name in (_SLEEP_STATE, *(name for names in _SERIES.values() for name in names)))


class _Series(NamedTuple):
    engine: str
    name: str


def parse_metrics(text: str) -> list[EngineSample]:
    """One sample for each engine of the page, in the order of their numbers; none where no vLLM speaks.

    Series that differ only in other labels (model name, finish reason) are added up. The cost of the parser does not
    depend on the size of the page: it only gets the lines that are wanted.

    Raises:
        ValueError: a wanted line is not in the Prometheus text format.
    """
    totals: dict[_Series, float] = {}
    for sample in _samples(text):
        name = sample.name.removeprefix("vllm:")
        is_other_sleep_state = name == _SLEEP_STATE and sample.labels.get("sleep_state") != "awake"
        if math.isfinite(sample.value) and not is_other_sleep_state:
            series = _Series(sample.labels.get("engine", "0"), name)
            totals[series] = totals.get(series, 0.0) + sample.value
    engines = sorted({series.engine for series in totals}, key=lambda engine: (len(engine), engine))
    return [_engine(engine, totals) for engine in engines]


def _samples(text: str) -> list[Sample]:
    page = "\n".join(line for line in text.split("\n") if line.partition("{")[0] in _WANTED) + "\n"
    try:
        return [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except IndexError as error:  # what prometheus_client 0.26 raises for a line that breaks off
        raise ValueError("a line is cut off") from error


def _engine(engine: str, totals: dict[_Series, float]) -> EngineSample:
    values = {
        field: next((value for name in names if (value := totals.get(_Series(engine, name))) is not None), None)
        for field, names in _SERIES.items()
    }
    awake = totals.get(_Series(engine, _SLEEP_STATE))
    return EngineSample(engine=engine, awake=None if awake is None else awake > 0, **values)
