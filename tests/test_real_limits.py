"""Why it is slow, on real vLLM: loads that are limited by one thing each, and loads that are not.

The judge gets what a recording of the run has, line by line.
"""

import http.client
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests import slow_plugin
from tests.conftest import Spawn, WaitFor
from tests.real_vllm import RealVllm
from vllm_probes.events import LimitChanged, Observation, StateChanged, VerdictChanged, decode
from vllm_probes.judges import limits

pytestmark = pytest.mark.vllm

READY_S = 240.0
TOLD_S = 300.0
"""Three looks at the server, ten seconds apart; a busy machine takes its time."""
SENTENCE = "the quick brown fox jumps over the lazy dog "


class JudgedRun:
    """A headless run whose observations are judged as they come."""

    def __init__(self, real: RealVllm, spawned: Spawn, folder: Path, *options: str, **serve: Any) -> None:
        environment = {**real.env, **serve.pop("env", {}), "XDG_STATE_HOME": str(folder / "state")}
        self.port, self.model = real.free_port(), str(real.model)
        argv = [*real.serve_argv(self.port, **serve), *options]
        program = [sys.executable, "-m", "vllm_tui", "run", "--headless", "--"]
        self._process = spawned([*program, *argv], env=environment, stdout=-1)
        self.memory = limits.Memory()
        self.told: list[LimitChanged] = []
        self.verdicts: list[VerdictChanged] = []
        """Of a run that is well all the time: none."""
        self.states: list[str] = []
        threading.Thread(target=self._judge, daemon=True).start()

    def _judge(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            event = decode(line)
            if isinstance(event, StateChanged):
                self.states.append(event.state)
            if isinstance(event, VerdictChanged):
                self.verdicts.append(event)
            if isinstance(event, Observation):
                self.memory, conclusions = limits.step(self.memory, event)
                self.told += [one for one in conclusions if isinstance(one, LimitChanged)]

    @property
    def limit(self) -> str | None:
        return self.told[-1].limit if self.told else None

    @property
    def judged_s(self) -> float:
        """For how long the same has limited the load, or nothing has."""
        candidate = self.memory.candidate
        return self.memory.mono - candidate.since_mono if candidate else 0.0

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        assert self.verdicts == []


class Load:
    """Clients that each send the same request over and over, with a pause after each answer."""

    def __init__(self, run: JudgedRun, clients: int, max_tokens: int, *, pause_s: float = 0.0, **body: Any) -> None:
        request = {"model": run.model, "prompt": "hello", "max_tokens": max_tokens, "ignore_eos": True} | body
        self._body, self._port, self._pause_s = json.dumps(request), run.port, pause_s
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        self.answers = 0

    def _ask(self) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while not self._over.is_set():
            with suppress(OSError, http.client.HTTPException):
                client.request("POST", "/v1/completions", self._body, {"Content-Type": "application/json"})
                answer = client.getresponse()
                answer.read()
                self.answers += answer.status == 200
            self._over.wait(self._pause_s)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        assert self.answers or error


def evidence_of(limit: str, run: JudgedRun, load: Load, wait_for: WaitFor) -> dict[str, str]:
    """What is told under this load with this limit, nothing but `eager` before it; afterwards it is taken back."""
    before = len(run.told)
    with load:
        wait_for(lambda: run.limit == limit, TOLD_S, f"{limit} was not told")
    told = run.told[before:]
    assert {one.limit for one in told} <= {limit, "eager", None}
    wait_for(lambda: run.limit is None, TOLD_S, "the load ended, the limit stayed")
    return {"summary": told[-1].summary} | {one.signal: one.value for one in told[-1].evidence}


def nothing_limits(run: JudgedRun, load: Load, seconds: float, wait_for: WaitFor) -> None:
    """Under this load nothing is found for so long."""
    with load:
        wait_for(lambda: run.judged_s >= seconds, TOLD_S, "the load was not judged, or not the same all the time")
        assert run.memory.candidate
        assert run.memory.candidate.limit is None
    wait_for(lambda: run.memory.candidate is None, TOLD_S, "the load never ended")
    assert run.limit is None


@pytest.fixture
def start(real_vllm: RealVllm, spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> Callable[..., JudgedRun]:
    def started(*options: str, **serve: Any) -> JudgedRun:
        run = JudgedRun(real_vllm, spawned, tmp_path, *options, **serve)
        wait_for(lambda: "idle" in run.states, READY_S, "the server never became ready")
        return run

    return started


def test_two_ranks(start: Callable[..., JudgedRun], wait_for: WaitFor, tmp_path: Path) -> None:
    """Eager left on; a cache of 64 blocks that is too small for many; a rank that sleeps."""
    slow_plugin.install(tmp_path / "plugin")
    order = tmp_path / "slow"
    folders = [str(tmp_path / "plugin"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(folders), "SLOW_RANK_FILE": str(order)}
    run = start("--num-gpu-blocks-override", "64", env=env)

    nothing_limits(run, Load(run, 1, 16, pause_s=1.0), 5.0, wait_for)
    assert evidence_of("eager", run, Load(run, 6, 100), wait_for)["debug setting, typed"] == "--enforce-eager"
    assert "preemptions" in evidence_of("kv_cache", run, Load(run, 100, 150), wait_for)
    order.write_text("sleep")
    assert evidence_of("slow_rank", run, Load(run, 32, 100), wait_for)["summary"].startswith("Worker_TP1 ")
    run.stop()


def test_one_rank(start: Callable[..., JudgedRun], wait_for: WaitFor) -> None:
    """Compiled: full load is no limit, prompts that are all tokenising are."""
    run = start(tensor_parallel=1, eager=False, env={"VLLM_CPU_OMP_THREADS_BIND": "0"})
    nothing_limits(run, Load(run, 48, 100), 15.0, wait_for)
    tokenising = Load(run, 32, 1, prompt=500 * SENTENCE, truncate_prompt_tokens=100)
    assert "CPU of APIServer" in evidence_of("api_server_cpu", run, tokenising, wait_for)
    run.stop()
