"""When vLLM itself gives up on a run that hangs, and destroys the evidence: its own time-outs, read from the run.

Facts of vLLM 0.32. The engine waits VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS for the workers' answer to one step
(v1/executor/multiproc_executor.py); without worker processes there is no such time-out (uniproc_executor.py), and an
engine or front end that hangs itself has none either. API servers of their own (`--api-server-count`, data parallel)
wait VLLM_ENGINE_READY_TIMEOUT_S for the engine (v1/engine/core_client.py); a single one starts the engine itself and
waits for ever (`wait_for_engine_startup`, v1/engine/utils.py).
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from vllm_probes.events import (
    ENDED_STATES,
    SERVER_STATES,
    AttemptStarted,
    CommandEnded,
    Conclusion,
    DeadlineChanged,
    Event,
    ProcessesSampled,
    State,
    StopRequested,
    TimeoutsRead,
    VerdictChanged,
    stamp_of,
)
from vllm_probes.rows import ProcessRow

EXECUTE_MODEL, ENGINE_READY = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "VLLM_ENGINE_READY_TIMEOUT_S"
DEFAULTS_S = {EXECUTE_MODEL: 300.0, ENGINE_READY: 600.0}
"""Of vLLM 0.32 (envs.py)."""
SAME_S = 1.0
_NO_ANSWER_IS_AWAITED = frozenset(("engine_stuck", "frontend_stuck", "unknown"))
"""Kinds of hang in which the engine does not wait for workers."""
_STEP = "the engine ends, as its workers have not answered"
_START = "the API servers end, as the engine is not ready"


class Deadline(NamedTuple):
    """One time-out of vLLM that runs."""

    name: str
    gives_up_mono: float
    what: str


class Memory(msgspec.Struct, frozen=True):
    """What is known of the current attempt."""

    seconds: Mapping[str, float] | None = None
    """None: nobody has read the environment of vLLM yet."""
    rows: Mapping[int, ProcessRow] = {}
    serving_mono: Mapping[int, float] = {}
    """When each API server was first seen under its title: it takes that right before it begins to wait (measured)."""
    verdict: VerdictChanged | None = None
    told: Deadline | None = None
    is_open: bool = False


Result = tuple[Memory, list[Conclusion]]


def step(memory: Memory, event: Event, state: State | None, conclusions: Collection[Conclusion]) -> Result:
    """One observation in, conclusions out. `conclusions` are those that other judges have just drawn from it."""
    memory = _learn(memory, event)
    for conclusion in conclusions:
        if isinstance(conclusion, VerdictChanged):
            memory = replace(memory, verdict=conclusion)
    deadline = _find(memory, state) if memory.is_open else None
    if deadline == memory.told or _is_the_same(deadline, memory.told):
        return memory, []
    stamp = stamp_of(event)
    told = DeadlineChanged(**stamp) if deadline is None else DeadlineChanged(**stamp, **deadline._asdict())
    return replace(memory, told=deadline), [told]


def _is_the_same(deadline: Deadline | None, told: Deadline | None) -> bool:
    """A verdict that is told again gives the last progress anew, a little earlier or later."""
    if deadline is None or told is None or deadline.name != told.name:
        return False
    return abs(deadline.gives_up_mono - told.gives_up_mono) < SAME_S


def _learn(memory: Memory, event: Event) -> Memory:
    match event:
        case AttemptStarted():
            return Memory(told=memory.told, is_open=True)
        case StopRequested() | CommandEnded():
            return replace(memory, is_open=False)
        case TimeoutsRead():
            return replace(memory, seconds={**DEFAULTS_S, **event.seconds})
        case ProcessesSampled():
            rows = {pid: row for pid, row in memory.rows.items() if pid not in event.gone}
            rows |= {row.pid: row for row in event.rows}
            new = {row.pid: event.mono for row in event.rows if row.role == "api_server"}
            return replace(memory, rows=rows, serving_mono=new | dict(memory.serving_mono))
        case _:
            return memory


def _find(memory: Memory, state: State | None) -> Deadline | None:
    if memory.seconds is None or state in ENDED_STATES:
        return None
    if state in SERVER_STATES:
        return _deadline(memory.seconds, EXECUTE_MODEL, _step_began_mono(memory), _STEP)
    waiting = (memory.serving_mono[row.pid] for row in memory.rows.values() if _waits_for_engine(row, memory.rows))
    return _deadline(memory.seconds, ENGINE_READY, min(waiting, default=None), _START)


def _deadline(seconds: Mapping[str, float], name: str, since_mono: float | None, what: str) -> Deadline | None:
    return None if since_mono is None else Deadline(name, since_mono + seconds[name], what)


def _step_began_mono(memory: Memory) -> float | None:
    """When the step that hangs was sent to the workers: at the last progress, or when work came; None: none hangs."""
    verdict = memory.verdict
    if verdict is None or verdict.since is None or verdict.kind in _NO_ANSWER_IS_AWAITED:
        return None
    roles = {row.role for row in memory.rows.values()}
    at_fault = {memory.rows[one.pid].role for one in verdict.culprits if one.pid in memory.rows}
    if not roles.issuperset(("engine_core", "worker")) or at_fault & {"engine_core", "api_server"}:
        return None
    return verdict.mono - (verdict.time - verdict.since)


def _waits_for_engine(row: ProcessRow, rows: Mapping[int, ProcessRow]) -> bool:
    """An API server that another process of the server has started; a supervisor's children are whole servers."""
    parent = rows.get(row.parent_pid)
    is_child = parent is not None and parent.role == "api_server" and parent.process != "DPSupervisor"
    return row.role == "api_server" and is_child
