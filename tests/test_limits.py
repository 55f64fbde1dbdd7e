"""Why it is slow: a table of loads, the times at which something is told, and properties."""

import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.limit_story import (
    ALONE,
    BLOCKING,
    EAGER,
    FULL_CACHE,
    FULL_GPUS,
    HEALTHY,
    LATE_GPU,
    LAUNCHING,
    PIDS,
    PIPELINE,
    PREFILL,
    QUEUE,
    SCHEDULING,
    SLEEPY,
    TINY_CACHE,
    TOKENISING,
    Load,
    Story,
    gpu,
    process,
)
from vllm_probes.events import (
    AttemptStarted,
    CommandEnded,
    EndpointSampled,
    Event,
    GpusSampled,
    HostSampled,
    LogRecorded,
    ProcessesSampled,
    StopRequested,
    TreeEnded,
)
from vllm_probes.judges.limit_signals import DISTORTING, UNCOMPILED
from vllm_probes.judges.limits import COMPILATION_RULE, SHUTDOWN_RULE, WINDOW_S
from vllm_probes.judges.rules import load_rules
from vllm_probes.launch import levers
from vllm_probes.rows import DebugSetting, EngineSample, GpuCard, GpuProcess, GpuRow


@pytest.mark.parametrize(
    ("load", "limit", "says"),
    [
        (TINY_CACHE, "kv_cache", "280 in 10 s"),
        (FULL_CACHE, "kv_cache", "97 % used"),
        (QUEUE, "queue", "46, then 46"),
        (TOKENISING, "api_server_cpu", "98 %"),
        (HEALTHY.using(APIServer=99.0).on_gpus((60.0, 300.0), (58.0, 300.0)), "api_server_cpu", "99 %"),
        (PREFILL, "prefill", "9000 a second"),
        (SLEEPY, "slow_rank", "37 %"),
        (LATE_GPU, "slow_rank", "55 % busy"),
        (ALONE, "slow_rank", "520 W"),
        (LAUNCHING, "launch", "55 to 55 % busy"),
        (SCHEDULING, "engine_cpu", "99 %"),
        (FULL_GPUS.on_gpus((98.0, 600.0), (97.0, 500.0), throttle=["hot"]), "throttling", "throttled: hot"),
    ],
)
def test_what_limits_is_told_with_its_figures(load: Load, limit: str, says: str) -> None:
    (told,) = Story().serve(load).told()
    assert told.limit == limit
    assert any(says in one.value for one in told.evidence)
    assert told.summary.endswith(".")
    assert {one.since for one in told.evidence} == {told.time - 20.0}


@pytest.mark.parametrize(
    "load",
    [
        HEALTHY,
        Load(running=0, waiting=0, before_first_token=0.01, decoding=0.1, generation_tokens=16, prompt_tokens=4),
        HEALTHY.using(Worker_TP0=100.0, Worker_TP1=100.0, EngineCore=74.0),
        HEALTHY.using(EngineCore=100.0, Worker_TP0=100.0, Worker_TP1=100.0),
        HEALTHY.using(Worker_TP0=97.0, Worker_TP1=68.0),
        HEALTHY.using(Worker_TP0=160.0, Worker_TP1=100.0),
        FULL_GPUS,
        FULL_GPUS.using(APIServer=95.0, EngineCore=100.0, Worker_TP0=100.0, Worker_TP1=100.0),
        FULL_GPUS.on_gpus((98.0, 700.0), (97.0, 700.0), throttle=["power cap"]),
        FULL_GPUS.on_gpus((98.0, 600.0), (97.0, 480.0)),
        Load(running=200, waiting=4),
        Load(running=200, waiting=0, kv_usage=0.99),
        Load(preemptions=0.1),
        replace(PREFILL, before_first_token=0.5, decoding=9.0, waiting=0),
        replace(PREFILL, finished=20, waiting=0),
        replace(TOKENISING, cpu=HEALTHY.cpu),
        replace(LAUNCHING, running=1.0),
        PIPELINE,
        TOKENISING.on_gpus((97.0, 600.0), (98.0, 600.0)),
    ],
)
def test_a_healthy_server_has_no_limit(load: Load) -> None:
    assert Story().serve(load, 120.0).limits() == []


def test_the_rank_that_sleeps_is_named() -> None:
    (told,) = Story().serve(SLEEPY).told()
    assert told.summary == "Worker_TP1 is slower than its peers: it sleeps while the others spin."


def test_peers_are_those_of_one_tensor_parallel_group() -> None:
    assert Story().serve(replace(HEALTHY, cpu={"Worker_TP0_EP0": 95.0, "Worker_TP1_EP1": 35.0})).limits() == [
        "slow_rank"
    ]
    assert Story().serve(replace(HEALTHY, cpu={"Worker_DP0_TP0": 95.0, "Worker_DP1_TP1": 35.0})).limits() == []


def test_a_rank_that_computes_longer_looks_like_those_that_wait() -> None:
    assert Story().serve(HEALTHY.using(Worker_TP0=81.0, Worker_TP1=86.0)).limits() == []


def test_a_pause_that_hits_one_rank_is_no_slow_rank() -> None:
    story = Story().serve(HEALTHY, 10.0)
    for _ in range(6):
        story.work(HEALTHY, 5.0).busy(HEALTHY.using(Worker_TP1=5.0))
        story.work(HEALTHY, 5.0).busy(HEALTHY).look(HEALTHY)
    assert story.limits() == []


@pytest.mark.parametrize(
    ("debug", "load", "limits"),
    [
        ([EAGER], HEALTHY, ["eager"]),
        ([BLOCKING], HEALTHY, ["debug_setting"]),
        ([EAGER, BLOCKING], SLEEPY, ["debug_setting"]),
        ([EAGER], SLEEPY, ["slow_rank"]),
        ([EAGER], TINY_CACHE, ["kv_cache"]),
        ([EAGER], TOKENISING, ["api_server_cpu"]),
        ([EAGER], LAUNCHING, ["eager"]),
        ([], replace(QUEUE, cpu=SLEEPY.cpu), ["slow_rank"]),
        ([DebugSetting(setting="NCCL_DEBUG=INFO", origin="inherited", cost="more log")], HEALTHY, []),
    ],
)
def test_the_first_that_fits_is_told(debug: list[DebugSetting], load: Load, limits: list[str]) -> None:
    assert Story(*debug).serve(load).limits() == limits


def test_swap_and_a_host_that_is_short_of_memory() -> None:
    swapping = Story().add(HostSampled, swap_bytes_per_s=5e7).serve(HEALTHY)
    assert [(one.signal, one.value) for one in swapping.told()[0].evidence] == [("swap", "50 MB/s")]
    assert Story().add(HostSampled, memory_pressure_percent=30.0).serve(HEALTHY).limits() == ["swap"]
    assert Story().add(HostSampled, swap_bytes_per_s=1e4, memory_pressure_percent=1.0).serve(HEALTHY).limits() == []


def test_a_compilation_while_it_serves() -> None:
    story = Story().serve(HEALTHY, 10.0)
    story.add(LogRecorded, line_number=9, rule=COMPILATION_RULE, message="Triton kernel JIT compilation …")
    story.serve(HEALTHY, 20.0)
    assert story.limits() == ["compiling"]
    assert story.serve(HEALTHY, 60.0).limits() == ["compiling", None]


# --- when it is told --------------------------------------------------------------------------------------------------


def test_it_takes_two_looks_that_agree() -> None:
    assert Story().serve(QUEUE, 10.0).limits() == []
    (told,) = Story().serve(QUEUE, 20.0).told()
    assert told.mono == 120.0


def test_one_long_interval_tells_nothing() -> None:
    story = Story().busy(QUEUE).look(QUEUE).work(QUEUE, 25.0).look(QUEUE)
    assert story.limits() == []
    assert story.work(QUEUE, 10.0).look(QUEUE).limits() == ["queue"]


def test_load_that_ends_has_no_limit() -> None:
    story = Story().serve(QUEUE).wait(3.0).rest()
    assert story.limits() == ["queue", None]
    assert story.told()[-1].mono == 143.0


@pytest.mark.parametrize(
    ("end", "fields"),
    [
        (StopRequested, {"by": "key"}),
        (CommandEnded, {"code": 0, "signal": None}),
        (TreeEnded, {}),
        (LogRecorded, {"line_number": 9, "rule": SHUTDOWN_RULE}),
    ],
)
def test_nothing_is_told_after_the_end(end: type[Event], fields: dict[str, Any]) -> None:
    story = Story().serve(QUEUE).wait(1.0).add(end, **fields)
    assert story.limits() == ["queue", None]
    assert story.serve(QUEUE).limits() == ["queue", None]


def test_another_attempt_begins_anew() -> None:
    story = Story(EAGER).serve(HEALTHY)
    story.add(AttemptStarted, command=["x"], levers=[], log="attempt-2.log", shim_pid=3)
    assert story.limits() == ["eager", None]
    assert story.serve(HEALTHY).limits() == ["eager", None]


def test_gpus_outlive_an_attempt() -> None:
    story = Story().busy(LAUNCHING)
    story.add(AttemptStarted, command=["x"], levers=[], log="attempt-2.log", shim_pid=3)
    story.add(ProcessesSampled, rows=[process(name, 100.0) for name in ("Worker_TP0", "Worker_TP1")])
    rows = [gpu(0, 55.0, 250.0, throttle=["hot"])]
    story.look(HEALTHY)
    for _ in range(3):
        story.work(HEALTHY, 10.0).add(GpusSampled, rows=rows).look(HEALTHY)
    assert story.limits() == ["throttling"]


def test_one_limit_follows_another_after_a_window() -> None:
    told = Story().serve(QUEUE, 40.0).serve(TINY_CACHE, 40.0).told()
    assert [one.limit for one in told] == ["queue", "kv_cache"]
    assert told[1].mono - 140.0 >= WINDOW_S


def test_one_odd_look_changes_nothing() -> None:
    story = Story().serve(QUEUE, 40.0)
    for _ in range(5):
        story.serve(HEALTHY, 10.0).serve(QUEUE, 20.0)
    assert story.limits() == ["queue"]
    assert story.serve(HEALTHY, 40.0).limits() == ["queue", None]


def test_a_server_that_stands_still_is_not_slow() -> None:
    hung = replace(QUEUE, prompt_tokens=0, generation_tokens=0)
    assert Story().serve(hung).limits() == []


def test_a_look_without_an_answer_changes_nothing() -> None:
    story = Story().serve(QUEUE, 20.0).wait(3.0).look(QUEUE, health="timeout")
    assert story.limits() == ["queue"]
    assert story.wait(40.0).look(QUEUE, health="timeout").limits() == ["queue", None]


def test_nobody_knows_what_happened_in_a_gap() -> None:
    story = Story().serve(QUEUE, 20.0).wait(300.0)
    assert story.look(QUEUE).limits() == ["queue", None]


def test_a_driver_that_does_not_answer_tells_nothing() -> None:
    story = Story().serve(LAUNCHING, 20.0).add(GpusSampled, status="silent")
    for _ in range(4):
        story.work(LAUNCHING, 10.0).look(LAUNCHING)
    assert story.limits() == []


def test_a_gpu_that_flickers_tells_nothing() -> None:
    story = Story()
    for busy in (55.0, 95.0) * 6:
        story.serve(LAUNCHING.on_gpus((busy, 250.0), (busy, 250.0)), 10.0)
    assert story.limits() == []


# --- names ------------------------------------------------------------------------------------------------------------


def test_rules_and_settings_are_known_by_these_names() -> None:
    assert {COMPILATION_RULE, SHUTDOWN_RULE} <= load_rules().by_id.keys()
    table = tomllib.loads(Path(levers.__file__).with_suffix(".toml").read_text())
    known = {one.get("flag") or one.get("env") or one.get("program") for one in table["setting"]}
    assert known >= DISTORTING | UNCOMPILED


# --- properties -------------------------------------------------------------------------------------------------------

numbers = st.none() | st.floats(0, 1e6) | st.floats(0, 100)
counters = ("prompt_tokens", "generation_tokens", "iterations", "preemptions", "prefix_hits", "finished_requests")
sums = ("ttft_count", "ttft_sum_s", "tpot_sum_s")
engine_samples = st.builds(
    EngineSample,
    engine=st.sampled_from("01"),
    **dict.fromkeys(("running", "waiting", "kv_usage", *counters, *sums), numbers),
)
process_rows = st.builds(process, st.sampled_from(sorted(PIDS)), st.sampled_from([0.0, 30.0, 60.0, 85.0, 100.0, 250.0]))
gpu_rows = st.builds(
    GpuRow,
    index=st.integers(0, 3),
    busy_percent=st.none() | st.sampled_from([0.0, 50.0, 100.0]),
    power_w=st.none() | st.floats(0, 800),
    used_bytes=st.none() | st.just(1 << 36),
    throttle=st.lists(st.sampled_from(["hot", "power cap"]), max_size=2),
    processes=st.none() | st.lists(st.builds(GpuProcess, pid=st.sampled_from([100, 101, 7])), max_size=2),
)
debug_lists = st.lists(st.sampled_from([EAGER, BLOCKING]), max_size=2, unique=True)
observations = st.one_of(
    st.tuples(
        st.just(EndpointSampled),
        st.fixed_dictionaries(
            {
                "url": st.just("u"),
                "health": st.sampled_from(["ok", "ok", "ok", "timeout"]),
                "active": st.sampled_from([True, True, True, False]),
                "engines": st.lists(engine_samples, max_size=2),
            }
        ),
    ),
    st.tuples(
        st.just(ProcessesSampled),
        st.fixed_dictionaries({"rows": st.lists(process_rows, max_size=4), "gone": st.lists(st.just(100), max_size=1)}),
    ),
    st.tuples(
        st.just(GpusSampled),
        st.fixed_dictionaries(
            {
                "rows": st.lists(gpu_rows, max_size=4),
                "cards": st.lists(st.builds(GpuCard, index=st.integers(0, 3)), max_size=2),
                "status": st.sampled_from(["ok", "ok", "silent"]),
            }
        ),
    ),
    st.tuples(
        st.just(HostSampled),
        st.fixed_dictionaries({"swap_bytes_per_s": numbers, "memory_pressure_percent": numbers}),
    ),
    st.tuples(
        st.just(LogRecorded),
        st.fixed_dictionaries(
            {"line_number": st.just(1), "rule": st.sampled_from([COMPILATION_RULE, SHUTDOWN_RULE, None])}
        ),
    ),
    st.tuples(st.just(StopRequested), st.just({"by": "key"})),
)
steps = st.lists(st.tuples(st.floats(0, 25), observations), max_size=40)


def story_of(debug: list[DebugSetting], steps: list[tuple[float, Any]]) -> Story:
    story = Story(*debug)
    for seconds, (kind, fields) in steps:
        story.wait(seconds).add(kind, **fields)
    return story


@given(debug_lists, steps)
def test_whatever_comes_a_limit_is_told_once_and_never_soon_after_another(
    debug: list[DebugSetting], steps: list[tuple[float, Any]]
) -> None:
    story = story_of(debug, steps)
    told = story.told()
    assert told == story.told()
    for before, after in pairwise(told):
        assert before.limit != after.limit or before.evidence != after.evidence
        assert after.limit is None or after.mono - before.mono >= WINDOW_S


@given(debug_lists, steps)
def test_without_requests_nothing_limits(debug: list[DebugSetting], steps: list[tuple[float, Any]]) -> None:
    idle = [EngineSample(running=0.0, waiting=0.0, generation_tokens=5.0, ttft_sum_s=1.0, tpot_sum_s=1.0)]
    quiet = [
        (seconds, (kind, fields | {"engines": idle} if kind is EndpointSampled else fields))
        for seconds, (kind, fields) in steps
    ]
    assert story_of(debug, quiet).told() == []


loads = st.sampled_from([HEALTHY, QUEUE, TINY_CACHE, TOKENISING, SLEEPY, LAUNCHING, PREFILL, FULL_GPUS])


@given(debug_lists, st.lists(st.tuples(loads, st.integers(1, 4), st.booleans()), max_size=12))
def test_loads_in_any_order_never_flicker(debug: list[DebugSetting], course: list[tuple[Load, int, bool]]) -> None:
    story = Story(*debug)
    for load, looks, ends in course:
        story.serve(load, 10.0 * looks)
        if ends:
            story.wait(3.0).rest(load)
    told = story.told()
    for before, after in pairwise(told):
        assert (before.limit, after.limit) != (None, None)
        assert after.limit is None or after.mono - before.mono >= WINDOW_S
