"""What happened between two looks at /metrics."""

from typing import Any

import msgspec
import pytest

from vllm_probes.events import EndpointSampled, ModelRestored
from vllm_probes.model import HISTORY_LENGTH, SessionModel, restore, snapshot
from vllm_probes.rates import EngineRates, engine_rates, mean, total
from vllm_probes.rows import EngineSample

MAX_HISTORY_BYTES = 60_000


def sampled(mono: float, *engines: EngineSample) -> EndpointSampled:
    return EndpointSampled(
        time=1e9 + mono, mono=mono, node="n", attempt=1, url="http://h", health="ok", engines=list(engines)
    )


def engine(label: int = 0, tokens: float = 0, **more: Any) -> EngineSample:
    return EngineSample(engine=str(label), generation_tokens=tokens, **more)


def test_rates_of_two_engines() -> None:
    before = sampled(
        100,
        engine(0, 1000, prompt_tokens=500, preemptions=1, ttft_count=10, ttft_sum_s=5.0),
        engine(1, 2000, prompt_tokens=100, preemptions=0, ttft_count=0, ttft_sum_s=0.0),
    )
    after = sampled(
        102,
        engine(0, 1100, prompt_tokens=500, preemptions=3, running=4, kv_usage=0.2, ttft_count=12, ttft_sum_s=5.5),
        engine(1, 2040, prompt_tokens=160, preemptions=0, running=1, kv_usage=0.6, ttft_count=0, ttft_sum_s=0.0),
    )
    assert engine_rates(before, after) == EngineRates(
        mono=102, tokens_per_s=70, prompt_tokens_per_s=30, preemptions=2, running=5, kv_usage=0.4, ttft_s=0.25,
        engines={"0": 50, "1": 20},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (sampled(100, engine()), sampled(101, engine()), EngineRates(mono=101, tokens_per_s=0)),
        (sampled(100, engine(tokens=5)), sampled(101, engine(tokens=3)), EngineRates(mono=101)),
        (sampled(100, engine()), sampled(100, engine(tokens=3)), EngineRates(mono=100)),
        (sampled(100, EngineSample()), sampled(101, engine()), EngineRates(mono=101)),
        (sampled(100, engine()), sampled(101, EngineSample(waiting=2)), EngineRates(mono=101, waiting=2)),
        (
            sampled(100, engine(0)),
            sampled(101, engine(0, 5), engine(1, 5)),
            EngineRates(mono=101, tokens_per_s=5, engines={"0": 5, "1": None}),
        ),
        (
            sampled(100, engine(0, 100), engine(1, 100)),
            sampled(101, engine(0, 200), engine(1, 50)),
            EngineRates(mono=101, tokens_per_s=100, engines={"0": 100, "1": None}),
        ),
    ],
    ids=["idle", "restarted", "no time", "new counter", "lost counter", "new engine", "one restarted"],
)
def test_what_cannot_be_known_is_none(before: EndpointSampled, after: EndpointSampled, expected: EngineRates) -> None:
    assert engine_rates(before, after) == expected


def test_total_and_mean_are_of_those_that_tell() -> None:
    engines = [EngineSample(kv_usage=0.2), EngineSample(kv_usage=0.4), EngineSample()]
    assert (total(engines, "kv_usage"), mean(engines, "kv_usage")) == (pytest.approx(0.6), pytest.approx(0.3))
    assert (total(engines, "running"), mean(engines, "running")) == (None, None)


def test_a_history_is_small_and_only_its_last_rates_tell_of_each_engine() -> None:
    model = SessionModel()
    for second in range(HISTORY_LENGTH + 10):
        model.apply(
            sampled(
                5000.25 + second,
                *(engine(label, second * 412.5, prompt_tokens=second * 3.7, running=12, waiting=3, kv_usage=0.71,
                         preemptions=0, ttft_count=second, ttft_sum_s=second * 0.21) for label in range(16)),
            )
        )  # fmt: skip
    assert len(model.rates) == HISTORY_LENGTH
    assert [len(rates.engines) for rates in model.rates[-3:]] == [0, 0, 16]
    assert len(msgspec.json.encode(snapshot(model)["rates"])) < MAX_HISTORY_BYTES


def test_a_view_gets_the_rates_that_the_keeper_has() -> None:
    model = SessionModel()
    for second in range(3):
        model.apply(sampled(100 + second, engine(0, second * 412), engine(1, second * 206)))
    restored = restore(ModelRestored(time=1e9, mono=103, node="n", attempt=1, model=snapshot(model)))
    assert [rates.engines for rates in restored.rates] == [{}, {"0": 412, "1": 206}]
    assert restored.rates == model.rates
