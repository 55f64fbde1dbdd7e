"""Requests a second of real vLLM, watched against not watched: `python -m tests.benchmarks.throughput`.

One server, and windows in which the keeper works beside windows in which it is suspended: two servers differ by more
from start to start than what is looked for. Nothing else of ours runs beside vLLM but a shim that waits, and the log is
written by vLLM itself.
"""

import concurrent.futures
import json
import signal
import subprocess
import time
import urllib.request

import psutil

from tests.benchmarks.measure import PROGRAM, Ours, own_state, report, sessions, stop_run
from tests.real_vllm import provision

WINDOW_S = 3.0
PAIRS = 40
WARM_UP_S = 20.0
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


def requests_per_s(port: int, model: str, window_s: float) -> float:
    """The rate that so many workers reach, each asking again as soon as it has its answer."""
    body = json.dumps({"model": model, "prompt": "hello", "max_tokens": 8, "ignore_eos": True}).encode()
    begin = time.monotonic()

    def work(_: int) -> int:
        count = 0
        while time.monotonic() < begin + window_s:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(request, timeout=60).read()
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(work, range(WORKERS))) / (time.monotonic() - begin)


def paired(keepers: list[psutil.Process], port: int, model: str) -> list[dict[bool, float]]:
    """The rates watched (True) and not, pair by pair; which comes first alternates."""
    requests_per_s(port, model, WARM_UP_S)
    pairs = []
    for pair in range(PAIRS):
        rates = {}
        for watched in (True, False) if pair % 2 else (False, True):
            for keeper in keepers:
                (keeper.resume if watched else keeper.suspend)()
            rates[watched] = requests_per_s(port, model, WINDOW_S)
        pairs.append(rates)
    for keeper in keepers:
        keeper.resume()
    return pairs


def main() -> None:
    real = provision()
    port = real.free_port()
    with own_state() as environment:
        run = subprocess.Popen(
            [*PROGRAM, "--headless", "--", *real.serve_argv(port)],
            env={**real.env, **environment},
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_ready(port)
            folder = sessions(environment)[-1]
            ours = Ours(run.pid, folder).processes()
            keepers = [process for process in ours if "vllm_probes.keeper" in process.cmdline()]
            pairs = paired(keepers, port, str(real.model))
            for watched in (True, False):
                rates = [pair[watched] for pair in pairs]
                report("requests a second, " + ("watched" if watched else "not watched"), rates, "/s", "no goal")
            report("watched / not, of each pair", [pair[True] / pair[False] for pair in pairs], "", "goal 0.98")
            print(f"  of the sums: {sum(pair[True] for pair in pairs) / sum(pair[False] for pair in pairs):.3f}")
        finally:
            run.send_signal(signal.SIGTERM)
            run.wait(60)
            stop_run(folder)


if __name__ == "__main__":
    main()
