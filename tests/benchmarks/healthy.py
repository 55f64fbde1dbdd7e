"""Real vLLM, healthy, two ranks on the CPU: is anything said against it? `python -m tests.benchmarks.healthy [CASE …]`.

Each case lasts two minutes (`--minutes`), `mixed` an hour. Prints how often `suspect` and `stalled` were said: the goal
is never. `then_hangs` is healthy for three minutes, and has to be found out afterwards.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.benchmarks.measure import own_state
from tests.benchmarks.obstacles import slow_disk, slow_hub
from tests.hang_plugin import Order
from tests.real_server import Server
from tests.real_vllm import RealVllm, provision

READY_S = 400.0
LONG = ["--max-model-len", "65536", "--max-num-batched-tokens", "65536"]
LONG_WORDS = 10_000
"""Of five tokens or so each, in one step: on one rank it takes 16 s (measured), in which no counter moves."""
ARGUMENTS = {"long_prefill": LONG, "mixed": LONG, "sleep_mode": ["--enable-sleep-mode"]}
OBSTACLES = {"slow_download": slow_hub, "slow_disk": slow_disk}
HEALTHY_S, FOUND_S = 180.0, 15.0
MIXED_MINUTES = 60.0


def idle(server: Server, until: float) -> None:
    _pause(until)


def steady(server: Server, until: float) -> None:
    while time.monotonic() < until:
        server.request(tokens=40)
        time.sleep(0.3)


def long_prefill(server: Server, until: float) -> None:
    while time.monotonic() < until:
        server.request(tokens=1, prompt="hello " * LONG_WORDS)
        time.sleep(1)


def disconnect(server: Server, until: float) -> None:
    """Clients that go away before they have their answer."""
    while time.monotonic() < until:
        server.request(tokens=200, timeout_s=random.uniform(0.05, 1.0))
        time.sleep(0.5)


def crowd(server: Server, until: float) -> None:
    while time.monotonic() < until:
        for thread in server.send(200, tokens=100):
            thread.join()


def sleep_mode(server: Server, until: float) -> None:
    """Asleep for most of the time; a server that cannot sleep says so, and is idle instead."""
    while time.monotonic() < until:
        for what, pause_s in (("sleep?level=1", 40), ("wake_up", 2)):
            with suppress(OSError):
                urllib.request.urlopen(
                    urllib.request.Request(f"http://127.0.0.1:{server.port}/{what}", method="POST"), timeout=60
                ).read()
            _pause(min(until, time.monotonic() + pause_s))
        server.request(tokens=10)


def foreign_load(server: Server, until: float) -> None:
    with _busy_processes(4):
        steady(server, until)


def mixed(server: Server, until: float) -> None:
    """Half a minute or so of one after the other, in any order, the same each time."""
    chance = random.Random(1)
    while time.monotonic() < until:
        what = chance.choice([idle, steady, long_prefill, disconnect, crowd, foreign_load])
        what(server, min(until, time.monotonic() + chance.uniform(10, 60)))


CASES: dict[str, Callable[[Server, float], None]] = {
    "idle": idle,
    "steady": steady,
    "long_prefill": long_prefill,
    "compile": idle,
    "slow_disk": idle,
    "slow_download": idle,
    "busy_start": idle,
    "sleep_mode": sleep_mode,
    "disconnect": disconnect,
    "crowd": crowd,
    "foreign_load": foreign_load,
    "then_hangs": steady,
}


def watch(real: RealVllm, case: str, minutes: float) -> bool:
    """Whether nothing wrong was said."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
        order = Order(folder)
        if case == "then_hangs":
            own |= order.environment
        model = str(real.model)
        if case in OBSTACLES:
            model, more = OBSTACLES[case](real, folder).enter(stack)
            own |= more
        if case == "busy_start":
            stack.enter_context(_busy_processes(4))
        environment = {**real.env, **stack.enter_context(own_state()), **own}
        port = real.free_port()
        argv = [*real.serve_argv(port, eager=case != "compile", model=model), *ARGUMENTS.get(case, [])]
        server = Server(argv, environment, port, model)
        stack.callback(server.end)
        return _observe(server, case, minutes, order)


def _observe(server: Server, case: str, minutes: float, order: Order) -> bool:
    is_ready = server.is_ready(READY_S)
    ready_s = time.time() - server.began
    healthy_s = HEALTHY_S if case == "then_hangs" else 60 * minutes
    CASES.get(case, mixed)(server, time.monotonic() + healthy_s)
    told = [event for event in server.of("verdict_changed") if event["health"] != "ok"]
    suspect, stalled = ([one["health"] for one in told].count(health) for health in ("suspect", "stalled"))
    line = f"{case:<16} ready after {ready_s:4.0f} s, {suspect} suspect, {stalled} stalled"
    is_right = is_ready and not told
    if case == "then_hangs":
        order.give("step 1 lock")
        server.send()
        found = server.until("verdict_changed", FOUND_S, lambda event: event["health"] == "stalled")
        named = [(one["pid"], one["doing"]) for one in found["culprits"]] if found else []
        line += f", then found: {found['summary'] if found else 'nothing'}"
        is_right = is_right and named == [(order.struck_pid, "lock")]
    print(f"{line}  {'right' if is_right else 'WRONG'}", flush=True)
    for event in told:
        print("    " + json.dumps({key: event[key] for key in ("time", "health", "kind", "summary", "evidence")}))
    return is_right


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _pause(until: float) -> None:
    threading.Event().wait(max(0.0, until - time.monotonic()))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("cases", nargs="*", default=[*CASES])
    arguments.add_argument("--minutes", type=float)
    options = arguments.parse_args()
    real = provision()
    results = [
        watch(real, case, options.minutes or (MIXED_MINUTES if case == "mixed" else 2.0)) for case in options.cases
    ]
    print(f"{sum(results)} of {len(results)} right")


if __name__ == "__main__":
    main()
