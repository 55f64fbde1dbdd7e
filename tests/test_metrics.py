"""Reading /metrics."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vllm_probes.judges.metrics import parse_metrics
from vllm_probes.rows import EngineSample

LABELS = ["model_name", "engine"]


def page(engines: int = 1) -> str:
    """What the metrics of 0.32 look like, written by the library that vLLM uses."""
    registry = CollectorRegistry()
    running = Gauge("vllm:num_requests_running", "x", LABELS, registry=registry)
    by_reason = Gauge("vllm:num_requests_waiting_by_reason", "x", [*LABELS, "reason"], registry=registry)
    sleep = Gauge("vllm:engine_sleep_state", "x", [*LABELS, "sleep_state"], registry=registry)
    success = Counter("vllm:request_success", "x", [*LABELS, "finished_reason"], registry=registry)
    iterations = Histogram("vllm:iteration_tokens_total", "x", LABELS, registry=registry)
    latency = Histogram("vllm:inter_token_latency_seconds", "x", LABELS, registry=registry)
    for engine in range(engines):
        names = ('a "quoted" {model}', str(engine))
        running.labels(*names).set(3 + engine)
        by_reason.labels(*names, "capacity").set(7)
        for state in ("awake", "weights_offloaded", "discard_all"):
            sleep.labels(*names, state).set(state == "awake")
        for reason in ("stop", "length"):
            success.labels(*names, reason).inc(2)
        for tokens in (5, 6, 7):
            iterations.labels(*names).observe(tokens)
            latency.labels(*names).observe(0.5)
    return generate_latest(registry).decode()


def test_one_sample_for_each_engine() -> None:
    samples = parse_metrics(page(engines=11))
    assert [sample.engine for sample in samples] == [str(engine) for engine in range(11)]
    assert samples[10] == EngineSample(
        engine="10",
        running=13,
        iterations=3,
        finished_requests=4,
        tpot_count=3,
        tpot_sum_s=1.5,
        awake=True,
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('vllm:gpu_cache_usage_perc{model_name="m"} 0.5', EngineSample(kv_usage=0.5)),
        ('vllm:gpu_prefix_cache_hits_total{engine="0"} 5', EngineSample(prefix_hits=5)),
        ('vllm:time_per_output_token_seconds_count{engine="0"} 5', EngineSample(tpot_count=5)),
        ('vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0', EngineSample(awake=False)),
        ('vllm:num_requests_waiting{engine="0"} 1e3', EngineSample(waiting=1000)),
    ],
)
def test_names_of_other_versions(line: str, expected: EngineSample) -> None:
    assert parse_metrics(f"# HELP {line}\n{line}\n") == [expected]


def test_the_present_name_counts_where_both_are_there() -> None:
    both = 'vllm:gpu_cache_usage_perc{engine="0"} 0.1\nvllm:kv_cache_usage_perc{engine="0"} 0.2'
    assert parse_metrics(both)[0].kv_usage == 0.2


@pytest.mark.parametrize(
    "text",
    ["", "hello", "# HELP vllm:x y", "python_info 1", 'vllm:num_requests_running{engine="0"} NaN', "<html>\n{</html>"],
)
def test_no_vllm_no_engines(text: str) -> None:
    assert parse_metrics(text) == []


@pytest.mark.parametrize(
    "labels_and_value",
    ["", '{engine="0"}', '{engine="0"} x', '{engine="0"} 1_0', "{engine=0} 1", '{engine="0" 1', '{a="b"}} 1', "{, =#}"],
)
def test_damaged_pages_are_a_value_error(labels_and_value: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_metrics(f"{page()}vllm:num_requests_running{labels_and_value}\n")


@given(st.text(st.characters(codec="utf-8", exclude_characters="}\n")))
def test_labels_that_never_end_are_a_value_error(tail: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_metrics("vllm:num_requests_running{" + tail)
