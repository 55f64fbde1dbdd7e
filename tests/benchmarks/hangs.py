"""Real hangs of real vLLM, two ranks on the CPU, and what is said of them: `python -m tests.benchmarks.hangs [CASE …]`.

A case is `PLACE:RANK:FAULT` of the plugin (`collective:1:lock`), or `stop:PROCESS` (SIGSTOP from outside). Prints one
line each: seconds from the fault to `stalled`, kind, culprits, what they do, and whether all of it is right.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests import hang_plugin
from tests.benchmarks.measure import PROGRAM, own_state
from tests.real_vllm import RealVllm, provision

CASES = [
    *(f"{place}:{rank}:{fault}" for fault in hang_plugin.FAULTS for place in ("collective", "step") for rank in (0, 1)),
    "schedule:0:lock",
    "schedule:0:python_loop",
    "stop:Worker_TP0",
    "stop:Worker_TP1",
    "stop:EngineCore",
]
READY_S, TOLD_S = 240.0, 40.0


class Run:
    """One server, started through the program."""

    def __init__(self, real: RealVllm, environment: dict[str, str]) -> None:
        self.port, self.model = real.free_port(), str(real.model)
        argv = [*PROGRAM, "run", "--headless", "--", *real.serve_argv(self.port)]
        self.process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.events: list[dict[str, Any]] = []
        self.pids: dict[str, int] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            event = json.loads(line)
            self.pids |= {row["process"]: row["pid"] for row in event.get("rows", []) if "process" in row}
            self.events.append(event)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def until(self, kind: str, wait_s: float, **fields: Any) -> dict[str, Any] | None:
        """The first such event."""
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            for event in self.of(kind):
                if all(event.get(name) == value for name, value in fields.items()):
                    return event
            time.sleep(0.1)
        return None

    def request(self, tokens: int = 200) -> None:
        """One request in flight, whatever becomes of it."""
        body = json.dumps({"model": self.model, "prompt": "hello", "max_tokens": tokens, "ignore_eos": True})
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})

        def send() -> None:
            with suppress(OSError):
                urllib.request.urlopen(request, timeout=120).read()

        threading.Thread(target=send, daemon=True).start()

    def end(self) -> None:
        for process in ("Worker_TP0", "Worker_TP1", "EngineCore"):
            with suppress(ProcessLookupError):
                os.kill(self.pids.get(process, 1 << 30), signal.SIGKILL)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def expected(case: str) -> tuple[str, str]:
    """(culprit, what it does)."""
    place, _, rest = case.partition(":")
    if place == "stop":
        return rest, "stopped"
    rank, fault = rest.split(":")
    return ("EngineCore" if place == "schedule" else f"Worker_TP{rank}"), fault


def judge(real: RealVllm, case: str) -> bool:
    with own_state() as state, tempfile.TemporaryDirectory() as folder:
        hang_plugin.install(Path(folder, "plugin"))
        order = Path(folder, "order")
        environment = {**real.env, **state, "PYTHONPATH": f"{folder}/plugin", "HANG_FILE": str(order)}
        run = Run(real, environment)
        try:
            return measure(run, case, order)
        finally:
            run.end()


def measure(run: Run, case: str, order: Path) -> bool:
    if run.until("state_changed", READY_S, state="idle") is None:
        print(f"{case:<28} never ready")
        return False
    culprit, doing = expected(case)
    began = time.time()
    if case.startswith("stop:"):
        os.kill(run.pids[culprit], signal.SIGSTOP)
    else:
        draft = order.with_suffix(".draft")
        draft.write_text(case.replace(":", " "))
        draft.rename(order)
    run.request()
    told = run.until("verdict_changed", TOLD_S, health="stalled")
    early = [event["health"] for event in run.of("verdict_changed") if event["time"] < began]
    if told is None:
        print(f"{case:<28} MISSED {early}")
        return False
    named = [(one["process"], one["doing"]) for one in told["culprits"]]
    right = named == [(culprit, doing)] and not early
    print(
        f"{case:<28} {told['time'] - began:5.1f} s  {told['kind']:<16} {named} {'right' if right else 'WRONG'}",
        flush=True,
    )
    return right


def main() -> None:
    real = provision()
    results = [judge(real, case) for case in sys.argv[1:] or CASES]
    print(f"{sum(results)} of {len(results)} right")


if __name__ == "__main__":
    main()
