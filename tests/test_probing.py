"""What the three lights of a probe mean together, and the key that a server asks for."""

import itertools
from typing import Any

import pytest

from vllm_probes.judges.probing import api_key, is_unanswered, meaning, served
from vllm_probes.rows import Light

OUTCOMES: list[Any] = ["ok", "failed", "timeout", "refused"]


def lights(health: Any, metrics: Any, probe: Any, /, **status: int) -> list[Light]:
    names: list[Any] = ["health", "metrics", "probe"]
    return [
        Light(name=name, outcome=outcome, status=status.get(name), said=f"said {outcome}")
        for name, outcome in zip(names, (health, metrics, probe), strict=True)
    ]


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (lights("ok", "ok", "ok"), "It serves."),
        (lights("ok", "failed", "ok"), "It serves, but /metrics: said failed."),
        (lights("ok", "ok", "timeout"), "The front end answers, the engine does not."),
        (lights("refused", "refused", "refused"), "Nobody listens there"),
        (lights("timeout", "timeout", "timeout"), "the event loop of the front end is blocked"),
        (lights("failed", "ok", "failed", health=503, probe=500), "the engine is dead"),
        (lights("ok", "ok", "failed", probe=401), "wants an API key"),
        (lights("ok", "ok", "failed", probe=404), "does not take this request: the engine was not asked"),
        (lights("ok", "ok", "failed", probe=500), "the request failed"),
        (lights("timeout", "ok", "timeout"), "/health: said timeout, the request: said timeout"),
        (lights("ok", "ok", "failed"), "It does not serve: the request: said failed."),
    ],
)
def test_what_they_mean_together(seen: list[Light], sentence: str) -> None:
    assert sentence in meaning(seen)


@pytest.mark.parametrize("outcomes", [*itertools.product(OUTCOMES, repeat=3)])
def test_every_combination_is_one_sentence_and_only_a_token_serves(outcomes: tuple[Any, Any, Any]) -> None:
    seen = lights(*outcomes)
    assert meaning(seen).endswith(".")
    assert served(seen) == (outcomes[2] == "ok") == meaning(seen).startswith("It serves")
    assert is_unanswered(seen) == (outcomes[2] == "timeout")


@pytest.mark.parametrize(
    ("argv", "env", "key"),
    [
        (["vllm", "serve", "m", "--api-key", "k1", "k2"], {"VLLM_API_KEY": "k3"}, "k1"),
        (["vllm", "serve", "m", "--api_key=k1"], {}, "k1"),
        (["bash", "-c", "vllm serve m --api-key $KEY"], {"KEY": "k1"}, "k1"),
        (["vllm", "serve", "m"], {"VLLM_API_KEY": "k3"}, "k3"),
        (["python", "run.py"], {"VLLM_API_KEY": "k3"}, "k3"),
        (["vllm", "serve", "m"], {"VLLM_API_KEY": ""}, None),
        ([], {}, None),
    ],
)
def test_the_key_of_a_server(argv: list[str], env: dict[str, str], key: str | None) -> None:
    assert api_key(argv, env) == key
