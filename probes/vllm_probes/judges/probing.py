"""A probe: the key that the server asks for, and what the three lights mean together."""

from collections.abc import Mapping, Sequence

from vllm_probes.judges.commandline import options, server_arguments, server_words
from vllm_probes.rows import Light


def api_key(argv: Sequence[str], env: Mapping[str, str]) -> str | None:
    """The key of a server that was started like this; None: it wants none, or it is not known.

    `--api-key` goes before VLLM_API_KEY (entrypoints/serve/middleware/register.py of 0.32). Never to be recorded.
    """
    arguments = server_arguments(server_words(argv, env)) or []
    return options(arguments).get("--api-key") or env.get("VLLM_API_KEY") or None


def served(lights: Sequence[Light]) -> bool:
    """Whether the request got its token."""
    return any(light.name == "probe" and light.outcome == "ok" for light in lights)


def is_unanswered(lights: Sequence[Light]) -> bool:
    """Whether the request was sent and nothing came back."""
    return any(light.name == "probe" and light.outcome == "timeout" for light in lights)


def meaning(lights: Sequence[Light]) -> str:
    """One sentence of what the lights say together. /health and /metrics do not ask the engine (vLLM 0.32)."""
    by_name = {light.name: light for light in lights}
    probe, others = by_name["probe"], [by_name["health"], by_name["metrics"]]
    bad = [light for light in others if light.outcome != "ok"]
    if probe.outcome == "ok":
        return f"It serves{', but ' + _names(bad) if bad else ''}."
    if by_name["health"].status == 503:
        return "The front end says that the engine is dead."
    if all(light.outcome == "refused" for light in lights):
        return "Nobody listens there: it has not started to serve, or it is gone."
    if all(light.outcome == "timeout" for light in lights):
        return "It listens and nothing answers: the event loop of the front end is blocked, or the process is stopped."
    if probe.outcome == "timeout" and not bad:
        return "The front end answers, the engine does not."
    if probe.status is not None:
        return _of_status(probe.status)
    return f"It does not serve: {_names([*bad, probe])}."


def _of_status(status: int) -> str:
    if status in (401, 403):
        return "The front end answers and wants an API key that is not known here: the engine was not asked."
    if status < 500:
        return "The front end answers and does not take this request: the engine was not asked."
    return "The front end answers, the request failed."


def _names(lights: Sequence[Light]) -> str:
    """`/health: no answer within 10 s, the request: answered 500`."""
    names = {"health": "/health", "metrics": "/metrics", "probe": "the request"}
    return ", ".join(f"{names[light.name]}: {light.said}" for light in lights)
