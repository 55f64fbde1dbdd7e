"""The endpoint sensor against real servers on loopback."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from vllm_probes.events import Stamp
from vllm_probes.judges.address import Address
from vllm_probes.rows import LatencyWindow
from vllm_probes.sensors import endpoint
from vllm_probes.sensors.endpoint import EndpointSensor


def stamp(mono: float = 100.0) -> Stamp:
    return {"time": 1e9 + mono, "mono": mono, "node": "n", "attempt": 1}


def metrics(running: int = 0, tokens: int = 0) -> str:
    return f'vllm:num_requests_running{{engine="0"}} {running}\nvllm:generation_tokens_total{{engine="0"}} {tokens}\n'


def buckets(*counts: float, name: str = "time_to_first_token_seconds", engine: int = 0) -> str:
    """Cumulative counts up to 0.1 s, 1 s, and for ever."""
    return "".join(
        f'vllm:{name}_bucket{{engine="{engine}",le="{bound}"}} {count}\n'
        for bound, count in zip(("0.1", "1.0", "+Inf"), counts, strict=True)
    )


class Server:
    """A small HTTP server with keep-alive; what it answers can be changed while it runs."""

    def __init__(self) -> None:
        self.pages = {"/health": (200, ""), "/metrics": (200, metrics())}
        self.asked: list[str] = []
        self.peers: list[str] = []
        self.silent = False
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        peer = writer.get_extra_info("peername")
        self.peers.append(f"{peer[0]}:{peer[1]}" if peer else "")
        while head := await self._head(reader):
            path = head.split()[1].decode()
            self.asked.append(path)
            if self.silent:
                await reader.read()
                break
            status, body = self.pages.get(path, (404, ""))
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    @staticmethod
    async def _head(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError):
            return b""


@asynccontextmanager
async def listening(
    server: Server, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Address]:
    running = await asyncio.start_server(server.serve, host, 0, ssl=tls)
    try:
        yield Address(host=host, port=running.sockets[0].getsockname()[1], tls=tls is not None)
    finally:
        await close(running, server)


async def close(running: asyncio.Server, server: Server) -> None:
    """The server is gone: its socket and all its connections."""
    running.close()
    for writer in server.writers:
        writer.close()
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


@pytest.fixture
async def sensor() -> AsyncIterator[EndpointSensor]:
    sensor = EndpointSensor()
    yield sensor
    await sensor.close()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_healthy_server(sensor: EndpointSensor, server: Server, host: str) -> None:
    server.pages["/metrics"] = (200, metrics(running=2))
    async with listening(server, host) as address:
        sample = await sensor.sample(address, stamp())
    assert (sample.url, sample.health, sample.status, sample.error) == (address.url, "ok", 200, None)
    assert sample.latency_s is not None
    assert sample.active
    assert sample.engines[0].running == 2
    assert (sample.mono, sample.attempt) == (100.0, 1)
    assert sample.own_clients == sorted(server.peers)


async def test_unix_socket(sensor: EndpointSensor, server: Server, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert (await sensor.sample(Address(uds=path), stamp())).health == "refused"
    running = await asyncio.start_unix_server(server.serve, path)
    sample = await sensor.sample(Address(uds=path), stamp())
    await close(running, server)
    assert (sample.url, sample.health, sample.own_clients) == (f"unix:{path}", "ok", [])


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-x509", "-nodes", "-days", "1", "-subj", "/CN=elsewhere.example"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-newkey", "rsa:2048", *subject, *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


async def test_own_certificate(sensor: EndpointSensor, server: Server, self_signed: ssl.SSLContext) -> None:
    async with listening(server, tls=self_signed) as address:
        sample = await sensor.sample(address, stamp())
        assert (sample.health, sample.url[:8]) == ("ok", "https://")
        assert sample.own_clients == sorted(server.peers)
        plain = await sensor.sample(Address(port=address.port), stamp())
        assert plain.health == "unreachable"


async def test_proxies_of_the_environment_are_not_used(
    sensor: EndpointSensor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with listening(server) as address:
        assert (await sensor.sample(address, stamp())).health == "ok"


async def test_nobody_listens(sensor: EndpointSensor, server: Server) -> None:
    async with listening(server) as address:
        pass
    sample = await sensor.sample(address, stamp())
    assert (sample.health, sample.status, sample.engines, sample.active) == ("refused", None, [], False)
    assert sample.error


async def test_no_answer(sensor: EndpointSensor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 0.5)  # a connection is made within it on a busy machine, too
    server.silent = True
    async with listening(server) as address:
        sample = await sensor.sample(address, stamp())
        assert (sample.health, sample.latency_s) == ("timeout", None)
        assert sample.own_clients == sorted(server.peers)
        server.silent = False
        assert (await sensor.sample(address, stamp(101))).health == "ok"


async def test_a_dead_engine(sensor: EndpointSensor, server: Server) -> None:
    server.pages["/health"] = (503, "")
    async with listening(server) as address:
        for mono in (100, 101):
            sample = await sensor.sample(address, stamp(mono))
            assert (sample.health, sample.status, len(sample.engines)) == ("unhealthy", 503, 1)
        assert server.asked.count("/health") == 2


@pytest.mark.parametrize(
    ("page", "said"), [((404, ""), "404"), ((200, 'vllm:num_requests_running{engine="0"} many'), "cannot be read")]
)
async def test_no_metrics(sensor: EndpointSensor, server: Server, page: tuple[int, str], said: str) -> None:
    server.pages["/metrics"] = page
    async with listening(server) as address:
        sample = await sensor.sample(address, stamp())
    assert (sample.health, sample.engines) == ("ok", [])
    assert said in (sample.error or "")


@pytest.mark.parametrize("host", ["a b", "\x00", "%%", "ä" * 80, "[", ""])
async def test_a_host_that_is_none(sensor: EndpointSensor, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 1.0)
    sample = await sensor.sample(Address(host=host), stamp())
    assert sample.health in ("unreachable", "timeout", "refused")
    assert sample.error


async def test_health_is_asked_seldom_and_connections_are_kept(sensor: EndpointSensor, server: Server) -> None:
    async with listening(server) as address:
        samples = [await sensor.sample(address, stamp(100 + second)) for second in range(8)]
    assert all(sample.health == "ok" for sample in samples)
    assert server.asked.count("/metrics") == 8
    assert server.asked.count("/health") == 2
    assert len(server.peers) == 2  # the first look asks for both at once
    assert set(samples[-1].own_clients) <= set(server.peers)


async def test_health_is_asked_at_once_after_a_failure(sensor: EndpointSensor, server: Server) -> None:
    async with listening(server) as address:
        await sensor.sample(address, stamp(100))
    assert (await sensor.sample(address, stamp(101))).health in ("refused", "unreachable")
    restarted = await asyncio.start_server(server.serve, address.host, address.port)
    server.pages["/health"] = (503, "")
    assert (await sensor.sample(address, stamp(102))).health == "unhealthy"
    await close(restarted, server)


async def test_active_holds_for_three_seconds(sensor: EndpointSensor, server: Server) -> None:
    async def look(mono: float, running: int = 0, tokens: int = 0) -> bool:
        server.pages["/metrics"] = (200, metrics(running, tokens))
        return (await sensor.sample(address, stamp(mono))).active

    async with listening(server) as address:
        assert not await look(100, tokens=50)
        assert await look(101, tokens=51)
        assert await look(103, tokens=51)
        assert not await look(104.5, tokens=51)
        assert await look(105, running=1, tokens=51)
        assert not await look(106, tokens=51)


async def test_latencies_are_those_of_the_last_minute(sensor: EndpointSensor, server: Server) -> None:
    async def look(mono: float, *counts: float) -> list[LatencyWindow]:
        page = metrics() + buckets(*counts) + buckets(*counts, engine=1)
        server.pages["/metrics"] = (200, page)
        return (await sensor.sample(address, stamp(mono))).latencies

    async with listening(server) as address:
        assert await look(100, 500, 500, 500) == []
        assert await look(104, 500, 510, 510) == []
        window = LatencyWindow(name="ttft", count=20, p50_s=0.55, p90_s=0.91, p99_s=0.991, finest_s=0.1)
        assert await look(105, 500, 510, 510) == [window]
        assert await look(109, 500, 600, 600) == [window]
        for second in range(110, 166, 5):
            [window] = await look(second, 500, 510, 510)
        assert window == LatencyWindow(name="ttft", count=0, finest_s=0.1)
        assert await look(170, 1, 1, 1) == []
        assert [one.count for one in await look(175, 1, 2, 2)] == [2]


async def test_without_a_page_there_are_no_latencies(sensor: EndpointSensor, server: Server) -> None:
    def answer(status: int, count: float) -> None:
        server.pages["/metrics"] = (status, metrics() + buckets(0, 0, count))

    async with listening(server) as address:
        for mono, status, count, known in ((100, 200, 0, 0), (105, 200, 1, 1), (110, 500, 0, 0), (115, 200, 3, 1)):
            answer(status, count)
            assert len((await sensor.sample(address, stamp(mono))).latencies) == known


async def test_buckets_that_cannot_be_read_are_said_at_every_look(sensor: EndpointSensor, server: Server) -> None:
    server.pages["/metrics"] = (200, metrics() + "vllm:time_to_first_token_seconds_bucket{le=\n")
    async with listening(server) as address:
        for mono in (100, 101, 102):
            sample = await sensor.sample(address, stamp(mono))
            assert "vllm:time_to_first_token_seconds_bucket{le=" in (sample.error or "")
            assert (sample.engines, sample.latencies) == ([], [])


async def test_another_address_is_another_server(sensor: EndpointSensor, server: Server) -> None:
    other = Server()
    async with listening(server) as first, listening(other) as second:
        server.pages["/metrics"] = (200, metrics(tokens=5))
        assert not (await sensor.sample(first, stamp(100))).active
        assert not (await sensor.sample(second, stamp(101))).active
    assert (len(server.asked), len(other.asked)) == (2, 2)
