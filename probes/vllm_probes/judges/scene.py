"""What one look at stacks shows against the look before: who works, who moves, and whether that is getting on."""

from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Literal

import msgspec

from vllm_probes.events import SERVER_STATES, State
from vllm_probes.judges.culprits import WAITS_FOR_PEERS, Hang, Standing
from vllm_probes.judges.doing import Doing
from vllm_probes.judges.looks import Look
from vllm_probes.judges.stackmerge import Motion, moving
from vllm_probes.rows import ProcessRow, StackFile, ThreadStack

Stage = Literal["starts", "serves", "runs"]
"""`runs`: a program that is no server, as far as anybody can see; nothing of it is counted."""

WORKING_SHARE = 0.3
COMPILING_PERCENT = 10.0
"""Of a core. Less may be the last that was told of a compiler that rests."""
TICKS_PER_S = 100
"""Of /proc (sysconf SC_CLK_TCK), on every Linux that vLLM runs on."""
OPERATOR_GRACE_S = 60.0
"""How long a server may be in operators of torch: a prefill on the CPU that is larger than any measured."""
INPUT_GRACE_S = 30.0
"""… and in what prepares a request: a long text to split into tokens, a grammar to build, modules to import."""
MOVING_GRACE_S = 5.0
"""… and in other code, as long as that runs through different functions."""
START_GRACE_S = 300.0
"""How long a start may compute, or run through different functions: an import, a conversion."""
_EVENT_LOOPS = ("uvloop/", "asyncio/")
_INPUT = frozenset(("tokenising", "grammar"))
_RESTS: frozenset[Doing] = frozenset(("lock", "sleep", "read", "socket", "subprocess"))


def stage_of(state: State | None, *, is_counted: bool) -> Stage:
    """`is_counted`: its requests and tokens can be seen."""
    if state in SERVER_STATES:
        return "serves" if is_counted else "runs"
    return "runs" if state == "running" else "starts"


class Scene(msgspec.Struct, frozen=True):
    """One look."""

    standings: tuple[Standing, ...]
    motion: Mapping[str, Motion]
    """Of each process that the look before shows too, by pid."""
    working: frozenset[int]
    """The processes that have used much of a core since then …"""
    in_torch: frozenset[int]
    """… and those that are, or were then, in torch."""
    importing: frozenset[int]
    turning: frozenset[int]
    """Those whose event loop has gone from one callback to another."""
    compiles: bool
    receives: bool
    """A thread that waits for the network has woken up since then, as it had at the look before."""


class Before(msgspec.Struct, frozen=True):
    """What the next look is compared with."""

    looks: Mapping[int, Look]
    """By pid."""
    cpu_ticks: Mapping[int, int]
    """CPU of each process, by pid."""
    compile_ticks: int
    """CPU of threads that compile."""
    mono: float
    woke: bool = False
    """A thread that waits for the network had woken up."""

    @property
    def threads(self) -> dict[str, ThreadStack]:
        """The thread that told what a process does, by pid."""
        return {str(pid): look.thread for pid, look in self.looks.items()}


NOTHING_BEFORE = Before({}, {}, 0, 0.0)


def scene_of(
    looks: Sequence[Look], stacks: Sequence[StackFile], rows: Mapping[int, ProcessRow], before: Before, mono: float
) -> tuple[Scene, Before]:
    """What is seen, and what the next look has to be compared with."""
    now = Before(
        {look.standing.row.pid: look for look in looks},
        {file.pid: sum(thread.cpu_ticks or 0 for thread in file.threads) for file in stacks},
        sum(look.compile_ticks for look in looks),
        mono,
        woke=any(_woke(look, before.looks.get(look.standing.row.pid)) for look in looks),
    )
    least = WORKING_SHARE * (mono - before.mono) * TICKS_PER_S
    used = {pid: ticks - before.cpu_ticks.get(pid, ticks) for pid, ticks in now.cpu_ticks.items()}
    compilers = any(row.role == "compiler" and row.cpu_percent >= COMPILING_PERCENT for row in rows.values())
    scene = Scene(
        standings=tuple(look.standing for look in looks),
        motion=moving(before.threads, now.threads),
        working=frozenset(pid for pid, ticks in used.items() if ticks >= least > 0),
        in_torch=frozenset(
            int(pid) for threads in (before.threads, now.threads) for pid in threads if _in_torch(threads[pid])
        ),
        turning=frozenset(pid for pid, look in now.looks.items() if _turns(look, before.looks.get(pid))),
        importing=frozenset(int(pid) for pid, thread in now.threads.items() if _imports(thread)),
        compiles=compilers or now.compile_ticks > before.compile_ticks > 0,
        receives=now.woke and before.woke,
    )
    return scene, now


def _in_torch(thread: ThreadStack) -> bool:
    return bool(thread.frames) and thread.frames[0].file.startswith("torch/")


def _imports(thread: ThreadStack) -> bool:
    return any(frame.file.startswith("<frozen importlib") for frame in thread.frames)


def _woke(look: Look, before: Look | None) -> bool:
    """One that only tries again after each time-out wakes up too, but not between any two looks."""
    known = before.network if before else {}
    return any(count > known.get(thread, count) for thread, count in look.network.items())


def _turns(look: Look, before: Look | None) -> bool:
    """A callback that holds an event loop up stays where it is, whatever it calls."""
    if before is None or look.standing.row.role != "api_server":
        return False
    moves = look.thread.moves or before.thread.frames != look.thread.frames
    callback = _callback(look.thread)
    return bool(moves) and (callback is None or callback != _callback(before.thread))


def _callback(thread: ThreadStack) -> str | None:
    """The function that the event loop has called."""
    below_root = dropwhile(lambda frame: not frame.file.startswith(_EVENT_LOOPS), reversed(thread.frames))
    called = dropwhile(lambda frame: frame.file.startswith(_EVENT_LOOPS), below_root)
    return next((frame.function for frame in called), None)


def gets_on(hang: Hang, scene: Scene, held_s: float, stage: Stage, *, gpus_work: bool) -> bool:
    """Whoever seems to hold it up gets on still, for all that can be seen so far: it computes, or runs through code.

    `gpus_work`: they may, for all that is known of their power.
    """
    if gpus_work and _is_on_gpus(hang):
        return held_s < OPERATOR_GRACE_S
    operators = [one for one in hang.waiting if one.classified.class_ == "torch_op"]
    if stage == "serves":
        ones = hang.culprits or operators
        passes = any(_passes(one, scene) for one in hang.waiting)
        return bool(ones) and held_s < min(_grace_s(one, scene, passes=passes) for one in ones)
    if stage == "starts" and _is_alone(hang, scene):
        return False
    moves = [scene.motion.get(str(one.row.pid)) == "function" for one in hang.culprits]
    works = any(one.row.pid in scene.working for one in (*hang.culprits, *operators))
    if not hang.culprits and operators and held_s < OPERATOR_GRACE_S:
        return True
    is_patient = stage == "runs" or held_s < START_GRACE_S
    return is_patient and (works or (bool(moves) and all(moves)))


def _is_on_gpus(hang: Hang) -> bool:
    """It waits for kernels to end, which a long step does as well."""
    ones = hang.culprits or hang.waiting
    return hang.kind == "gpu_stuck" and any(one.classified.class_ == "gpu_sync" or one.is_on_gpu for one in ones)


def _passes(one: Standing, scene: Scene) -> bool:
    """It computes, or waits for peers, in another place than at the look before: so they have come meanwhile."""
    is_in_step = one.classified.class_ in (*WAITS_FOR_PEERS, "torch_op")
    return is_in_step and scene.motion.get(str(one.row.pid)) in ("line", "function")


def _is_alone(hang: Hang, scene: Scene) -> bool:
    """One rank computes in the same functions all the time, and nothing of torch, while others wait for it."""
    stays = all(
        one.doing in ("python_loop", "native_loop")
        and scene.motion.get(str(one.row.pid)) in ("frozen", "line")
        and one.row.pid not in scene.in_torch | scene.importing
        for one in hang.culprits
    )
    return len(hang.culprits) == 1 and stays and any(one.row.role == "worker" for one in hang.waiting)


def _grace_s(one: Standing, scene: Scene, *, passes: bool) -> float:
    """`passes`: those who wait for it get on with the same step."""
    if one.doing == "stopped":
        return 0.0
    works = one.row.pid in scene.working
    moves = scene.motion.get(str(one.row.pid)) == "function"
    if one.is_managed:
        return START_GRACE_S if works else OPERATOR_GRACE_S
    if one.row.pid in scene.turning:
        return OPERATOR_GRACE_S
    if one.classified.class_ == "torch_op" or (moves and one.row.pid in scene.in_torch):
        return START_GRACE_S if passes else OPERATOR_GRACE_S
    is_input = one.classified.class_ in _INPUT and (works or one.doing not in _RESTS)
    if is_input or (moves and one.row.pid in scene.importing):
        return INPUT_GRACE_S
    return MOVING_GRACE_S if moves else 0.0
