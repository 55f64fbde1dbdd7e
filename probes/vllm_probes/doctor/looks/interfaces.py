"""The network interfaces of this host with their addresses."""

import socket

import psutil

from vllm_probes.doctor.facts import Interface, InterfaceFacts

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def look() -> InterfaceFacts:
    states = psutil.net_if_stats()
    return InterfaceFacts(
        interfaces=[
            Interface(
                name=name,
                addresses=[one.address.partition("%")[0] for one in addresses if one.family in _FAMILIES],
                is_running=name in states and states[name].isup,
            )
            for name, addresses in psutil.net_if_addrs().items()
        ]
    )
