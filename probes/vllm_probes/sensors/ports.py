"""Who listens on a TCP port of this host."""

from pathlib import Path

import psutil

from vllm_probes.judges.address import reachable

_ESTABLISHED, _LISTEN = "01", "0A"
_OWN_NET = Path("/proc/self/net")


def is_taken(port: int) -> bool:
    """Whether anything listens there, on any address of this network namespace (/proc/net/tcp, proc(5)).

    Connections that linger after a server's end do not count: vLLM binds with SO_REUSEADDR.
    """
    return any(_listens(line, port) for name in ("tcp", "tcp6") for line in _lines(_OWN_NET / name))


def listener(port: int) -> int | None:
    """The pid of a process that listens there; None where it is not ours to see. Looks at every process of the host."""
    sockets = psutil.net_connections("tcp")
    return next(
        (one.pid for one in sockets if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port), None
    )


def listening(pid: int) -> list[tuple[str, int]]:
    """Address and port of each TCP socket that a process listens on, lowest port first; none where it is not ours to
    see."""
    try:
        sockets = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return []
    found = {(one.laddr.ip, one.laddr.port) for one in sockets if one.status == psutil.CONN_LISTEN and one.laddr}
    return sorted(((reachable(ip), port) for ip, port in found), key=lambda one: one[1])


def client_ports(port: int, net: Path = _OWN_NET) -> set[int]:
    """The other ends' ports of the connections that are open to a port of this host.

    `net`: /proc/PID/net of a process of another network namespace, whose connections are meant.
    """
    wanted = f":{port:04X} "  # thousands of other connections may be listed
    lines = (line for name in ("tcp", "tcp6") for line in _lines(net / name))
    fields = [line.split() for line in lines if wanted in line]
    return {_port(one[2]) for one in fields if one[3] == _ESTABLISHED and _port(one[1]) == port}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()[1:]
    except OSError:
        return []


def _listens(line: str, port: int) -> bool:
    fields = line.split()
    return fields[3] == _LISTEN and _port(fields[1]) == port


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
