"""One HTTP request to a server of this host, and what came of it."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_probes.events import Health
from vllm_probes.judges.address import Address

if TYPE_CHECKING:
    import httpx

KEEP_ALIVE_S = 4.0
"""Shorter than uvicorn's 5 s, so that no request meets a connection that the server is just closing."""


class Answer(NamedTuple):
    health: Health
    status: int | None = None
    """None: there was no answer."""
    latency_s: float | None = None
    text: str = ""
    error: str | None = None


def http_client(address: Address) -> "httpx.AsyncClient":
    """Straight to the address: no proxy of the environment, and no look at the certificate of our own server."""
    import httpx  # slow to import, and a view waits for the keeper: not before there is a server

    transport = httpx.AsyncHTTPTransport(
        verify=False,
        trust_env=False,
        uds=address.uds,
        limits=httpx.Limits(max_connections=4, keepalive_expiry=KEEP_ALIVE_S),
    )
    return httpx.AsyncClient(transport=transport, trust_env=False, timeout=None)


async def ask(
    client: "httpx.AsyncClient",
    address: Address,
    path: str,
    *,
    timeout_s: float,
    clients: set[str],
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """GET, or with a body (sent as JSON) POST. Never raises: what went wrong is in `health` and `error`.

    Our ends of the connections are added to `clients` as uvicorn writes them (`127.0.0.1:53422`).
    """
    import httpx

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":  # counts even if no answer comes
            clients.update(_client_address(info["return_value"]))

    method = "GET" if body is None else "POST"
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.request(
                method, _base_url(address) + path, json=body, headers=headers, extensions={"trace": trace}
            )
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return _failure(error, timeout_s)
    clients.update(_client_address(response.extensions["network_stream"]))
    return Answer(
        "ok" if response.is_success else "unhealthy",
        response.status_code,
        response.elapsed.total_seconds(),
        response.text,
    )


def _base_url(address: Address) -> str:
    scheme = "https" if address.tls else "http"
    return f"{scheme}://localhost" if address.uds else address.url


def _client_address(stream: Any) -> list[str]:
    address = stream.get_extra_info("client_addr")
    return [f"{address[0]}:{address[1]}"] if isinstance(address, tuple) else []


def _failure(error: Exception, timeout_s: float) -> Answer:
    if isinstance(error, TimeoutError):
        return Answer("timeout", error=f"No answer within {timeout_s:g} s.")
    if any(isinstance(cause, (ConnectionRefusedError, FileNotFoundError)) for cause in _causes(error)):
        return Answer("refused", error="Nobody listens there.")
    return Answer("unreachable", error=str(error) or type(error).__name__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and the members of groups: httpx wraps what the kernel said."""
    yield error
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for cause in (error.__cause__ or error.__context__, *members):
        if cause is not None:
            yield from _causes(cause)
