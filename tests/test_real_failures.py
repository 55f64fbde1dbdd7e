"""Failures of real vLLM, each made to happen, and the root cause that is found in what it leaves.

Most need one rank; where a rank or a worker has to fail, there are two.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from tests.hang_plugin import Order
from tests.real_server import Server
from tests.real_vllm import RealVllm

pytestmark = pytest.mark.vllm

ENDED_S = 240.0
"""A start takes 20 to 40 s on two idle cores; a busy machine takes its time."""
MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")
Finding = dict[str, Any]
Fail = Callable[..., list[Finding]]


@pytest.fixture
def fail(real_vllm: RealVllm, tmp_path: Path) -> Iterator[Fail]:
    """`fail(*options, **how)` runs a `vllm serve`, or another command, that has to end badly; its findings, the root
    cause first."""
    servers: list[Server] = []

    def run(
        *options: str,
        command: list[str] | None = None,
        model: str | None = None,
        ranks: int = 1,
        env: dict[str, str] | None = None,
        before: list[str] | None = None,
        when_idle: Callable[[Server], object] | None = None,
    ) -> list[Finding]:
        port = real_vllm.free_port()
        argv = command or [*real_vllm.serve_argv(port, tensor_parallel=ranks, model=model), *options]
        environment = {**real_vllm.env, "XDG_STATE_HOME": str(tmp_path / "state"), **(env or {})}
        if ranks == 1:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "0"
        server = Server([*(before or []), *argv], environment, port, model or str(real_vllm.model))
        servers.append(server)
        if when_idle is not None:
            assert server.is_ready(ENDED_S)
            when_idle(server)
        exited = server.until("exited", ENDED_S)
        assert exited
        assert server.process.wait(ENDED_S) != 0
        return list(exited["findings"])

    yield run
    for server in servers:
        if server.process.poll() is None:
            server.end()


def classes(findings: list[Finding]) -> list[str]:
    return [finding["class"] for finding in findings]


# --- what was typed -------------------------------------------------------------------------------------------------


def test_a_flag_that_does_not_exist(fail: Fail) -> None:
    found = fail("--max-batched-tokens", "8")
    assert classes(found) == ["invalid_argument"]
    assert "--max-batched-tokens" in found[0]["line"]


def test_a_length_that_the_model_does_not_have(fail: Fail) -> None:
    found = fail("--max-model-len", "1000000")
    assert classes(found)[0] == "invalid_argument"
    assert "--max-model-len 256" in found[0]["fix"]


def test_ranks_that_do_not_divide_the_heads(fail: Fail) -> None:
    assert classes(fail("--tensor-parallel-size", "3"))[0] == "invalid_argument"


def test_a_path_that_is_not_there(fail: Fail) -> None:
    found = fail(model="/nowhere/my-model")
    assert classes(found)[0] == "hf_download_or_auth"
    assert "/nowhere/my-model" in found[0]["line"]


def test_a_hub_that_must_not_be_asked(fail: Fail, tmp_path: Path) -> None:
    found = fail(model="someone/my-model", env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")})
    assert classes(found)[0] == "hf_download_or_auth"


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(real_vllm: RealVllm, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoiled."""
    copytree(real_vllm.model, tmp_path / "model")
    return tmp_path / "model"


def test_an_architecture_that_nobody_knows(fail: Fail, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["NobodysForCausalLM"]}))
    found = fail(model=str(model))
    assert classes(found)[0] == "model_arch_unsupported"
    assert "NobodysForCausalLM" in found[0]["line"]


def test_weights_that_were_cut_off(fail: Fail, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300_000])
    assert classes(fail(model=str(model)))[0] == "weights_missing_or_corrupt"


def test_a_tokenizer_that_is_missing(fail: Fail, model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert classes(fail(model=str(model)))[0] == "tokenizer_or_config_error"


# --- the host -------------------------------------------------------------------------------------------------------


def test_too_few_file_descriptors(fail: Fail) -> None:
    assert classes(fail(before=["prlimit", "--nofile=40"]))[0] == "port_or_fd_limits"


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    folder = MEMORY_CGROUPS / f"vllm-tui-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"no cgroup (v1) with a limit of memory can be made here: {error}")
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


def test_too_little_memory(fail: Fail) -> None:
    """All of it in a cgroup of its own, whose largest process the kernel kills."""
    with memory_cgroup(700 << 20) as cgroup:
        enter = 'echo $$ > "$0/cgroup.procs"; exec "$@"'
        found = fail(before=["sh", "-c", enter, str(cgroup)], ranks=2)
    assert classes(found)[0] == "host_oom_killed"
    assert "The kernel killed" in found[0]["why"]


# --- a rank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "word"), [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "native code")])
def test_a_worker_that_dies(fail: Fail, number: signal.Signals, word: str) -> None:
    found = fail(ranks=2, when_idle=lambda server: os.kill(server.pid_of("Worker_TP1"), number))
    assert classes(found)[0] == "worker_proc_died"
    is_known = "exit code: None" not in found[0]["line"]  # vLLM may ask before the kernel tells
    assert (word if is_known else "a signal is likely") in found[0]["why"].lower()


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order(tmp_path)


def test_an_exception_in_one_rank(fail: Fail, order: Order) -> None:
    order.give("load 1 raise")
    found = fail(ranks=2, env=order.environment)
    assert "RuntimeError: a rank that fails" in found[0]["line"]
    assert found[0]["role"] == "cause"
    assert "Worker_TP1" in found[0]["line"]


def test_an_answer_that_comes_too_late(fail: Fail, order: Order) -> None:
    def ask(server: Server) -> None:
        order.give("step 1 sleep")
        server.send()

    environment = {**order.environment, "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "45"}
    found = fail(ranks=2, env=environment, when_idle=ask)
    assert found[0]["rule"] == "hang"
    assert "Worker_TP1 sleeps" in found[0]["line"]
    assert "rpc_timeout" in classes(found)


# --- a script -------------------------------------------------------------------------------------------------------

SCRIPT = """
import vllm
llm = vllm.LLM({model!r}, max_model_len=256, enforce_eager=True, tensor_parallel_size=2)
"""


def test_a_script_without_a_guard(fail: Fail, real_vllm: RealVllm, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(SCRIPT.format(model=str(real_vllm.model)))
    command = [str(real_vllm.python), str(tmp_path / "job.py")]
    found = fail(command=command, ranks=2, env={"VLLM_WORKER_MULTIPROC_METHOD": "spawn"})
    assert classes(found)[0] == "mp_spawn_bootstrap"
