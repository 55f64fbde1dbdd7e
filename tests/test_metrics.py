"""Reading /metrics."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vllm_probes.demo.vllm.v1.core.sched.scheduler import StepOutput
from vllm_probes.demo.vllm.v1.metrics.loggers import EngineStats
from vllm_probes.judges.metrics import parse_histograms, parse_metrics
from vllm_probes.rows import EngineSample, LatencyName

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


OLD_NAMES = """
vllm:num_requests_running{model_name="m"} 4.0
vllm:num_requests_swapped{model_name="m"} 9.0
vllm:num_requests_waiting{model_name="m"} 2.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:cpu_cache_usage_perc{model_name="m"} 0.75
vllm:num_preemptions_total{model_name="m"} 3.0
vllm:prompt_tokens_total{model_name="m"} 100.0
vllm:generation_tokens_total{model_name="m"} 50.0
vllm:request_success_total{finished_reason="stop",model_name="m"} 5.0
vllm:request_success_total{finished_reason="length",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 6.0
vllm:time_to_first_token_seconds_count{model_name="m"} 6.0
vllm:time_to_first_token_seconds_sum{model_name="m"} 1.5
vllm:time_per_output_token_seconds_bucket{le="0.01",model_name="m"} 40.0
vllm:time_per_output_token_seconds_bucket{le="+Inf",model_name="m"} 44.0
vllm:time_per_output_token_seconds_count{model_name="m"} 44.0
vllm:time_per_output_token_seconds_sum{model_name="m"} 1.1
vllm:e2e_request_latency_seconds_bucket{le="1.0",model_name="m"} 6.0
vllm:e2e_request_latency_seconds_bucket{le="+Inf",model_name="m"} 6.0
"""
"""The names of V0 in 0.5 (engine/metrics.py): no label of an engine, no prefix cache, no time in the queue."""


def test_a_page_of_an_old_version() -> None:
    assert parse_metrics(OLD_NAMES) == [
        EngineSample(
            running=4, waiting=2, kv_usage=0.25, preemptions=3, prompt_tokens=100, generation_tokens=50,
            finished_requests=6, ttft_count=6, ttft_sum_s=1.5, tpot_count=44, tpot_sum_s=1.1,
        )
    ]  # fmt: skip
    assert parse_histograms(OLD_NAMES) == {
        "ttft": {0.001: 0, math.inf: 6},
        "tpot": {0.01: 40, math.inf: 44},
        "e2e": {1.0: 6, math.inf: 6},
    }


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
    names = ("time_per_output_token_seconds", "inter_token_latency_seconds")
    both = "\n".join(f'vllm:{name}_bucket{{le="+Inf"}} {len(name)}' for name in names)
    assert parse_histograms(both) == {"tpot": {math.inf: len(names[1])}}


def test_a_series_is_read_anew_from_every_page() -> None:
    for value in (1.0, 2.0):
        assert parse_metrics(f'vllm:num_requests_running{{engine="0"}} {value}\n')[0].running == value
        assert parse_histograms(f'vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {value}') == {
            "ttft": {math.inf: value}
        }


NAMES_OF_0_32: dict[LatencyName, str] = {
    "ttft": "time_to_first_token_seconds",
    "tpot": "inter_token_latency_seconds",
    "queue": "request_queue_time_seconds",
    "prefill": "request_prefill_time_seconds",
    "e2e": "e2e_request_latency_seconds",
}


@given(st.lists(st.lists(st.floats(0, 100), max_size=20), min_size=1, max_size=4))
def test_the_histogram_of_all_engines_is_that_of_all_their_measurements(measured: list[list[float]]) -> None:
    registry, together = CollectorRegistry(), CollectorRegistry()
    for name in NAMES_OF_0_32.values():
        by_engine = Histogram(f"vllm:{name}", "x", LABELS, registry=registry)
        single = Histogram(f"vllm:{name}", "x", LABELS, registry=together).labels("m", "0")
        for engine, values in enumerate(measured):
            child = by_engine.labels("m", str(engine))
            for value in values:
                child.observe(value)
                single.observe(value)
    merged = parse_histograms(generate_latest(registry).decode())
    assert merged == parse_histograms(generate_latest(together).decode())
    assert list(merged) == list(NAMES_OF_0_32)
    assert merged["queue"][math.inf] == sum(map(len, measured))
    assert list(merged["queue"]) == sorted(merged["queue"])


@pytest.mark.parametrize(
    "text",
    ["", "hello", "# HELP vllm:x y", "python_info 1", 'vllm:num_requests_running{engine="0"} NaN', "<html>\n{</html>"],
)
def test_no_vllm_no_engines(text: str) -> None:
    assert parse_metrics(text) == []
    assert parse_histograms(text) == {}


@pytest.mark.parametrize("tail", ['{engine="0"} 5', '{le="NaN"} 5', '{le="-Inf"} 5', '{le="1.0"} NaN'])
def test_a_bucket_without_an_end_or_a_count_is_none(tail: str) -> None:
    assert parse_histograms(f"vllm:time_to_first_token_seconds_bucket{tail}\n") == {}


@pytest.mark.parametrize(
    "labels_and_value",
    [
        "",
        '{engine="0"}',
        '{engine="0"} x',
        '{engine="0"} 1_0',
        "{engine=0} 1",
        '{engine="0" 1',
        '{a="b"}} 1',
        "{, =#}",
        '{engine="0"} 1 2',
    ],
)
def test_damaged_pages_are_a_value_error(labels_and_value: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_metrics(f"{page()}vllm:num_requests_running{labels_and_value}\n")
    with pytest.raises(ValueError, match=r"\w"):
        parse_histograms(f"{page()}vllm:time_to_first_token_seconds_bucket{labels_and_value}\n")


@given(st.text(st.characters(codec="utf-8", exclude_characters="}\n")))
def test_labels_that_never_end_are_a_value_error(tail: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_metrics("vllm:num_requests_running{" + tail)


def test_the_page_of_the_demo_has_every_latency() -> None:
    stats = EngineStats("m")
    stats.record_arrival("first", 10.0)
    stats.record_arrival("second", 10.2)
    for now, request_ids in ((10.6, ["first"]), (11.2, ["first", "second"]), (11.3, ["second"])):
        stats.record_step(StepOutput(request_ids=request_ids, finished_ids=request_ids[:1] * (now > 11)), now)
    found = parse_histograms(stats.page())
    assert {name: buckets[math.inf] for name, buckets in found.items()} == dict.fromkeys(NAMES_OF_0_32, 2)
    assert (found["queue"][0.3], found["queue"][0.5], found["queue"][0.8]) == (1, 2, 2)
    assert (found["prefill"][0.5], found["prefill"][0.8]) == (0, 2)
    assert (found["e2e"][1.0], found["e2e"][1.5]) == (0, 2)
    assert parse_metrics(stats.page())[0].preemptions == 0
