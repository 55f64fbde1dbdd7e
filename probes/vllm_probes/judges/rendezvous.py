"""Where ranks were told to meet, held against the addresses that this host has."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

_NAMED_ADDRESSES = 6

Addresses = Mapping[str, Sequence[str]]
"""Of each interface of a host, by its name."""


def facts(addresses: Addresses, init_method: str | None) -> dict[str, str]:
    """For the advice of rules: `own_addresses`, what this host has but for loopback; `meeting_place`, whose address it
    is that `distributed_init_method` has (`tcp://10.0.0.5:29501`).

    Neither where nobody knows the addresses of the run's host; no `meeting_place` where it is a name or a file.
    """
    if not addresses:
        return {}
    own = [f"{name} {one}" for name, ones in addresses.items() for one in ones if not _is_loopback(one)]
    told = ", ".join(own[:_NAMED_ADDRESSES]) + (" and more" if len(own) > _NAMED_ADDRESSES else "") or "loopback alone"
    place = _address(init_method or "")
    return {"own_addresses": told} | ({"meeting_place": _whose(place, addresses)} if place else {})


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _whose(place: IPv4Address | IPv6Address, addresses: Addresses) -> str:
    if place.is_loopback:
        return f"{place} is this host alone, where ranks on other nodes never come"
    name = next((name for name, ones in addresses.items() if str(place) in ones), None)
    if name is None:
        return f"{place} is no address of this host, which is right only where it is not the first node"
    return f"{place} is {name} of this host"


def _address(init_method: str) -> IPv4Address | IPv6Address | None:
    try:
        url = urlsplit(init_method)
        return ip_address(url.hostname or "") if url.scheme == "tcp" else None
    except ValueError:
        return None
