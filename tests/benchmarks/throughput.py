"""Requests a second of real vLLM, wrapped against bare, in pairs: `python -m tests.benchmarks.throughput`."""

import concurrent.futures
import json
import signal
import subprocess
import time
import urllib.request

from tests.benchmarks.measure import PROGRAM, own_state, report
from tests.real_vllm import RealVllm, provision

PAIRS = 3
REQUESTS = 300
WORKERS = 4


def wait_ready(port: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("vLLM did not become ready")


def requests_per_s(port: int, model: str) -> float:
    body = json.dumps({"model": model, "prompt": "hello", "max_tokens": 8, "ignore_eos": True}).encode()

    def one(_: int) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).read()

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(one, range(40)))
        begin = time.monotonic()
        list(pool.map(one, range(REQUESTS)))
        return REQUESTS / (time.monotonic() - begin)


def measure(real: RealVllm, *, wrapped: bool) -> float:
    port = real.free_port()
    argv = real.serve_argv(port)
    with own_state() as environment:
        command = [*PROGRAM, "--headless", "--", *argv] if wrapped else argv
        run = subprocess.Popen(
            command, env={**real.env, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_ready(port)
            return requests_per_s(port, str(real.model))
        finally:
            run.send_signal(signal.SIGTERM)
            run.wait(60)


def main() -> None:
    real = provision()
    ratios = []
    for pair in range(PAIRS):
        order = (True, False) if pair % 2 else (False, True)
        rates = {wrapped: measure(real, wrapped=wrapped) for wrapped in order}
        print(f"pair {pair + 1}: wrapped {rates[True]:.1f}, bare {rates[False]:.1f} requests/s")
        ratios.append(rates[True] / rates[False])
    report("requests a second, wrapped / bare", ratios, "", "goal 0.98")


if __name__ == "__main__":
    main()
