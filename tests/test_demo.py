"""The demo is a real process tree that starts, serves, hangs in one worker and ends without a trace."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import Spawn, WaitFor
from vllm_probes.demo import MODEL, demo_command
from vllm_probes.demo.log_format import capture_bar, shards_bar
from vllm_probes.demo.options import parse
from vllm_probes.demo.vllm.v1.executor.multiproc_executor import draw_rank
from vllm_probes.demo.vllm.v1.metrics.exposition import Histogram, Metric, exposition
from vllm_probes.judges.commandline import script, server_arguments
from vllm_probes.judges.metrics import parse_metrics

PY_SPY = Path(sys.executable).with_name("py-spy")
PACE = "20"


class Demo:
    """A running demo."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.log = log
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5)

    def logged(self, text: str) -> bool:
        return text in self.log.read_text()

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def titled(self, title: str) -> psutil.Process:
        return next(process for process in self.tree() if process.cmdline()[0] == title)

    def main_thread(self, title: str) -> list[str]:
        """`function (end of the file's path)` of its main thread, leaf first."""
        dump = [str(PY_SPY), "dump", "--nonblocking", "--json", "--pid", str(self.titled(title).pid)]
        threads = json.loads(subprocess.run(dump, capture_output=True, check=True, timeout=20).stdout)
        frames = next(thread["frames"] for thread in threads if thread["thread_name"] == "MainThread")
        return [f"{frame['name'].rpartition('.')[2]} {frame['filename']}" for frame in frames]

    def engine(self) -> dict[str, float | None]:
        (sample,) = parse_metrics(self.http.get("/metrics").text)
        return {field: getattr(sample, field) for field in sample.__struct_fields__ if field != "engine"}


@pytest.fixture
def start_demo(spawned: Spawn, tmp_path: Path, wait_for: WaitFor) -> Callable[..., Demo]:
    def start(*flags: str, pace: str = PACE) -> Demo:
        command = [*demo_command(), "--pace", pace, *flags]
        log = tmp_path / "demo.log"
        with log.open("ab") as stream:
            process = spawned(command, stdout=stream, stderr=stream)
        demo = Demo(process, int(command[command.index("--port") + 1]), log)
        wait_for(lambda: demo.logged("Application startup complete."), 20, "the demo did not start")
        return demo

    return start


def test_the_command_line_is_that_of_a_vllm_server() -> None:
    command = demo_command(8123)
    assert server_arguments(script(command)) == [MODEL, "--tensor-parallel-size", "8", "--port", "8123"]
    assert int(demo_command()[-1]) > 0


def test_flags_of_vllm_that_mean_nothing_here_are_accepted() -> None:
    options = parse(["serve", "m", "-tp", "2", "--max-num-seqs", "64", "-O0", "--enforce-eager"])
    assert (options.model, options.tensor_parallel_size, options.enforce_eager) == ("m", 2, True)
    assert options.typed == {"model_tag": "m", "tensor_parallel_size": 2, "enforce_eager": True, "model": "m"}


def test_the_rank_that_hangs_is_any() -> None:
    assert {draw_rank(8) for _ in range(400)} == set(range(8))


def test_it_serves_then_hangs_in_exactly_one_worker_and_still_looks_healthy(
    start_demo: Callable[..., Demo], wait_for: WaitFor
) -> None:
    demo = start_demo()
    workers = [f"VLLM::Worker_TP{rank}" for rank in range(8)]
    assert sorted(process.cmdline()[0] for process in demo.tree()) == ["VLLM::EngineCore", *workers]

    wait_for(lambda: (demo.engine()["iterations"] or 0) > 5, 10, "no steps")
    assert demo.http.get("/v1/models").json()["data"][0]["id"] == MODEL
    served = demo.engine()
    assert all((served[name] or 0) > 0 for name in ("running", "kv_usage", "prompt_tokens", "generation_tokens"))
    assert all((served[name] or 0) > 0 for name in ("ttft_sum_s", "tpot_count", "prefix_queries", "prefix_hits"))

    wait_for(lambda: demo.logged("No available shared memory broadcast block found in 60 seconds."), 15, "no hang")
    stacks = {title: demo.main_thread(title) for title in workers}
    (culprit,) = [title for title, frames in stacks.items() if frames[0].startswith("_condense ")]
    waiting = [frames for title, frames in stacks.items() if title != culprit]
    assert all(re.search(r"^all_reduce .*/distributed/distributed_c10d\.py$", frames[0]) for frames in waiting)
    assert any(re.search(r"^execute_model .*/v1/worker/gpu_model_runner\.py$", frame) for frame in stacks[culprit])
    in_engine = "\n".join(demo.main_thread("VLLM::EngineCore"))
    assert re.search(r"acquire_read .*/distributed/device_communicators/shm_broadcast\.py\n", in_engine)
    assert re.search(r"get_response .*/v1/executor/multiproc_executor\.py\n", in_engine)
    before = demo.engine()
    assert before["running"]
    assert demo.http.get("/health").status_code == 200
    with pytest.raises(httpx.ReadTimeout):
        demo.http.post("/v1/completions", json={"prompt": "is it alive", "max_tokens": 1}, timeout=0.5)
    assert demo.engine() == before

    assert_stops(demo)


def assert_stops(demo: Demo) -> None:
    tree = demo.tree()
    demo.process.terminate()
    assert demo.process.wait(20) == 0
    assert demo.logged("[shutdown] API server: shutdown triggered")
    assert demo.logged("[shutdown] EngineCore: trigger received signal=SIGTERM")
    assert psutil.wait_procs(tree, timeout=5)[1] == []


def test_requests_are_answered_before_the_hang(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo("--enforce-eager", "--max-num-seqs", "64", pace="5")
    with ThreadPoolExecutor(4) as pool:
        request = {"model": MODEL, "prompt": "the quick brown fox", "max_tokens": 3}
        answers = list(pool.map(lambda _: demo.http.post("/v1/completions", json=request), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert demo.http.post("/v1/completions", content=b"[]").status_code == 422
    assert demo.http.get("/nothing").status_code == 404
    assert (demo.engine()["finished_requests"] or 0) >= 4
    assert re.search(
        r'^INFO:     127\.0\.0\.1:\d+ - "POST /v1/completions HTTP/1\.1" 200 OK$', demo.log.read_text(), re.M
    )
    assert demo.logged("enforce_eager=True")
    assert not demo.logged("Capturing CUDA graphs")
    assert not demo.logged("torch.compile took")


def test_a_worker_that_dies_takes_the_server_with_it(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo()
    tree = demo.tree()
    demo.titled("VLLM::Worker_TP5").kill()
    assert demo.process.wait(20) == 0
    assert demo.logged("Worker proc VllmWorker-5 died unexpectedly (exit code: -9), shutting down executor.")
    assert demo.logged("EngineCore encountered a fatal error.")
    assert demo.logged("v1.engine.core_client.EngineDeadError: EngineCore encountered an issue.")
    assert psutil.wait_procs(tree, timeout=5)[1] == []


def test_a_stopped_worker_is_killed(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo()
    demo.titled("VLLM::Worker_TP1").suspend()
    assert_stops(demo)
    assert demo.logged("sending SIGKILL count=1")


def test_nothing_outlives_a_killed_api_server(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo()
    tree = demo.tree()
    demo.process.kill()
    assert psutil.wait_procs(tree, timeout=5)[1] == []


def test_it_can_be_stopped_while_it_starts(spawned: Spawn, tmp_path: Path, wait_for: WaitFor) -> None:
    log = tmp_path / "demo.log"
    with log.open("wb") as stream:
        process = spawned(demo_command(), stdout=stream, stderr=stream)
    demo = Demo(process, 0, log)
    wait_for(lambda: demo.logged("rank=7"), 20, "no worker started")
    tree = demo.tree()
    process.terminate()
    assert process.wait(20) == 0
    assert psutil.wait_procs(tree, timeout=5)[1] == []
    assert not demo.logged("Traceback")


@pytest.mark.parametrize(
    ("done", "elapsed_s", "line"),
    [
        (0, 0.0, "\rshards:   0% Completed | 0/4 [00:00<?, ?it/s]\n"),
        (1, 75.0, "\rshards:  25% Completed | 1/4 [01:15<03:45, 75.00s/it]\n"),
        (4, 2.0, "\rshards: 100% Completed | 4/4 [00:02<00:00,  2.00it/s]\n\n"),
    ],
)
def test_shards_bar(done: int, elapsed_s: float, line: str) -> None:
    assert shards_bar("shards", done, 4, elapsed_s) == line


def test_capture_bar_ends_its_line_only_when_full() -> None:
    assert capture_bar("graphs", 2, 4, 1.0) == "\rgraphs:  50%|█████     | 2/4 [00:01<00:01,  2.00it/s]"
    assert capture_bar("graphs", 4, 4, 2.0).endswith("100%|██████████| 4/4 [00:02<00:00,  2.00it/s]\n")


def test_exposition_of_a_histogram_is_cumulative() -> None:
    histogram, counter = Histogram("h", 1.0, 2.0), Metric("counter", "c", reason="stop")
    for value in (0.5, 2.0, 9.0):
        histogram.observe(value)
    page = exposition([histogram, counter], {"engine": "0"}).splitlines()
    assert page == [
        "# TYPE h histogram",
        'h_bucket{engine="0",le="1.0"} 1.0',
        'h_bucket{engine="0",le="2.0"} 2.0',
        'h_bucket{engine="0",le="+Inf"} 3.0',
        'h_count{engine="0"} 3.0',
        'h_sum{engine="0"} 11.5',
        "# TYPE c_total counter",
        'c_total{engine="0",reason="stop"} 0.0',
    ]
