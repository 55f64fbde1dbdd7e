"""A real hang of real vLLM: the rank that takes a lock twice before a collective is named, with what it does."""

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests import hang_plugin
from tests.conftest import Spawn, WaitFor
from tests.real_vllm import RealVllm
from vllm_probes.events import Event, StateChanged, VerdictChanged, decode

pytestmark = pytest.mark.vllm


def test_the_rank_that_never_comes_to_the_collective(
    real_vllm: RealVllm, spawned: Spawn, wait_for: WaitFor, tmp_path: Path
) -> None:
    hang_plugin.install(tmp_path / "plugin")
    order, port = tmp_path / "order", real_vllm.free_port()
    own = {"PYTHONPATH": str(tmp_path / "plugin"), "HANG_FILE": str(order), "XDG_STATE_HOME": str(tmp_path / "state")}
    program = [sys.executable, "-m", "vllm_tui", "run", "--headless", "--", *real_vllm.serve_argv(port)]
    run = spawned(program, env={**real_vllm.env, **own}, stdout=subprocess.PIPE)
    events: list[Event | None] = []

    def verdicts() -> list[VerdictChanged]:
        return [event for event in list(events) if isinstance(event, VerdictChanged)]

    def collect() -> None:
        assert run.stdout
        events.extend(decode(line) for line in run.stdout)

    threading.Thread(target=collect, daemon=True).start()
    wait_for(lambda: any(isinstance(event, StateChanged) and event.state == "idle" for event in list(events)), 240)
    draft = order.with_suffix(".draft")
    draft.write_text("collective 1 lock")
    draft.rename(order)
    body = json.dumps({"model": str(real_vllm.model), "prompt": "hello", "max_tokens": 50}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )

    def send() -> None:
        with suppress(OSError):
            urllib.request.urlopen(request, timeout=120).read()

    threading.Thread(target=send, daemon=True).start()
    wait_for(lambda: any(verdict.health == "stalled" for verdict in verdicts()), 60, "no verdict")
    verdict = verdicts()[-1]
    assert (verdict.kind, [(one.process, one.rank, one.doing) for one in verdict.culprits]) == (
        "rank_absent",
        [("Worker_TP1", 1, "lock")],
    )
    assert verdict.culprits[0].frame is not None
    assert verdict.culprits[0].frame.startswith("take_a_lock_twice (")
    assert [one.health for one in verdicts()] == ["suspect", "stalled"]
    run.send_signal(signal.SIGTERM)
    run.wait(60)
