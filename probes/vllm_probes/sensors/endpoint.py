"""How the server answers: /health and /metrics, never a request that costs it anything.

/health of vLLM does not ask the engine: a hung engine answers 200. That it answers shows that the front end lives.
"""

import asyncio
from collections.abc import Iterator

from vllm_probes.events import EndpointSampled, Stamp
from vllm_probes.judges.address import Address
from vllm_probes.judges.latency import Look, remember, windows
from vllm_probes.judges.metrics import parse_histograms, parse_metrics
from vllm_probes.rows import EngineSample, LatencyWindow
from vllm_probes.sensors.answers import Answer, ask, http_client

TIMEOUT_S = 2.0
HEALTH_EVERY_S = 5.0
"""Each look at /health leaves an access line in the user's log; /metrics tells that the server answers, too."""
LATENCIES_EVERY_S = 5.0
"""Buckets are most of the page: of eight engines they take twice as long to read as everything else."""
ACTIVE_HOLD_S = 3.0


class EndpointSensor:
    """Asks the server of an attempt; its connections are kept open between looks."""

    def __init__(self) -> None:
        self._server: _Server | None = None

    async def sample(self, address: Address, stamp: Stamp) -> EndpointSampled:
        """One look: two seconds at most, four when a server has just stopped answering.

        Never raises: what went wrong is in `health` and `error`.
        `latencies` are renewed every few seconds; empty before there are two looks to compare, and where none is known.
        `latency_s` is that of /metrics, or of /health where only that answered. `own_clients` are written as uvicorn
        writes them (`127.0.0.1:53422`): the connections of this look and of the one before.
        """
        if self._server is None or self._server.address != address:
            await self.close()
            self._server = _Server(address)
        return await self._server.sample(stamp)

    async def close(self) -> None:
        """Close the connections; the sensor can be used again."""
        if self._server is not None:
            await self._server.client.aclose()
        self._server = None


class _Server:
    """One address, and what is remembered of it between looks."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.client = http_client(address)
        self._health: Answer | None = None
        self._health_mono = 0.0
        self._looks: tuple[Look, ...] = ()
        self._latencies: list[LatencyWindow] = []
        self._count: float | None = None
        self._moved_mono = float("-inf")
        self._clients: set[str] = set()

    async def sample(self, stamp: Stamp) -> EndpointSampled:
        mono = stamp["mono"]
        clients: set[str] = set()
        metrics, asked = await self._look(mono, clients)
        health = self._judge_health(metrics, asked, mono)
        engines, latencies, error = self._read(metrics, mono)
        seen, self._clients = self._clients | clients, clients
        return EndpointSampled(
            **stamp,
            url=self.address.url,
            health=health.health,
            status=health.status,
            latency_s=health.latency_s if metrics.latency_s is None else metrics.latency_s,
            active=self._is_active(engines, mono),
            own_clients=sorted(seen),
            engines=engines,
            latencies=latencies,
            error=health.error or error,
        )

    async def _look(self, mono: float, clients: set[str]) -> tuple[Answer, Answer | None]:
        """/metrics, and /health when it is due: one after the other while all is well, so that one connection does.

        Its port is all that tells our access lines from the user's: the fewer ports, the better.
        """
        if self._health is None:
            return await asyncio.gather(self._ask("/metrics", clients), self._ask("/health", clients))
        metrics = await self._ask("/metrics", clients)
        is_due = metrics.status is None or mono - self._health_mono >= HEALTH_EVERY_S
        return metrics, await self._ask("/health", clients) if is_due else None

    async def _ask(self, path: str, clients: set[str]) -> Answer:
        return await ask(self.client, self.address, path, timeout_s=TIMEOUT_S, clients=clients)

    def _judge_health(self, metrics: Answer, asked: Answer | None, mono: float) -> Answer:
        """The newest word on the health. Unless all is well the next look asks /health again."""
        known = asked or self._health
        current = known if known and (asked or metrics.status is not None) else metrics
        if asked is not None:
            self._health_mono = mono
        self._health = current if current.health == "ok" and metrics.status is not None else None
        return current

    def _read(self, metrics: Answer, mono: float) -> tuple[list[EngineSample], list[LatencyWindow], str | None]:
        """The engines of the page, the latest windows, and why there are none."""
        if metrics.status != 200:
            return [], [], metrics.error or f"/metrics answered {metrics.status}."
        try:
            engines = parse_metrics(metrics.text)
            if not self._looks or mono - self._looks[-1].mono >= LATENCIES_EVERY_S:
                self._looks = remember(self._looks, Look(mono, parse_histograms(metrics.text)))
                self._latencies = windows(self._looks)
        except ValueError as error:
            return [], [], f"/metrics cannot be read: {error}"
        return engines, self._latencies, None

    def _is_active(self, engines: list[EngineSample], mono: float) -> bool:
        count = sum(_counts(engines)) if engines else self._count
        if self._count is not None and count != self._count:
            self._moved_mono = mono
        self._count = count
        has_requests = any((engine.running or 0) + (engine.waiting or 0) > 0 for engine in engines)
        return has_requests or mono - self._moved_mono < ACTIVE_HOLD_S


def _counts(engines: list[EngineSample]) -> Iterator[float]:
    """Everything that a request moves."""
    for engine in engines:
        for count in (engine.prompt_tokens, engine.generation_tokens, engine.iterations, engine.finished_requests):
            yield count or 0.0
