"""What each process does, in the table and in one row; the one that holds the others up stands out without colour."""

from pathlib import Path

import pytest

from tests.hang_stacks import doing, verdict
from tests.ui_source import Script, row, running, screen_text, serving, shows, until
from vllm_probes.events import DoingChanged, VerdictChanged
from vllm_probes.model import SessionModel
from vllm_probes.rows import Culprit, ProcessDoing
from vllm_tui.situation import Situation
from vllm_tui.widgets.doing import LOOK_LASTS_S, doings_now
from vllm_tui.widgets.processes import INDENT, groups, layout, seen_rows, split, summary, table_row

START_MONO = 1000.0


def situation(*events: object, now: float = 60) -> Situation:
    script, model = Script(), SessionModel()
    for event in (script.attempt_started(), script.state("serving"), script.tree(), *events):
        model.apply(event)  # type: ignore[arg-type]
    return Situation(model=model, now=START_MONO + now)


@pytest.mark.parametrize("size", [(120, 36), (200, 50)])
async def test_the_table_says_what_each_does_and_for_how_long(tmp_path: Path, size: tuple[int, int]) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(doing(script, 56, since=46), verdict(script, 56))
    async with running(source, tmp_path, size=size, now=60) as (app, pilot):
        await shows(app, pilot, "STALLED", "does", "waits for workers")
        rows = screen_text(app).splitlines()
        culprit = next(at for at, text in enumerate(rows) if "✖ Worker_TP3" in text)
        assert "waits for a lock" in rows[culprit]
        assert "14 s" in rows[culprit]
        assert "name" in rows[culprit - 1]
        assert sum("all_reduce " in text and "14 s" in text for text in rows) == 7
        source.play(DoingChanged(**script.stamp(61)), VerdictChanged(**script.stamp(61), health="ok"))
        await shows(app, pilot, "state", "runs")
        assert "does" not in screen_text(app)
        assert "✖" not in screen_text(app)


async def test_one_row_names_the_culprit_first(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(doing(script, 56, since=46), verdict(script, 56))
    async with running(source, tmp_path, size=(80, 24), now=60) as (app, pilot):
        await shows(app, pilot, "✖ Worker_TP3 waits for a lock 14 s  7 workers all_reduce")
        source.play(verdict(script, 57, health="suspect"))
        await shows(app, pilot, "▲ Worker_TP3 waits for a lock 14 s")


async def test_times_go_on_while_nothing_new_comes(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(doing(script, 56, since=46), verdict(script, 56))
    async with running(source, tmp_path, size=(80, 24), now=60) as (app, pilot):
        await shows(app, pilot, "waits for a lock 14 s", "STALLED 13 s")
        app._clock = lambda: START_MONO + 63
        await shows(app, pilot, "waits for a lock 17 s", "STALLED 16 s", "up 0:01:03")


def test_a_look_is_outdated_by_time_by_a_stop_by_the_end_and_by_tokens() -> None:
    script = Script()
    look = doing(script, 50)
    assert len(doings_now(situation(look))) == 9
    assert doings_now(situation(look, now=51 + LOOK_LASTS_S)) == {}
    assert doings_now(situation(look, script.stop_requested(55))) == {}
    assert doings_now(situation(script.stop_requested(45), look))
    assert doings_now(situation(look, script.command_ended(55))) == {}
    before = [script.endpoint(47, tokens=1), script.endpoint(49, tokens=9)]
    assert doings_now(situation(*before, look, script.endpoint(51, tokens=9), script.endpoint(52, tokens=9)))
    moved = [script.endpoint(51, tokens=9), script.endpoint(52, tokens=10)]
    assert doings_now(situation(*before, look, *moved)) == {}


@pytest.mark.parametrize("width", [38, 59, 64, 80, 110])
def test_rows_of_the_table_are_as_wide_as_each_other(width: int) -> None:
    script = Script()
    now = situation(doing(script, 50), verdict(script, 50))
    processes = list(now.model.processes.values())
    table = layout(processes, width, has_doings=True)
    rows = [table_row(seen, table) for seen in seen_rows(now, processes, {4034: ("✖", "$text-error")})]
    assert {one.cell_length for one in rows} == {max(width, rows[0].cell_length)}
    assert all(one.plain.startswith(INDENT) or one.plain.startswith(" ✖ Worker_TP3") for one in rows)


def test_a_process_without_stacks_tells_its_state() -> None:
    script = Script()
    now = situation(doing(script, 50), script.processes(row(4060, "python", role="worker", state="D"), at=50))
    api, stuck = (next(seen_rows(now, [now.model.processes[pid]], {})) for pid in (4001, 4060))
    table = layout([api.row, stuck.row], 59, has_doings=True)
    assert "sleeps" in table_row(api, table).plain
    assert "I/O wait" in table_row(stuck, table).plain


def test_a_culprit_is_never_folded_away() -> None:
    rows = [row(pid, "w", role="worker", rank=pid) for pid in range(1, 41)]
    shown, folded = split(rows, {40})
    assert shown[0].pid == 40
    assert len(shown) + len(folded) == 40


def test_those_that_do_the_same_are_told_together() -> None:
    script = Script()
    odd = [Culprit(process=f"Worker_TP{rank}", pid=4031 + rank, rank=rank, doing="lock", frame=None) for rank in (3, 5)]
    look = doing(script, 50)
    rows = [
        ProcessDoing(pid=4036, doing="lock", what="waits for a lock", since=look.processes[4].since)
        if one.pid == 4036
        else one
        for one in look.processes
    ]
    now = situation(DoingChanged(**script.stamp(50), processes=rows), verdict(script, 50, culprits=odd))
    shown, _ = split(list(now.model.processes.values()), {4034, 4036})
    named = {4034: ("✖", "$text-error"), 4036: ("✖", "$text-error")}
    said = [summary(group).plain for group in groups(list(seen_rows(now, shown, named)))]
    assert said == [
        "✖ Worker_TP3 and 1 more waits for a lock 10 s",
        "6 workers all_reduce",
        "APIServer 3 %",
        "EngineCore waits for workers",
    ]


def test_the_culprit_stands_alone_also_when_nobody_looks_any_more() -> None:
    script = Script()
    now = situation(doing(script, 50), verdict(script, 50), now=50 + 2 * LOOK_LASTS_S)
    shown, _ = split(list(now.model.processes.values()), {4034})
    said = [summary(group).plain for group in groups(list(seen_rows(now, shown, {4034: ("✖", "$text-error")})))]
    assert said == ["✖ Worker_TP3 97 %", "7 workers 97-99 %", "APIServer 3 %", "EngineCore 99 %"]


async def test_untrusted_names_stay_text(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    rows = [ProcessDoing(pid=4034, doing="collective", what="[red]\x1b[2J", since=script.stamp(50)["time"])]
    source.play(DoingChanged(**script.stamp(56), processes=rows))
    async with running(source, tmp_path, now=60) as (app, pilot):
        await shows(app, pilot, "[red]·[2J")
        await until(pilot, lambda: "does" in screen_text(app))
