"""Where a server listens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.judges.address import Address, address_from_command, address_from_url


def command(*options: str) -> list[str]:
    return ["vllm", "serve", "m", *options]


@pytest.mark.parametrize(
    ("argv", "address"),
    [
        (command(), Address()),
        (command("--port", "8123"), Address(port=8123)),
        (command("--port=8123", "--host=0.0.0.0"), Address(port=8123)),
        (command("--port", "1", "--port", "2"), Address(port=2)),
        (command("--host", "::"), Address(host="::1")),
        (command("--host", "10.1.2.3"), Address(host="10.1.2.3")),
        (command("--uds", "/run/v.sock", "--port", "1"), Address(uds="/run/v.sock")),
        (command("--ssl-keyfile", "k", "--ssl_certfile=c"), Address(tls=True)),
        (command("--ssl-keyfile", "k"), Address()),
        (command("--api-server-count", "4", "--root-path", "/x", "--port", "9"), Address(port=9)),
        (["/v/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--port", "9"], Address(port=9)),
        (["srun", "-N1", "env", "A=1", "/v/bin/vllm", "serve", "m", "--port", "9"], Address(port=9)),
        (["bash", "-lc", "cd /x && exec vllm serve m --port 9 > log 2>&1; echo --port 7"], Address(port=9)),
        (["bash", "-c", "vllm serve m \\\n  --host :: \\\n  --port $PORT\necho"], Address(host="::1", port=8765)),
        (["timeout", "9", "sh", "-ec", "vllm serve 'a b' --port ${PORT}"], Address(port=8765)),
        (["vllm", "launch", "render", "m", "--port", "9"], Address(port=9)),
    ],
)
def test_address_from_command(argv: list[str], address: Address) -> None:
    assert address_from_command(argv, {"PORT": "8765"}) == address


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["bash", "run.sh", "--port", "9"],
        ["bash", "-c", "vllm serve m --port $(pick)"],
        ["bash", "-c", "vllm serve m --port $MISSING"],
        ["bash", "-c", "vllm serve 'm"],
        ["vllm", "chat", "--url", "http://x:1"],
        ["vllm", "bench", "serve", "--port", "9"],
        command("--config", "c.yaml"),
        command("--config=c.yaml", "--port", "9"),
        command("--headless"),
        command("--port", "0"),
        command("--port", "99999"),
        command("--port"),
    ],
)
def test_unknown_is_none(argv: list[str]) -> None:
    assert address_from_command(argv, {}) is None


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://0.0.0.0:8123", Address(port=8123)),
        ("https://[::]:8000", Address(host="::1", tls=True)),
        ("http://[fe80::1]:7", Address(host="fe80::1", port=7)),
        ("http://node-1:7", Address(host="node-1", port=7)),
        ("https://h", Address(host="h", port=443, tls=True)),
        ("unix:/run/v.sock", Address(uds="/run/v.sock")),
        ("http://h:99999", None),
        ("http://h:0", None),
        ("ftp://h:1", None),
        ("http://[::1", None),
        ("", None),
    ],
)
def test_address_from_url(url: str, address: Address | None) -> None:
    assert address_from_url(url) == address


@given(st.integers(1, 65535), st.sampled_from(["127.0.0.1", "::1", "h"]), st.booleans())
def test_url_round_trip(port: int, host: str, tls: bool) -> None:
    address = Address(host=host, port=port, tls=tls)
    assert address_from_url(address.url) == address


@given(st.lists(st.text(max_size=20)), st.text())
def test_never_raises(words: list[str], code: str) -> None:
    address_from_command(["vllm", "serve", *words], {})
    address_from_command(["bash", "-c", f"vllm serve {code}"], {})
    address_from_url(code)
    address_from_url(f"http://{code}")
