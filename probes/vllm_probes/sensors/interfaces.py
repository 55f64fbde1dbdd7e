"""The network addresses of this host."""

import socket

import psutil

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def addresses() -> dict[str, list[str]]:
    """IPv4 and IPv6 addresses of each interface that has any, by its name; those of one link alone (`fe80::1%eth0`)
    lead no other node here and are left out. Empty where they cannot be read."""
    try:
        interfaces = psutil.net_if_addrs()
    except OSError:
        return {}
    found = {
        name: [one.address for one in ones if one.family in _FAMILIES and "%" not in one.address]
        for name, ones in interfaces.items()
    }
    return {name: ones for name, ones in found.items() if ones}
