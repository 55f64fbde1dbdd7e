"""The verdict on the screen: at every size, while it lasts, and when the run has ended."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.ui_source import SIZES, START_MONO, Script, running, screen_text, serving, shows, until
from vllm_probes.events import DeadlineChanged, VerdictChanged
from vllm_probes.model import SessionModel
from vllm_probes.rows import Culprit, Evidence

SHOWN = "snapshots/1-1763700055000-quiet/4034-Worker_TP3.json"


def stalled(script: Script, at: float, **fields: Any) -> VerdictChanged:
    culprit = Culprit(process="Worker_TP3", pid=4034, rank=3, doing="lock", frame="acquire (pool.py:88)")
    known = {
        "health": "stalled",
        "kind": "rank_absent",
        "culprits": [culprit],
        "summary": "Worker_TP3 waits for a lock: acquire (pool.py:88); 7 processes wait for it.",
        "evidence": [
            Evidence(signal="no tokens", value="for 9 s", since=script.stamp(at - 9)["time"]),
            Evidence(signal="GPUs", value="3 at 0 %, the others busy at up to 118 W"),
            Evidence(signal="Worker_TP3", value="waits for a lock: acquire (pool.py:88)", file=SHOWN),
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
        at = time.strftime("%H:%M:%S", time.localtime(script.stamp(46)["time"]))
        await shows(app, pilot, f"no tokens since {at} · evidence: snapshots/1-1763700055000-quiet")
        assert screen_text(app).count("acquire (pool.py:88)") == 1
        source.play(VerdictChanged(**script.stamp(61), health="ok"))
        await until(pilot, lambda: "STALLED" not in screen_text(app))


async def test_a_suspicion_looks_different(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(stalled(script, 55, health="suspect", culprits=[], summary="All wait.", evidence=[]))
    async with running(source, tmp_path, now=60) as (app, pilot):
        await shows(app, pilot, "▲ SUSPECT 14 s", "All wait.")
        assert "evidence" not in screen_text(app)


async def test_vllm_s_own_patience_is_counted_down(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    name = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
    gives_up_mono = script.stamp(346.5)["mono"]
    deadline = DeadlineChanged(**script.stamp(55), name=name, gives_up_mono=gives_up_mono, what="it ends")
    source.play(stalled(script, 55), deadline)
    async with running(source, tmp_path, now=60) as (app, pilot):
        await shows(app, pilot, f"vLLM gives up in 4:46: it ends ({name})")
        source.play(DeadlineChanged(**script.stamp(61)))
        await until(pilot, lambda: "gives up" not in screen_text(app))


async def test_it_stays_when_the_run_has_ended(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(stalled(script, 55), script.state("crashed", 70), script.command_ended(70, 1), script.tree_ended(71))
    async with running(source, tmp_path, now=900) as (app, pilot):
        await shows(app, pilot, "CRASHED", "✖ STALLED 24 s")


@pytest.mark.parametrize("size", SIZES)
async def test_afterwards_it_is_told_how_it_came_to_that(tmp_path: Path, size: tuple[int, int]) -> None:
    script = Script()
    source = serving(script, tmp_path)
    first = stalled(script, 51, health="suspect", since=script.stamp(46)["time"])
    later = [stalled(script, at, health=health, since=first.since) for at, health in ((55, "stalled"), (58, "suspect"))]
    source.play(first, *later, stalled(script, 61, since=first.since))
    async with running(source, tmp_path, size=size, now=900) as (app, pilot):
        await shows(app, pilot, "✖ STALLED")
        assert "last progress" not in screen_text(app)
        source.play(script.command_ended(70, None, 9), script.tree_ended(71))
        at = time.strftime("%H:%M:%S", time.localtime(first.since))
        await shows(app, pilot, f"{at} last progress → suspect +5.0 s → stalled +9.0 s → killed (SIGKILL)", "+24 s")


async def test_one_that_died_says_so_and_with_a_hang_before_how_it_went(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    gone = stalled(script, 55, health="dead", kind="unknown", summary="Worker_TP3 went first.", evidence=[], since=None)
    source.play(gone, script.state("crashed", 55), script.command_ended(56, 1), script.tree_ended(57))
    async with running(source, tmp_path, now=60) as (app, pilot):
        await shows(app, pilot, "── ✖ DEAD ──", "Worker_TP3 went first.")
        assert "→" not in screen_text(app)
    source = serving(script, tmp_path)
    hung = stalled(script, 55)
    source.play(hung, stalled(script, 70, health="dead", since=hung.since), script.command_ended(70, 1))
    async with running(source, tmp_path, now=80) as (app, pilot):
        await shows(app, pilot, "✖ DEAD 24 s · rank absent", "last progress → stalled +9.0 s → ended with code 1 +24 s")


async def test_a_run_that_somebody_stopped_says_so(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(stalled(script, 55), script.stop_requested(66), script.command_ended(70), script.tree_ended(71))
    async with running(source, tmp_path, now=900) as (app, pilot):
        await shows(app, pilot, "last progress → stalled +9.0 s → stopped +24 s")


def test_only_the_first_verdict_of_each_health_is_kept_and_none_once_things_move() -> None:
    script, model = Script(), SessionModel()
    model.apply(script.attempt_started())
    for at in range(50, 90, 4):
        model.apply(stalled(script, at, health="suspect"))
        model.apply(stalled(script, at + 2))
    assert model.attempt is not None
    assert [(one.health, one.mono - START_MONO) for one in model.attempt.hang] == [("suspect", 50), ("stalled", 52)]
    model.apply(VerdictChanged(**script.stamp(90), health="ok"))
    assert model.attempt.hang == []
    assert model.attempt.verdict is not None
