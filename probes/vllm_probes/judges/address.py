"""Where a vLLM server listens, from its command line or from what it logged."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from vllm_probes.judges.commandline import options, server_arguments, server_words

DEFAULT_PORT = 8000
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where to reach a server that listens everywhere."""
_UNKNOWABLE = ("--config", "--headless")
"""A YAML file that may say anything about the address; a node that has no server."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Several API servers (`--api-server-count`) share one. vLLM answers without `--root-path` in the path, too."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    uds: str | None = None
    """Path of a unix socket: then host and port mean nothing."""
    tls: bool = False

    @property
    def url(self) -> str:
        """As people write it: `http://127.0.0.1:8000`, `unix:/run/vllm.sock`."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def address_from_command(argv: Sequence[str], env: Mapping[str, str]) -> Address | None:
    """Where a server started like this will listen; wrappers and `bash -c CODE` are looked through.

    `env` fills in variables inside such code. None where the command line does not tell: it starts no vLLM server, has
    a config file, or a value that only the shell can work out.
    """
    arguments = server_arguments(server_words(argv, env))
    return None if arguments is None else _from_options(options(arguments))


def address_from_url(url: str) -> Address | None:
    """The address in the log's "Starting vLLM server on URL" (entrypoints/launchers/launcher.py of 0.32).

    None where it is none.
    """
    if url.startswith("unix:"):
        return Address(uds=url.removeprefix("unix:").removeprefix("//"))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or port == 0:
        return None
    tls = parts.scheme == "https"
    return Address(host=reachable(parts.hostname or ""), port=port or (443 if tls else 80), tls=tls)


def _from_options(given: Mapping[str, str]) -> Address | None:
    if any(option in given for option in _UNKNOWABLE):
        return None
    tls = "--ssl-keyfile" in given and "--ssl-certfile" in given
    if uds := given.get("--uds"):
        return Address(uds=uds, tls=tls)
    port = given.get("--port", str(DEFAULT_PORT))
    if not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    return Address(host=reachable(given.get("--host", "")), port=int(port), tls=tls)


def reachable(host: str) -> str:
    """Where to reach a server that listens there: one that listens everywhere does so on the loopback, too."""
    return _LOOPBACK.get(host, host)
