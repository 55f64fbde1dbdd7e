"""One request for one token, beside /health and /metrics, with one deadline for all three.

/health and /metrics are answered by the front end alone; the request goes through the engine and every worker. With
several data-parallel engines it reaches one of them.
"""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from vllm_probes.events import DAMAGED
from vllm_probes.judges.address import Address
from vllm_probes.launch.redact import REMOVED, redact_text
from vllm_probes.rows import Light
from vllm_probes.sensors.answers import Answer, ask, http_client

if TYPE_CHECKING:
    import httpx

DEADLINE_S = 10.0
SAID_CHARACTERS = 200
MARK = "?vllm-tui-probe"
"""Ends the path, so that our lines can be told from the user's in the server's log. FastAPI skips what it does not
know there."""


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    """GET /v1/models; the first is the base model, LoRAs follow."""

    data: list[_Model]


class _Error(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    """What vLLM answers with a status of 4xx or 5xx (entrypoints/serve/engine/protocol.py of 0.32)."""

    error: _Error


async def send(
    address: Address, api_key: str | None, clients: set[str], *, deadline_s: float = DEADLINE_S
) -> list[Light]:
    """The three lights, after `deadline_s` at the latest. Never raises.

    Our ends of the connections are added to `clients` as soon as they are made, written as uvicorn writes them.
    """
    async with http_client(address) as client:
        asking = _Asking(client, address, api_key, clients, deadline_s)
        return list(await asyncio.gather(asking.look("health"), asking.look("metrics"), asking.request()))


class _Asking:
    def __init__(
        self, client: "httpx.AsyncClient", address: Address, api_key: str | None, clients: set[str], deadline_s: float
    ) -> None:
        self._client, self._address, self._api_key, self._clients = client, address, api_key, clients
        self._deadline_s = deadline_s
        self._deadline = asyncio.get_running_loop().time() + deadline_s

    async def look(self, name: Literal["health", "metrics"]) -> Light:
        return self._light(name, await self._ask(f"/{name}"))

    async def request(self) -> Light:
        """The name of the model, then one token of it."""
        began = self._now()
        answer = await self._ask(f"/v1/models{MARK}")
        model = _model(answer)
        if model is not None:
            body = {"model": model, "prompt": ".", "max_tokens": 1, "temperature": 0.0}
            answer = await self._ask(f"/v1/completions{MARK}", body)
        elif answer.status == 200:
            answer = Answer("unhealthy", 200, error="/v1/models names no model")
        return self._light("probe", answer._replace(latency_s=self._now() - began))

    async def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        return await ask(
            self._client,
            self._address,
            path,
            timeout_s=self._deadline - self._now(),
            clients=self._clients,
            body=body,
            headers={"Authorization": f"Bearer {self._api_key}"} if self._api_key else None,
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _light(self, name: Literal["health", "metrics", "probe"], answer: Answer) -> Light:
        outcome: Literal["ok", "failed", "timeout", "refused"]
        match answer.health:
            case "ok" | "timeout" | "refused":
                outcome = answer.health
            case _:
                outcome = "failed"
        has_answer = answer.status is not None
        return Light(
            name=name,
            outcome=outcome,
            status=answer.status,
            latency_s=answer.latency_s if has_answer else None,
            said=self._said(answer),
        )

    def _said(self, answer: Answer) -> str:
        if answer.health == "timeout":
            return f"no answer within {self._deadline_s:g} s"
        if answer.health == "refused":
            return "nobody listens there"
        if answer.health == "ok":
            return f"answered {answer.status}"
        reason = answer.error or _reason(answer)
        said = " ".join((f"answered {answer.status}{': ' if reason else ''}" if answer.status else "", reason)).strip()
        for secret in (self._api_key or "", repr(self._api_key or "")[1:-1]):  # in an error of httpx it is escaped
            said = said.replace(secret, REMOVED) if secret else said
        return redact_text(" ".join(said.split()))[:SAID_CHARACTERS]


def _model(answer: Answer) -> str | None:
    try:
        models = msgspec.json.decode(answer.text, type=_Models).data if answer.health == "ok" else []
    except DAMAGED:
        return None
    return models[0].id if models else None


def _reason(answer: Answer) -> str:
    """Why, as vLLM says it; empty where it is somebody else who answers."""
    try:
        return msgspec.json.decode(answer.text, type=_Refusal).error.message
    except DAMAGED:
        return ""
