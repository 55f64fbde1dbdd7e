"""The address of the first rank. A name server that does not answer holds the look for long."""

import os
import socket

from vllm_probes.doctor.facts import MasterFacts


def look() -> MasterFacts:
    name = os.environ.get("MASTER_ADDR")
    if not name:
        return MasterFacts()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        return MasterFacts(name=name, error=reason or str(error))
    addresses = [str(address[0]).partition("%")[0] for *_, address in found]
    return MasterFacts(name=name, addresses=list(dict.fromkeys(addresses)))
