"""A real hang of real vLLM: the rank that takes a lock twice before a collective is named, with what it does."""

from pathlib import Path

import pytest

from tests.hang_plugin import Order
from tests.real_server import Server
from tests.real_vllm import RealVllm

pytestmark = pytest.mark.vllm


def test_the_rank_that_never_comes_to_the_collective(real_vllm: RealVllm, tmp_path: Path) -> None:
    order, port = Order(tmp_path), real_vllm.free_port()
    environment = {**real_vllm.env, **order.environment, "XDG_STATE_HOME": str(tmp_path / "state")}
    server = Server(real_vllm.serve_argv(port), environment, port, str(real_vllm.model))
    try:
        assert server.is_ready(240)
        order.give("collective 1 lock")
        server.send()
        verdict = server.until("verdict_changed", 60, lambda event: event["health"] == "stalled")
        assert verdict
        [culprit] = verdict["culprits"]
        assert verdict["kind"] == "rank_absent"
        assert (culprit["process"], culprit["rank"], culprit["doing"]) == ("Worker_TP1", 1, "lock")
        assert culprit["frame"].startswith("take_a_lock_twice (")
        assert [one["health"] for one in server.of("verdict_changed")] == ["suspect", "stalled"]
    finally:
        server.end()
