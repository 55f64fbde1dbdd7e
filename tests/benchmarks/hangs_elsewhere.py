"""Real hangs of runs that are no server of ours: programs without counters, and servers that somebody else started.

`script:offline` (an `LLM(...)` of two ranks), `script:torchrun` (a rank that never comes), `script:plain`: within a
minute at least `suspect`, with its culprit. `attach:HANG`: a server that hung before anybody looked, whose clients have
gone; `stalled` within 10 s after the command was typed. `attach:healthy`, at rest, and `attach:busy`, at work: `ok`
within 10 s and nothing else in a minute. `attach:unprivileged`: the same hang seen by somebody who has no right to
trace: nothing wrong, and why nobody's stacks can be had.
"""

import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.hang_outcome import Expected, Outcome
from tests.benchmarks.measure import own_state
from tests.hang_plugin import Order
from tests.real_server import Told, complete
from tests.real_vllm import RealVllm

HUNG = {
    "attach:collective": ("collective 1 lock", Expected("rank_absent", "Worker_TP1", "lock")),
    "attach:front": ("front 0 lock", Expected("frontend_stuck", "APIServer", "lock")),
    "attach:schedule": ("schedule 0 python_loop", Expected("engine_stuck", "EngineCore", "python_loop")),
}
READY_S, SCRIPT_S, ATTACHED_S, WATCHED_S = 300.0, 60.0, 10.0, 30.0
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
"""As root, who is another one to the kernel then, and can still read a Python in root's home."""

OFFLINE = """
import os, threading, time
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM({model!r}, tensor_parallel_size=2, enforce_eager=True, max_model_len=256)
    llm.generate(["hello"], SamplingParams(max_tokens=4), use_tqdm=False)
    with open({order!r}, "w") as file:
        file.write("collective 1 lock")
    llm.generate(["hello"], SamplingParams(max_tokens=4), use_tqdm=False)
"""
ABSENT = """
import time, torch.distributed as dist
dist.init_process_group("gloo")
if dist.get_rank() == 1:
    open({struck!r}, "w").write(str(__import__("os").getpid()))
    time.sleep(1000)
dist.barrier()
"""
PLAIN = """
import os, threading
open({struck!r}, "w").write(str(os.getpid()))
lock = threading.Lock()
lock.acquire()
lock.acquire()
"""
SCRIPTS = {
    "script:offline": (OFFLINE, "offline.py", Expected("rank_absent", "Worker_TP1", "lock")),
    "script:torchrun": (ABSENT, "absent.py", Expected("rank_absent", "absent.py", "sleep")),
    "script:plain": (PLAIN, "plain.py", Expected("unknown", "plain.py", "lock")),
}
CASES = [*SCRIPTS, *HUNG, "attach:healthy", "attach:busy", "attach:unprivileged"]


def judge(real: RealVllm, case: str) -> Outcome:
    """What was said of one case, printed."""
    with ExitStack() as stack:
        environment = {**real.env, **stack.enter_context(own_state())}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        order = Order(folder)
        environment |= order.environment
        if case in SCRIPTS:
            return _script(stack, real, case, environment, order, folder)
        pid, port = stack.enter_context(_foreign_server(real, environment))
        if case in HUNG:
            return _hung(stack, real, case, environment, order, port)
        if case == "attach:unprivileged":
            return _unprivileged(stack, real, environment, order, pid, port)
        return _healthy(stack, real, case, environment, port)


# --- programs ---------------------------------------------------------------------------------------------------------


def _script(
    stack: ExitStack, real: RealVllm, case: str, environment: dict[str, str], order: Order, folder: Path
) -> Outcome:
    text, name, expected = SCRIPTS[case]
    script = folder / name
    script.write_text(
        text.format(model=str(real.model), order=order.environment["HANG_FILE"], struck=str(order.struck))
    )
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if case == "script:torchrun" else []
    run = Told(["run", "--headless", "--", str(real.python), *launcher, str(script)], environment)
    stack.callback(run.end)
    _until(lambda: order.struck_at is not None, READY_S)
    struck = order.struck_at or run.began
    told = run.until("verdict_changed", SCRIPT_S, lambda event: event["health"] in ("suspect", "stalled"))
    is_in_time = told is not None and told["time"] - struck <= SCRIPT_S
    told_all = run.of("verdict_changed")
    return Outcome.of(case, expected, told_all, struck, pid=order.struck_pid, is_in_time=is_in_time)


# --- servers of somebody else -----------------------------------------------------------------------------------------


@contextmanager
def _foreign_server(real: RealVllm, environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """Its pid and port; it serves."""
    port = real.free_port()
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(real.serve_argv(port), env=environment, stdout=log, stderr=log)
        try:
            _until(lambda: _is_healthy(port), READY_S)
            complete(port, str(real.model), tokens=4)
            yield server.pid, port
        finally:
            for process in (*psutil.Process(server.pid).children(recursive=True), server):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            server.wait()


def _hung(stack: ExitStack, real: RealVllm, case: str, environment: dict[str, str], order: Order, port: int) -> Outcome:
    fault, expected = HUNG[case]
    _hang(real, order, fault, port)
    view = _attached(stack, environment, "--port", str(port))
    view.until("verdict_changed", WATCHED_S, lambda event: event["health"] == "stalled")
    stalled_s = [one["time"] - view.began for one in view.of("verdict_changed") if one["health"] == "stalled"]
    is_in_time = bool(stalled_s) and stalled_s[0] <= ATTACHED_S
    return Outcome.of(
        case, expected, view.of("verdict_changed"), view.began, pid=order.struck_pid, is_in_time=is_in_time
    )


def _hang(real: RealVllm, order: Order, fault: str, port: int) -> None:
    """The client gives up: nobody waits for the server when it is looked at."""
    order.give(fault)
    complete(port, str(real.model), timeout_s=5)
    _until(lambda: order.struck_at is not None, READY_S)


def _unprivileged(
    stack: ExitStack, real: RealVllm, environment: dict[str, str], order: Order, pid: int, port: int
) -> Outcome:
    """Right: whoever is named is the one, and every process says why its stacks cannot be read."""
    fault, expected = HUNG["attach:collective"]
    _hang(real, order, fault, port)
    view = _attached(stack, environment, str(pid), before=WITHOUT_RIGHTS)
    captured = view.until("stacks_captured", WATCHED_S)
    view.until("verdict_changed", WATCHED_S, lambda event: event["health"] == "suspect")
    verdicts = [one for one in view.of("verdict_changed") if one["health"] != "ok"]
    named = {culprit["process"] for one in verdicts for culprit in one["culprits"]}
    errors = [one["error"] for one in captured["stacks"]] if captured else []
    is_right = named <= {expected.process} and bool(errors) and all(errors)
    words = f"named {sorted(named) or 'nobody'}; {len(errors)} processes unread: {errors[0] if errors else ''}"
    return Outcome.said(
        case="attach:unprivileged", words=words, verdicts=verdicts, struck=view.began, is_right=is_right
    )


def _healthy(stack: ExitStack, real: RealVllm, case: str, environment: dict[str, str], port: int) -> Outcome:
    """From the beginning of the session: ranks that spin on every core starve the command before that."""
    view = _attached(stack, environment, "--port", str(port))
    end = time.monotonic() + 2 * WATCHED_S
    while time.monotonic() < end:
        if case == "attach:busy":
            complete(port, str(real.model), tokens=8)
        time.sleep(1)
    begun = next((one["time"] for one in view.of("keeper_started")), view.began)
    told = view.of("verdict_changed")
    is_right = [one["health"] for one in told] == ["ok"] and told[0]["time"] - begun <= ATTACHED_S
    words = "  ".join(f"{one['health']} {one['time'] - begun:5.1f} s" for one in told) or "nothing was said"
    return Outcome.said(case, f"{words}  begun after {begun - view.began:.1f} s", told, begun, is_right=is_right)


def _attached(stack: ExitStack, environment: dict[str, str], *words: str, **more: Any) -> Told:
    view = Told(["attach", "--headless", *words], environment, **more)

    def leave() -> None:
        view.process.send_signal(signal.SIGINT)
        view.process.wait(READY_S)

    stack.callback(leave)
    return view


def _is_healthy(port: int) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
        return True
    return False


def _until(is_so: Any, wait_s: float) -> None:
    """Raises TimeoutError."""
    end = time.monotonic() + wait_s
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {wait_s:.0f} s")
        time.sleep(0.1)
