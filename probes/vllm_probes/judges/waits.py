"""Who waits for whom: front end, engine, workers, peers, GPU."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vllm_probes.judges.culprits import Standing
from vllm_probes.judges.titles import parts
from vllm_probes.rows import Role


class Edge(NamedTuple):
    """`waiter` waits for `target`, both by pid; None: for the GPU. `what`: in one word, or the collective."""

    waiter: int
    target: int | None
    what: str


_FOR_WHAT = {"idle": "work", "startup_wait": "start", "waiting_for_worker": "answer"}


def wait_for(standings: Mapping[int, Standing]) -> list[Edge]:
    """Who waits for whom, in the order of the processes: front-end, engine, workers, peers, GPU.

    A process that waits for work waits for the one that gives it: so an engine and its workers that wait for each other
    are seen. A front-end waits for clients, or for an engine that has something to do.
    """
    return [edge for pid, standing in standings.items() for edge in _edges(pid, standing, standings)]


def waits_for_nobody(standings: Mapping[int, Standing], edges: Iterable[Edge]) -> list[int]:
    """The ends of all chains: whoever is waited for and does not wait is what the rest hangs on."""
    waiters = {edge.waiter for edge in edges}
    return [pid for pid in standings if pid not in waiters]


def gathered(edges: Iterable[Edge]) -> dict[tuple[frozenset[int | None], str], list[int]]:
    """Those who wait for the same targets and the same thing, in the order of the edges."""
    targets: dict[tuple[int, str], set[int | None]] = {}
    for edge in edges:
        targets.setdefault((edge.waiter, edge.what), set()).add(edge.target)
    together: dict[tuple[frozenset[int | None], str], list[int]] = {}
    for (waiter, what), ones in targets.items():
        together.setdefault((frozenset(ones), what), []).append(waiter)
    return together


def _edges(pid: int, standing: Standing, standings: Mapping[int, Standing]) -> list[Edge]:
    doing = standing.classified.class_
    if doing == "gpu_sync":
        return [Edge(pid, None, "gpu")]
    if doing == "collective":
        what = standing.classified.operation or "collective"
        return [Edge(pid, peer, what) for peer in _absent_peers(pid, standings)] or [Edge(pid, None, what)]
    if doing not in _FOR_WHAT:
        return []
    return [Edge(pid, target, _FOR_WHAT[doing]) for target in _targets(standing, standings)]


def _targets(standing: Standing, standings: Mapping[int, Standing]) -> list[int]:
    """Whom one waits for that is idle, starting or waiting for an answer."""
    busy = {other for other, one in standings.items() if one.classified.class_ != "idle"}
    engines = _of_same_replica(standing, standings, "engine_core")
    match standing.row.role:
        case "worker":
            return engines
        case "engine_core":
            workers = _of_same_replica(standing, standings, "worker")
            if standing.classified.class_ == "idle" or not workers:
                return [other for other, one in standings.items() if one.row.role == "api_server"]
            return [worker for worker in workers if worker in busy] or workers
        case "coordinator" | "resource_tracker" | "compiler":
            return []
    return [engine for engine in engines if engine in busy]


def _of_same_replica(standing: Standing, standings: Mapping[int, Standing], role: Role) -> list[int]:
    """Processes of a role in the same replica of data parallelism; all of them where the names do not tell."""
    found = {pid: one for pid, one in standings.items() if one.row.role == role}
    replica = parts(standing.row.process).get("DP")
    same = [pid for pid, one in found.items() if parts(one.row.process).get("DP") == replica]
    return same or list(found)


def _absent_peers(pid: int, standings: Mapping[int, Standing]) -> list[int]:
    """Who is not there: in the narrowest circle of ranks where somebody is in no collective, else in another one.

    The circles are the stage, the replica, and all of the same role. Empty: everybody is there, so the GPUs are waited
    for.
    """
    own = standings[pid]
    peers = {other: one for other, one in standings.items() if other != pid and one.row.role == own.row.role}
    place, places = parts(own.row.process), {other: parts(one.row.process) for other, one in peers.items()}
    for is_away in (_is_in_none, lambda one: one.classified.operation != own.classified.operation):
        for wanted in (("DP", "PP"), ("DP",), ()):
            circle = [one for one in peers if all(places[one].get(part) == place.get(part) for part in wanted)]
            if away := [one for one in circle if is_away(peers[one])]:
                return away
    return []


def _is_in_none(standing: Standing) -> bool:
    return standing.classified.class_ not in ("collective", "gpu_sync")
