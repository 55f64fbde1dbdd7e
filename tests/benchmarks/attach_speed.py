"""`attach` to a session of 24 hours, made here: `python -m tests.benchmarks.attach_speed`.

The recording goes through the keeper's own filter: twelve processes whose numbers drift all the time, a server with a
request now and then, a log that grows.
"""

import os
import random
import socket
import time

import msgspec
import psutil

from tests.benchmarks.measure import PROGRAM, own_state, report, sessions
from tests.terminal import Terminal
from vllm_probes.events import (
    SCHEMA,
    AttemptStarted,
    CommandEnded,
    EndpointSampled,
    Event,
    Exited,
    GpusSampled,
    HostSampled,
    KeeperStarted,
    LogSampled,
    ProcessesSampled,
    SessionStarted,
    Stamp,
    StateChanged,
    TreeEnded,
)
from vllm_probes.keeper.folder import Launch, Meta, SessionFolder, boot_id, create
from vllm_probes.keeper.recording import Recorder
from vllm_probes.keeper.sample_filter import SampleFilter
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.rows import EngineSample, GpuProcess, GpuRow, LatencyName, LatencyWindow, ProcessRow
from vllm_probes.sensors.processes import difference

DAY_S = 24 * 3600
RUNS = 9
NODE = socket.gethostname()


def stamp(second: float) -> Stamp:
    return Stamp(time=1.7e9 + second, mono=1000.0 + second, node=NODE, attempt=1)


def row(pid: int, second: int, dice: random.Random) -> ProcessRow:
    return ProcessRow(
        pid=pid,
        parent_pid=1,
        started=1.7e9,
        process=f"Worker_TP{pid - 100}",
        role="worker",
        rank=pid - 100,
        state=dice.choice("RS"),
        cpu_percent=round(dice.uniform(40, 100), 1),
        rss_bytes=(8 << 30) + dice.randrange(1 << 26),
        read_bytes=second * 100_000,
        written_bytes=second * 50_000,
        thread_count=80,
    )


def gpu(index: int, dice: random.Random) -> GpuRow:
    """At work: every figure moves, and now and then the power cap holds its clocks down."""
    return GpuRow(
        index=index,
        used_bytes=(71 << 30) + dice.randrange(1 << 24),
        busy_percent=float(dice.randrange(70, 101)),
        memory_busy_percent=float(dice.randrange(20, 60)),
        power_w=round(dice.uniform(380, 560), 1),
        temperature_c=float(dice.randrange(55, 66)),
        sm_clock_mhz=1980.0,
        throttle=["power cap"] if dice.random() < 0.2 else [],
        processes=[GpuProcess(pid=100 + index, used_bytes=71 << 30)],
    )


def latencies(dice: random.Random) -> list[LatencyWindow]:
    names: tuple[LatencyName, ...] = ("ttft", "tpot", "queue", "prefill", "e2e")
    return [
        LatencyWindow(name=name, count=60.0, p50_s=round(dice.random(), 4), p90_s=0.1234, p99_s=1.2345)
        for name in names
    ]


def host(second: int, dice: random.Random) -> HostSampled:
    names = [name for name in HostSampled.__struct_fields__ if name.endswith(("percent", "bytes_per_s"))]
    figures = dict.fromkeys(names, 0.0) | {"cpu_percent": dice.uniform(0, 100)}
    return HostSampled(**stamp(second), **figures, memory_used_bytes=dice.randrange(1 << 40), model_path="/models/m")


def samples(second: int, told: dict[int, ProcessRow], dice: random.Random) -> list[Event]:
    rows, gone = difference(told, [row(pid, second, dice) for pid in range(100, 112)])
    told.update({changed.pid: changed for changed in rows})
    engine = EngineSample(
        running=dice.randrange(9), waiting=0, kv_usage=dice.random(), prompt_tokens=second * 900,
        generation_tokens=second * 400, iterations=second * 40, finished_requests=second, ttft_count=second,
        ttft_sum_s=second * 0.2, tpot_count=second * 400, tpot_sum_s=second * 9.0,
    )  # fmt: skip
    return [
        ProcessesSampled(**stamp(second), rows=rows, gone=gone),
        EndpointSampled(
            **stamp(second), url="http://127.0.0.1:8000", health="ok", status=200, active=second % 600 < 500,
            own_clients=["127.0.0.1:40000"], engines=[engine], latencies=latencies(dice),
        ),
        GpusSampled(**stamp(second), rows=[gpu(index, dice) for index in range(8)]),
        *([host(second, dice)] if second % 5 == 0 else []),
        LogSampled(**stamp(second), size_bytes=second * 130, line_count=second),
    ]  # fmt: skip


def write_day(folder: SessionFolder) -> int:
    """A day of samples through the filter; bytes written."""
    recorder, keep, dice, told = Recorder(folder.events), SampleFilter(), random.Random(1), dict[int, ProcessRow]()
    meta: Meta = folder.meta()
    head = {"schema": SCHEMA, "session": str(folder.path), "version": "0", "name": meta.name, "command": meta.command}
    recorder.write(SessionStarted(**stamp(0), **head, cwd="/", boot_id=boot_id()))
    recorder.write(KeeperStarted(**stamp(0), pid=1, replaced=False))
    recorder.write(
        AttemptStarted(**stamp(0), command=["vllm"], levers=[], log="attempt-1.log", shim_pid=1, expects_vllm=True)
    )
    recorder.write(StateChanged(**stamp(1), state="idle"))
    for second in range(2, DAY_S):
        for event in samples(second, told, dice):
            if (recorded := keep.accept(event)) is not None:
                recorder.write(recorded)
        if second % 600 in (0, 500):
            recorder.write(StateChanged(**stamp(second), state="serving" if second % 600 == 0 else "idle"))
    recorder.write(CommandEnded(**stamp(DAY_S), code=0, signal=None))
    recorder.write(StateChanged(**stamp(DAY_S), state="exited"))
    recorder.write(Exited(**stamp(DAY_S), code=0, signal=None))
    recorder.write(TreeEnded(**stamp(DAY_S)))
    recorder.close()
    (folder.path / "attempt-1.log").write_bytes(b"(APIServer pid=1) INFO 11-21 08:52:59 [x.py:1] line\n" * 100_000)
    (folder.path / "attempt-1.exit").write_bytes(msgspec.json.encode({"code": 0, "signal": None, "error": None}))
    return folder.events.stat().st_size


def attach_s(environment: dict[str, str]) -> float:
    """With a keeper that has to be started: one that an earlier view has left is waited for."""
    [folder] = sessions(environment)
    while any(str(folder) in " ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])):
        time.sleep(0.2)
    begin = time.monotonic()
    terminal = Terminal([*PROGRAM, "attach", "day"], environment, columns=200, rows=50)
    terminal.wait("EXITED", 30)
    elapsed_s = time.monotonic() - begin
    terminal.close()
    return elapsed_s


def main() -> None:
    with own_state() as environment:
        os.environ["XDG_STATE_HOME"] = environment["XDG_STATE_HOME"]
        spec = LaunchSpec(argv=["vllm"], env={}, cwd="/")
        size_bytes = write_day(create(Launch(spec=spec), command=["vllm"], name="day"))
        print(f"events.jsonl of a day, 12 processes and 8 GPUs that never rest: {size_bytes / 1e6:.1f} MB (goal 20)")
        report("attach to it, until the screen is right", [attach_s(environment) for _ in range(RUNS)], "s", "goal 0.5")


if __name__ == "__main__":
    main()
