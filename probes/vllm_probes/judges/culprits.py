"""Who holds a run up, from one look at the stacks of all its processes, if anything does: that is asked elsewhere."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from vllm_probes.judges.doing import Doing
from vllm_probes.judges.frames import Classified
from vllm_probes.judges.titles import parts
from vllm_probes.rows import Culprit, ProcessRow, Role

Kind = Literal[
    "process_stopped",
    "load_stuck",
    "download_stuck",
    "startup_stuck",
    "rank_absent",
    "collective_mismatch",
    "gpu_stuck",
    "worker_stuck",
    "lost_message",
    "engine_stuck",
    "frontend_stuck",
    "unknown",
]
"""Of hangs, the first that fits."""

_BETWEEN_TWO = ("recv", "send", "irecv", "isend")
"""Operations of a stage with the one before or behind it."""
TAKES_PART: frozenset[Role] = frozenset(("command", "api_server", "engine_core", "worker", "coordinator"))
WAITS_FOR_PEERS = frozenset(("collective", "gpu_sync"))
WAITS_FOR_OTHERS = frozenset(("idle", "startup_wait", "waiting_for_worker"))


class Standing(msgspec.Struct, frozen=True):
    """One process and what it does."""

    row: ProcessRow
    classified: Classified
    doing: Doing
    frame: str | None
    failed: bool = False
    """It has logged an exception since the last progress."""
    is_loading: bool = False
    """It is somewhere in the loading of the model."""
    is_managed: bool = False
    """It carries out a call that is no step: it goes to sleep, loads an adapter, takes new weights."""
    is_stepping: bool = False
    """It carries out a step of the engine: whatever the log said last, its start is over."""
    is_meeting: bool = False
    """It sets up the communication among all ranks, of all nodes."""
    is_blind: bool = False
    """Its stacks cannot be read, and the kernel does not say enough either."""
    is_on_gpu: bool = False
    """Another of its threads waits for the GPU."""

    @property
    def culprit(self) -> Culprit:
        row = self.row
        return Culprit(process=row.process, pid=row.pid, rank=row.rank, doing=self.doing, frame=self.frame)


class Hang(msgspec.Struct, frozen=True):
    """What kind of hang it looks like, who is at fault, and who waits."""

    kind: Kind
    culprits: tuple[Standing, ...] = ()
    waiting: tuple[Standing, ...] = ()
    is_guess: bool = False
    """It rests on the CPU that processes use, since their stacks cannot be read; or a debugger is what stops them."""


def find_hang(
    standings: Sequence[Standing],
    start_phase: str | None,
    gpus_idle: Mapping[int, bool],
    working: Collection[int] = (),
) -> Hang | None:
    """The hang that these processes would be in if nothing moved; None: they wait for work, as a healthy server does.

    `start_phase`: None: it does not start any more. `gpus_idle`: rank -> whether its GPU does nothing; empty where
    nobody can tell. `working`: pids of those that use a core.
    """
    if stopped := _of(standings, lambda one: one.doing == "stopped" and one.row.role in TAKES_PART):
        is_debugged = all(one.row.state[:1] == "t" for one in stopped)
        return Hang("process_stopped", stopped, _without(standings, stopped), is_guess=is_debugged)
    sighted = _of(standings, lambda one: not one.is_blind)
    found = _among_workers(sighted, gpus_idle)
    if found is None or not found.culprits:
        found = _among_blind(standings, working) or found
    elif found.kind == "worker_stuck" and (spinning := _spinning(standings, working)):
        found = Hang("rank_absent", found.culprits, spinning)
    if found is None or not found.culprits:
        found = _in_front(sighted) or found
    found = _between_engines(sighted, found) or found or _above_workers(sighted)
    if found is None or start_phase is None or any(one.is_stepping for one in standings):
        return found
    return replace(found, kind=_startup_kind(found, start_phase))


def narrowed(hang: Hang, pids: Collection[int]) -> Hang:
    """With those of its culprits alone who are among `pids`."""
    culprits = _of(hang.culprits, lambda one: one.row.pid in pids)
    return replace(hang, culprits=culprits)


def _among_blind(standings: Sequence[Standing], working: Collection[int]) -> Hang | None:
    """Ranks that rest while others spin: whoever waits for peers spins, on a CPU (vLLM 0.32) and on GPUs."""
    workers = _of(standings, lambda one: one.row.role == "worker")
    absent = _of(workers, lambda one: one.is_blind and one.row.pid not in working)
    spinning = _spinning(standings, working)
    return Hang("rank_absent", absent, spinning, is_guess=True) if absent and spinning else None


def _spinning(standings: Sequence[Standing], working: Collection[int]) -> tuple[Standing, ...]:
    """Ranks in a collective, as their stacks say, or where those cannot be read as their CPU does."""
    workers = _of(standings, lambda one: one.row.role == "worker")
    return _of(
        workers, lambda one: one.classified.class_ in WAITS_FOR_PEERS or (one.is_blind and one.row.pid in working)
    )


def _among_workers(standings: Sequence[Standing], gpus_idle: Mapping[int, bool]) -> Hang | None:
    """A rank that is not where the others wait for it; ranks that wait for each other; ranks that all do something.

    An operator of torch computes, or waits for peers inside a compiled graph: such a rank is at fault only where nobody
    else can be.
    """
    workers = _of(standings, lambda one: one.row.role == "worker")
    peers = _of(workers, lambda one: one.classified.class_ in WAITS_FOR_PEERS)
    idle = _of(workers, lambda one: one.classified.class_ in WAITS_FOR_OTHERS)
    operators = _of(workers, lambda one: one.classified.class_ == "torch_op")
    stuck = _without(workers, (*peers, *idle, *operators))
    if stuck:
        waiting = (*peers, *operators)
        return (
            Hang("rank_absent", stuck, waiting) if waiting else Hang("worker_stuck", stuck, _without(standings, stuck))
        )
    if peers and (absent := _absent(idle, operators, peers)):
        return Hang("rank_absent", absent, peers)
    if peers:
        return _all_in_collectives(peers, gpus_idle)
    if operators:
        return Hang("worker_stuck", operators, idle) if idle else Hang("gpu_stuck", (), operators)
    return _all_idle(standings, idle, gpus_idle)


def _absent(
    idle: tuple[Standing, ...], operators: tuple[Standing, ...], peers: tuple[Standing, ...]
) -> tuple[Standing, ...]:
    """Those for whom the peers wait: whoever has failed, else of the same stage, else of the same replica.

    With pipeline or data parallelism others are idle for good reasons.
    """
    if failed := _of(idle, lambda one: one.failed):
        return failed
    for wanted in (("DP", "PP"), ("DP",), ()):
        circles = [_circle(peer, wanted) for peer in peers]
        for candidates in (idle, operators):
            if near := tuple(one for one in candidates if _circle(one, wanted) in circles):
                return near
    return ()


def _circle(one: Standing, wanted: Sequence[str]) -> list[tuple[str, int]]:
    """`[("DP", 0), ("PP", 1)]` of `Worker_DP0_PP1_TP3`; empty where the name does not tell."""
    return [(part, number) for part, number in parts(one.row.process).items() if part in wanted]


def _all_in_collectives(peers: tuple[Standing, ...], gpus_idle: Mapping[int, bool]) -> Hang:
    in_calls = _of(peers, lambda one: one.classified.class_ == "collective")
    among_all = _of(in_calls, lambda one: not (one.classified.operation or "").startswith(_BETWEEN_TWO))
    calls: dict[object, list[Standing]] = {}
    for one in among_all or in_calls:
        calls.setdefault((one.classified.operation, one.classified.site), []).append(one)
    if len(calls) < 2:
        away = _of(peers, lambda one: gpus_idle.get(-1 if one.row.rank is None else one.row.rank, False))
        return (
            Hang("rank_absent", away, _without(peers, away))
            if 0 < len(away) < len(peers)
            else Hang("gpu_stuck", (), peers)
        )
    smallest = min(len(group) for group in calls.values())
    is_split = sum(len(group) == smallest for group in calls.values()) > 1
    odd = among_all if is_split else tuple(one for group in calls.values() if len(group) == smallest for one in group)
    return Hang("collective_mismatch", odd, _without(peers, odd))


def _all_idle(standings: Sequence[Standing], idle: tuple[Standing, ...], gpus_idle: Mapping[int, bool]) -> Hang | None:
    """Python waits everywhere though the engine waits for an answer: it is on the GPUs, or an answer was lost."""
    engines = _of(standings, lambda one: one.row.role == "engine_core")
    asking = _of(engines, lambda one: one.classified.class_ == "waiting_for_worker")
    if not idle or not asking:
        return None
    if failed := _of(idle, lambda one: one.failed):
        return Hang("rank_absent", failed, _without(idle, failed))
    ranks = [(one, gpus_idle[one.row.rank]) for one in idle if one.row.rank is not None and one.row.rank in gpus_idle]
    still = tuple(one for one, is_idle in ranks if is_idle)
    if not ranks and any(one.is_on_gpu for one in idle):
        return Hang("gpu_stuck", (), idle)
    if not ranks or len(still) == len(ranks):
        return Hang("lost_message", (), idle)
    return Hang("rank_absent", still, _without(idle, still)) if still else Hang("gpu_stuck", (), idle)


def _between_engines(standings: Sequence[Standing], found: Hang | None) -> Hang | None:
    """A coordinator that is held up wakes no engine, so whoever waits for those is not at fault (vLLM 0.32,
    `DPCoordinatorProc.process_input_socket`)."""
    if found is not None and any(one.classified.class_ not in WAITS_FOR_OTHERS for one in found.culprits):
        return None
    coordinators = _of(standings, lambda one: one.row.role == "coordinator")
    stuck = _of(coordinators, lambda one: one.classified.class_ not in WAITS_FOR_OTHERS)
    return Hang("engine_stuck", stuck, _without(standings, stuck)) if stuck else None


def _above_workers(standings: Sequence[Standing]) -> Hang | None:
    """The engine, the front end, or a program that is no server."""
    engines = _of(standings, lambda one: one.row.role == "engine_core")
    if stuck := _of(engines, lambda one: one.classified.class_ not in WAITS_FOR_OTHERS):
        on_gpu = all(one.classified.class_ == "gpu_sync" for one in stuck)
        return Hang("gpu_stuck" if on_gpu else "engine_stuck", stuck, _without(standings, stuck))
    has_front = _of(standings, lambda one: one.row.role == "api_server")
    if has_front or (not engines and _of(standings, lambda one: one.row.role == "worker")):
        return None
    programs = _of(standings, lambda one: one.row.role in ("command", "other"))
    stuck = _of(programs, lambda one: one.classified.class_ not in WAITS_FOR_OTHERS)
    return Hang("unknown", stuck) if stuck else None


def _in_front(standings: Sequence[Standing]) -> Hang | None:
    """A front end that is held up; the engine may be at work meanwhile, though its counters cannot be had."""
    engines = _of(standings, lambda one: one.row.role == "engine_core")
    if any(one.classified.class_ not in (*WAITS_FOR_OTHERS, "gpu_sync", "torch_op") for one in engines):
        return None
    fronts = _of(standings, lambda one: one.row.role == "api_server")
    stuck = _of(fronts, lambda one: one.classified.class_ not in WAITS_FOR_OTHERS)
    return Hang("frontend_stuck", stuck, _without(standings, stuck)) if stuck else None


def _startup_kind(found: Hang, phase: str) -> Kind:
    classes = {one.classified.class_ for one in found.culprits}
    if classes & {"network", "file_lock"} or phase == "download":
        return "download_stuck"
    if "disk" in classes or any(one.is_loading for one in found.culprits) or phase in ("weights", "model_init"):
        return "load_stuck"
    return "startup_stuck"


def _of(standings: Sequence[Standing], is_wanted: Callable[[Standing], bool]) -> tuple[Standing, ...]:
    return tuple(one for one in standings if is_wanted(one))


def _without(standings: Sequence[Standing], others: Sequence[Standing]) -> tuple[Standing, ...]:
    return tuple(one for one in standings if one not in others)


# --- words ------------------------------------------------------------------------------------------------------------

_DOING_WORDS: dict[Doing, str] = {
    "stopped": "is stopped",
    "collective": "is in a collective",
    "gpu_sync": "waits for its GPU",
    "compile": "compiles",
    "idle": "waits for work",
    "uninterruptible": "hangs in the kernel",
    "subprocess": "waits for a child process",
    "socket": "waits on a socket",
    "read": "waits for a file or pipe",
    "sleep": "sleeps",
    "lock": "waits for a lock",
    "python_loop": "runs Python code",
    "native_loop": "runs native code",
    "unknown": "does not get on",
}


def said(standing: Standing) -> str:
    """`all_reduce`, `waits for workers`, `waits for a lock`: what it does, in a few words."""
    match standing.classified.class_:
        case "collective" if standing.doing == "collective":
            return standing.classified.operation or "a collective"
        case "waiting_for_worker" if standing.doing != "stopped":
            return "waits for workers"
        case "startup_wait" if standing.doing != "stopped":
            return "waits for the start of others"
    return _DOING_WORDS[standing.doing]


def summary(hang: Hang) -> str:
    """`Worker_TP3 waits for a lock: acquire (pool.py:88); 7 processes wait for it.`."""
    if not hang.culprits:
        return _NOBODY.get(hang.kind, "Nothing moves, and the stacks do not tell why.")
    first = hang.culprits[0]
    where = f": {first.frame}" if first.frame else ""
    others = f" and {len(hang.culprits) - 1} more" if len(hang.culprits) > 1 else ""
    waiting = len(hang.waiting)
    wait = f"; {waiting} {'process waits' if waiting == 1 else 'processes wait'} for it" if waiting else ""
    return f"{first.row.process}{others} {_DOING_WORDS[first.doing]}{where}{wait}."


_NOBODY: dict[Kind, str] = {
    "gpu_stuck": "All ranks wait for their GPUs: kernels do not end. Stacks cannot tell which GPU is at fault.",
    "lost_message": "The engine waits for an answer, and every worker for work: a message between them was lost.",
}


def said_together(standings: Sequence[Standing]) -> Iterator[tuple[str, str, Standing]]:
    """(names, what they do, the first of them), those that do the same together: `Worker_TP0 and 6 more`."""
    groups: dict[str, list[Standing]] = {}
    for one in standings:
        place = f": {one.frame}" if one.frame else ""
        does = f"is in {said(one)}" if one.doing == "collective" else said(one)
        groups.setdefault(f"{does}{place}", []).append(one)
    for words, members in groups.items():
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        yield f"{members[0].row.process}{more}", words, members[0]
