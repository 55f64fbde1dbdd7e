"""The verdict on the screen: at every size, while it lasts, and when the run has ended."""

from pathlib import Path
from typing import Any

import pytest

from tests.ui_source import SIZES, Script, running, screen_text, serving, shows, until
from vllm_probes.events import DeadlineChanged, VerdictChanged
from vllm_probes.rows import Culprit, Evidence


def stalled(script: Script, at: float, **fields: Any) -> VerdictChanged:
    culprit = Culprit(process="Worker_TP3", pid=4034, rank=3, doing="lock", frame="acquire (pool.py:88)")
    known = {
        "health": "stalled",
        "kind": "rank_absent",
        "culprits": [culprit],
        "summary": "Worker_TP3 waits for a lock: acquire (pool.py:88); 7 processes wait for it.",
        "evidence": [
            Evidence(signal="no tokens", value="for 9 s"),
            Evidence(signal="GPUs", value="3 at 0 %, the others busy at up to 118 W"),
            Evidence(signal="Worker_TP3", value="waits for a lock: acquire (pool.py:88)"),
            Evidence(signal="Worker_TP0 and 6 more", value="is in a collective: all_reduce (torch/_ops.py:1)"),
        ],
        "since": script.stamp(at - 9)["time"],
    }
    return VerdictChanged(**script.stamp(at), **{**known, **fields})


@pytest.mark.parametrize("size", SIZES)
async def test_who_holds_everybody_up_stands_at_the_top(tmp_path: Path, size: tuple[int, int]) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(stalled(script, 55))
    async with running(source, tmp_path, size=size, now=60) as (app, pilot):
        await shows(app, pilot, "✖ STALLED 14 s · rank absent", "Worker_TP3 waits for a lock: acquire (pool.py:88)")
        await shows(app, pilot, "GPUs: 3 at 0 %", "Worker_TP0 and 6 more: is in a collective")
        assert screen_text(app).count("acquire (pool.py:88)") == 1
        source.play(VerdictChanged(**script.stamp(61), health="ok"))
        await until(pilot, lambda: "STALLED" not in screen_text(app))


async def test_a_suspicion_looks_different(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(stalled(script, 55, health="suspect", culprits=[], summary="All wait.", evidence=[]))
    async with running(source, tmp_path, now=60) as (app, pilot):
        await shows(app, pilot, "▲ SUSPECT 14 s", "All wait.")


async def test_vllm_s_own_patience_is_counted_down(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    name = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
    deadline = DeadlineChanged(**script.stamp(55), name=name, gives_up_mono=script.stamp(346.5)["mono"])
    source.play(stalled(script, 55), deadline)
    async with running(source, tmp_path, now=60) as (app, pilot):
        await shows(app, pilot, f"vLLM gives up in 4:46 ({name})")
        source.play(DeadlineChanged(**script.stamp(61)))
        await until(pilot, lambda: "gives up" not in screen_text(app))


async def test_it_stays_when_the_run_has_ended(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(stalled(script, 55), script.state("crashed", 70), script.command_ended(70, 1), script.tree_ended(71))
    async with running(source, tmp_path, now=900) as (app, pilot):
        await shows(app, pilot, "CRASHED", "✖ STALLED 24 s")
