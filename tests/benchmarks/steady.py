"""The cost of watching: real vLLM, two ranks, one request a second, 200x50: `python -m tests.benchmarks.steady`.

Beside it eight GPUs on a fake driver, whose every figure moves each second.
"""

import json
import random
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from tests.benchmarks.gpu_cost import busy_world
from tests.benchmarks.measure import PROGRAM, Ours, own_state, report, sessions, stop_run
from tests.fake_nvml.driver import FakeDriver, build
from tests.real_vllm import provision
from tests.terminal import Terminal

WARM_UP_S = 20.0
WINDOW_S = 20.0
WINDOWS = 5


def request_every_second(port: int, model: str, until: threading.Event) -> None:
    body = json.dumps({"model": model, "prompt": "hello", "max_tokens": 8, "ignore_eos": True}).encode()
    while not until.wait(1.0):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=30).read()


def work_every_second(driver: FakeDriver, until: threading.Event) -> None:
    dice = random.Random(1)
    while not until.wait(1.0):
        driver.write(*busy_world(dice))


def main() -> None:
    real = provision()
    port = real.free_port()
    with own_state() as environment, tempfile.TemporaryDirectory() as folder:
        driver = FakeDriver(build(Path(folder, "library")), Path(folder))
        environment = {**real.env, **environment, **driver.environment}
        terminal = Terminal([*PROGRAM, "--", *real.serve_argv(port)], environment, columns=200, rows=50)
        terminal.wait("IDLE", 240)
        folder = sessions(environment)[-1]
        over = threading.Event()
        requests = threading.Thread(target=request_every_second, args=(port, str(real.model), over))
        work = threading.Thread(target=work_every_second, args=(driver, over))
        requests.start()
        work.start()
        try:
            terminal.pump(WARM_UP_S)
            measure(terminal, Ours(terminal.child.pid, folder))
        finally:
            over.set()
            requests.join()
            work.join()
            stop_run(folder)
            terminal.close()


def measure(terminal: Terminal, ours: Ours) -> None:
    cpu_percent, bytes_s, pss_mb = [], [], []
    for _ in range(WINDOWS):
        cpu, sent, begin = ours.cpu_s(), terminal.byte_count, time.monotonic()
        terminal.pump(WINDOW_S)
        elapsed_s = time.monotonic() - begin
        cpu_percent.append(100 * (ours.cpu_s() - cpu) / elapsed_s)
        bytes_s.append((terminal.byte_count - sent) / elapsed_s / 1000)
        pss_mb.append(ours.pss_bytes() / 1e6)
    report("CPU of all our processes", cpu_percent, "%", "goal 3 % of a core")
    report("bytes to the terminal", bytes_s, "kB/s", "goal 10 kB/s")
    report("memory of all our processes (PSS)", pss_mb, "MB", "goal 130 MB")


if __name__ == "__main__":
    main()
