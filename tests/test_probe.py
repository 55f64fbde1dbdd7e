"""The probe against real servers on loopback."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.test_endpoint import Server, close, listening
from vllm_probes.judges.address import Address
from vllm_probes.judges.probing import meaning
from vllm_probes.rows import Light
from vllm_probes.sensors import probe

KEY = "sesame-open-4711"
MODELS = f"/v1/models{probe.MARK}"
COMPLETIONS = f"/v1/completions{probe.MARK}"


class Vllm(Server):
    """Answers as vLLM does; what `holds` names gets no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.pages[MODELS] = (200, json.dumps({"object": "list", "data": [{"id": "org/m"}, {"id": "lora"}]}))
        self.pages[COMPLETIONS] = (200, "{}")
        self.holds: set[str] = set()
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        peer = writer.get_extra_info("peername")
        self.peers.append(f"{peer[0]}:{peer[1]}" if peer else "")
        while head := await self._head(reader):
            method, path, *_ = head.decode().split()
            self.asked.append(f"{method} {path}")
            self.heads.append(head)
            if method == "POST":
                self.bodies.append(await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0])))
            if path in self.holds:
                await reader.read()
                break
            status, body = self.pages.get(path, (404, '{"detail":"Not Found"}'))
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()


@pytest.fixture
def server() -> Vllm:
    return Vllm()


async def send(server: Vllm, *, key: str | None = None, deadline_s: float = 5.0) -> tuple[list[Light], set[str]]:
    clients: set[str] = set()
    async with listening(server) as address:
        return await probe.send(address, key, clients, deadline_s=deadline_s), clients


async def test_a_server_that_serves_is_asked_for_one_token_of_its_base_model(server: Vllm) -> None:
    lights, clients = await send(server, key=KEY)
    assert [(light.name, light.outcome, light.status) for light in lights] == [
        ("health", "ok", 200), ("metrics", "ok", 200), ("probe", "ok", 200),
    ]  # fmt: skip
    assert all(light.latency_s is not None for light in lights)
    assert sorted(server.asked) == ["GET /health", "GET /metrics", f"GET {MODELS}", f"POST {COMPLETIONS}"]
    body = json.loads(server.bodies[0])
    assert (body["model"], body["max_tokens"]) == ("org/m", 1)
    assert all(f"Bearer {KEY}".encode() in head for head in server.heads)
    assert clients == set(server.peers)


async def test_without_a_key_none_is_sent(server: Vllm) -> None:
    await send(server)
    assert not any(b"authorization" in head.lower() for head in server.heads)


@pytest.mark.parametrize(
    ("held", "outcomes", "sentence"),
    [
        ({COMPLETIONS}, ["ok", "ok", "timeout"], "the engine does not"),
        ({MODELS}, ["ok", "ok", "timeout"], "the engine does not"),
        ({"/health", "/metrics", MODELS}, ["timeout"] * 3, "event loop"),
        ({"/metrics"}, ["ok", "timeout", "ok"], "It serves, but /metrics: no answer within 2 s."),
    ],
)
async def test_what_gets_no_answer(server: Vllm, held: set[str], outcomes: list[str], sentence: str) -> None:
    server.holds = held
    lights, clients = await send(server, deadline_s=2.0)
    assert [light.outcome for light in lights] == outcomes
    assert sentence in meaning(lights)
    assert clients == set(server.peers)


async def test_nobody_listens(server: Vllm, tmp_path: Path) -> None:
    async with listening(server) as address:
        pass
    for gone in (address, Address(uds=str(tmp_path / "s"))):
        lights = await probe.send(gone, None, set())
        assert [light.outcome for light in lights] == ["refused"] * 3
        assert {light.latency_s for light in lights} == {None}


async def test_unix_socket(server: Vllm, tmp_path: Path) -> None:
    path, clients = str(tmp_path / "s"), set[str]()
    running = await asyncio.start_unix_server(server.serve, path)
    lights = await probe.send(Address(uds=path), None, clients)
    await close(running, server)
    assert [light.outcome for light in lights] == ["ok"] * 3
    assert clients == set()


@pytest.mark.parametrize(
    ("path", "page", "said"),
    [
        (MODELS, (401, '{"error":"Unauthorized"}'), "answered 401"),
        (MODELS, (404, '{"detail":"Not Found"}'), "answered 404"),
        (MODELS, (200, '{"data":[]}'), "answered 200: /v1/models names no model"),
        (MODELS, (200, "<html>"), "answered 200: /v1/models names no model"),
        (MODELS, (200, "[" * 100_000), "answered 200: /v1/models names no model"),
        (COMPLETIONS, (404, '{"detail":"Not Found"}'), "answered 404"),
        (COMPLETIONS, (400, '{"error":{"message":"no\\n chat"}}'), "answered 400: no chat"),
        (COMPLETIONS, (500, '{"error":{"message":"EngineCore died"}}'), "answered 500: EngineCore died"),
    ],
)
async def test_a_refusal_is_an_answer(server: Vllm, path: str, page: tuple[int, str], said: str) -> None:
    server.pages[path] = page
    light = (await send(server))[0][2]
    assert (light.outcome, light.status, light.said) == ("failed", page[0], said)


@pytest.mark.parametrize("key", [KEY, f"{KEY}\nx", f"{KEY}é"])
async def test_the_key_is_in_no_word(server: Vllm, key: str) -> None:
    server.pages[COMPLETIONS] = (
        400,
        json.dumps({"error": {"message": f"unknown key {key} or token=hf_abcdefABCDEF123"}}),
    )
    lights, _ = await send(server, key=key)
    said = " ".join(light.said for light in lights)
    assert KEY not in said
    assert "hf_abc" not in said
