"""Real hangs of real vLLM, two ranks on the CPU, and what is said of them: `python -m tests.benchmarks.hangs [CASE …]`.

Prints a line for each: seconds from the fault to `suspect` and to `stalled`, kind, culprits, what they do, and whether
all of it is right: nothing said before the fault; the very process named that met it; while serving `stalled` within
15 s; in a start `suspect` within 20 s and `stalled` after 60 s and within 75 s. At the end medians, and each miss.

A case is `PLACE:RANK:FAULT` of the plugin (`collective:1:lock`), `stop:PROCESS` (SIGSTOP from outside),
`freeze:PROCESS` (the freezer of a cgroup), or one of the starts (`weights`, `hub`, `hub_lock`). With `+flight` requests
run when the fault strikes, else it strikes the first one after idle; with `+disguise` the functions of the plugin bear
the name of one of vLLM's in every stack. `script:…` and `attach:…` are in `hangs_elsewhere`.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks import hangs_elsewhere
from tests.benchmarks.hang_outcome import Expected, Outcome, summarise
from tests.benchmarks.measure import own_state
from tests.benchmarks.obstacles import Obstacle, frozen, held_hub_lock, pipe_for_weights, silent_hub
from tests.hang_plugin import Order
from tests.real_server import Server
from tests.real_vllm import RealVllm, provision

WAITS = ("sleep", "lock", "python_loop", "native_loop", "read", "subprocess", "socket")
IN_WORKERS = [f"{place}:{rank}:{fault}" for fault in WAITS for place in ("collective", "step") for rank in (0, 1)]
OTHERS = [
    "step:1:raise",
    "collective:1:raise",
    "collective:0:once_more",
    "step:0:clock",
    "step:1:gil",
    *(f"{place}:0:{fault}" for place in ("schedule", "front") for fault in ("lock", "python_loop", "read")),
    *(f"stop:{process}" for process in ("Worker_TP0", "Worker_TP1", "EngineCore")),
    *(f"freeze:{process}" for process in ("Worker_TP1", "EngineCore")),
]
STARTS = ["load:1:sleep", "load:0:lock", "load:1:python_loop", "load:0:native_loop", "device:1:read"]
OUTSIDE = ["weights", "hub", "hub_lock"]
CASES = [
    *(f"{case}{more}" for case in (*IN_WORKERS, *OTHERS) for more in ("", "+flight+disguise")),
    *(f"{case}{more}" for case in STARTS for more in ("", "+disguise")),
    *OUTSIDE,
    *hangs_elsewhere.CASES,
]
DISGUISES = {
    "collective": "distributed/parallel_state.py:all_reduce",
    "step": "v1/worker/gpu_model_runner.py:execute_model",
    "schedule": "v1/core/sched/scheduler.py:schedule",
    "front": "v1/engine/async_llm.py:generate",
    "load": "model_executor/model_loader/default_loader.py:load_weights",
    "device": "v1/worker/gpu_worker.py:init_device",
}
READY_S, TOLD_S, START_TOLD_S = 300.0, 40.0, 90.0
SERVING_STALLED_S, START_SUSPECT_S, START_STALLED_S = 15.0, 20.0, (60.0, 75.0)
SOCKETS = shutil.ignore_patterns("*.sock")
OBSTACLES: dict[str, Callable[[RealVllm, Path], Obstacle]] = {
    "weights": pipe_for_weights,
    "hub": silent_hub,
    "hub_lock": held_hub_lock,
}


def expected(case: str) -> Expected:
    place, _, rest = case.partition(":")
    if place in ("stop", "freeze"):
        return Expected("process_stopped", rest, "stopped")
    if place in OBSTACLES:
        return Expected(
            *{"weights": ("load_stuck", None, "read"), "hub": ("download_stuck", None, "socket")}.get(
                place, ("download_stuck", None, "lock")
            )
        )
    rank, fault = rest.split(":")
    doing = {"raise": "idle", "once_more": "idle", "clock": "python_loop", "gil": "native_loop"}.get(fault, fault)
    if fault == "once_more":  # and the peer, which is through, is the one that is absent
        rank = str(1 - int(rank))
    match place:
        case "schedule":
            return Expected("engine_stuck", "EngineCore", doing)
        case "front":
            return Expected("frontend_stuck", "APIServer", doing)
        case "load" | "device":
            return Expected("load_stuck" if place == "load" else "startup_stuck", None, doing)
    return Expected("rank_absent", f"Worker_TP{rank}", doing)


def judge(real: RealVllm, text: str) -> Outcome:
    """What was said of one case, printed."""
    if text in hangs_elsewhere.CASES:
        return hangs_elsewhere.judge(real, text)
    case, *more = text.split("+")
    with ExitStack() as stack:
        environment = {**real.env, **stack.enter_context(own_state())}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        order = Order(folder)
        environment |= order.environment
        if "disguise" in more:
            environment["HANG_DISGUISE"] = DISGUISES.get(case.partition(":")[0], "")
        model = str(real.model)
        is_at_start = case in OBSTACLES or case.partition(":")[0] in ("load", "device")
        if case in OBSTACLES:
            model, own = OBSTACLES[case](real, folder).enter(stack)
            environment |= own
        elif is_at_start:
            order.give(case.replace(":", " "))
        server = _started(stack, real, environment, model)
        outcome = _at_start(server, case, order, text) if is_at_start else _while_serving(server, case, order, text)
        if not outcome.is_right:
            kept = shutil.copytree(
                environment["XDG_STATE_HOME"], tempfile.mkdtemp(), dirs_exist_ok=True, ignore=SOCKETS
            )
            print(f"    its session: {kept}", flush=True)
        return outcome


def _started(stack: ExitStack, real: RealVllm, environment: dict[str, str], model: str) -> Server:
    port = real.free_port()
    server = Server(real.serve_argv(port, model=model), environment, port, model)
    stack.callback(server.end)
    return server


def _while_serving(server: Server, case: str, order: Order, text: str) -> Outcome:
    if not server.is_ready(READY_S):
        return Outcome.of(text, expected(case), [], server.began, is_in_time=False)
    early = len(server.of("verdict_changed"))
    with _traffic(server, is_on="+flight" in text), _fault(server, case, order) as struck:
        server.send()
        stalled = server.until("verdict_changed", TOLD_S, lambda event: event["health"] == "stalled")
    struck = order.struck_at or struck
    took_s = stalled["time"] - struck if stalled else TOLD_S
    pid = None if case.endswith("once_more") else order.struck_pid
    is_in_time = took_s <= SERVING_STALLED_S and not early
    return Outcome.of(text, expected(case), server.of("verdict_changed"), struck, pid=pid, is_in_time=is_in_time)


@contextmanager
def _traffic(server: Server, *, is_on: bool) -> Iterator[None]:
    if is_on:
        server.send(4, tokens=200)
        server.until("state_changed", 20, lambda event: event["state"] == "serving")
    yield


@contextmanager
def _fault(server: Server, case: str, order: Order) -> Iterator[float]:
    """The fault takes effect; unix seconds of that moment."""
    place, _, process = case.partition(":")
    with ExitStack() as stack:
        if place == "stop":
            os.kill(server.pid_of(process), signal.SIGSTOP)
        elif place == "freeze":
            stack.enter_context(frozen(server.pid_of(process)))
        else:
            order.give(case.replace(":", " "))
        yield time.time()


def _at_start(server: Server, case: str, order: Order, text: str) -> Outcome:
    server.until("verdict_changed", READY_S, lambda event: event["health"] == "suspect")
    server.until("verdict_changed", START_TOLD_S, lambda event: event["health"] == "stalled")
    told = server.of("verdict_changed")
    first = {event["health"]: event for event in reversed(told)}
    quiet = next((event["since"] for event in first.values() if event.get("since")), server.began)
    began = order.struck_at or quiet  # where nothing of ours is in the way, only the program knows
    told_s = {health: event["time"] - began for health, event in first.items()}
    least_s, most_s = START_STALLED_S
    in_time = told_s.get("suspect", 1e9) <= START_SUSPECT_S and least_s <= told_s.get("stalled", 1e9) <= most_s
    return Outcome.of(text, expected(case), told, began, pid=order.struck_pid, is_in_time=in_time)


def main() -> None:
    real = provision()
    summarise([judge(real, case) for case in sys.argv[1:] or CASES])


if __name__ == "__main__":
    main()
