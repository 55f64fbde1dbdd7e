"""How fast a log is classified with every shipped rule on, and what extreme lines cost.

Run: python -m tests.benchmarks.logspeed

The mix, by lines: 40 % access lines, 20 % requests, 15 % engine statistics, 10 % debug lines of the engine, 10 % NCCL,
4 % progress bars, 1 % warnings and errors with tracebacks.
"""

import time

from vllm_probes.judges.diagnosis import diagnose
from vllm_probes.judges.rules import load_rules

LINES = 400_000
MIX = [
    *['INFO:     10.0.0.{n}:46084 - "POST /v1/chat/completions HTTP/1.1" 200 OK'] * 40,
    *["(APIServer pid=1) INFO 11-21 08:53:43 [logger.py:43] Received request chatcmpl-{n}: params: temperature=0.7"]
    * 20,
    *[
        "(APIServer pid=1) INFO 11-21 08:53:43 [loggers.py:310] Engine 000: Avg prompt throughput: {n}.7 tokens/s, Avg "
        "generation throughput: 18.5 tokens/s, Running: 1 reqs, Waiting: 0 reqs, GPU KV cache usage: 1.0%, Prefix "
        "cache hit rate: 0.0%"
    ]
    * 15,
    *["(EngineCore pid=2) DEBUG 11-21 08:53:43 [v1/engine/core.py:1590] EngineCore loop active. {n}"] * 10,
    *["node1:4031:4100 [3] NCCL INFO Channel {n}/0 : 2[2] -> 3[3] via P2P/IPC/read"] * 10,
    *["Capturing CUDA graphs (decode, FULL):  12%|█▎        | {n}/35 [00:01<00:08,  3.5it/s]"] * 4,
    "(Worker_TP0 pid=3) ERROR 11-21 08:53:43 [multiproc_executor.py:1063] Traceback (most recent call last):",
    '(Worker_TP0 pid=3) ERROR 11-21 08:53:43 [multiproc_executor.py:1063]   File "/opt/v/worker.py", line {n}, in f',
    "(Worker_TP0 pid=3) ERROR 11-21 08:53:43 [multiproc_executor.py:1063] RuntimeError: something new {n}",
    "(APIServer pid=1) WARNING 11-21 08:53:43 [protocol.py:117] The following fields were ignored: {n}",
]
EXTREMES = {
    "one line of 10 MB": b"x" * (10 << 20),
    "10 MB that begin again and again": b"To serve at least one request with the model's max seq len (1), " * 160_000,
    "10 MB of open brackets": b"CUDA out of memory. Tried to allocate (" * 270_000,
}


def main() -> None:
    rules = load_rules()
    raws = [MIX[n % len(MIX)].format(n=n % 97).encode() for n in range(LINES)]
    begin = time.process_time()
    diagnose(rules, raws, "log")
    elapsed_s = time.process_time() - begin
    mega = sum(map(len, raws)) / 1e6
    print(f"{len(rules.by_id)} rules, {len(raws):,} lines, {mega:,.0f} MB of the mix above:")
    print(f"{LINES / elapsed_s:,.0f} lines/s, {mega / elapsed_s:,.1f} MB/s on one core")
    for name, line in EXTREMES.items():
        begin = time.process_time()
        diagnose(rules, [line], "log")
        print(f"{name}: {time.process_time() - begin:.3f} s")


if __name__ == "__main__":
    main()
