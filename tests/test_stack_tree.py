"""Merged stacks as rows: who stands together, what is folded, and that nothing gets lost."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hang_stacks import REDUCES, captured, doing, stacks, waits
from tests.stack_notation import thread
from tests.ui_source import Script
from vllm_probes.judges.ranksets import parse
from vllm_probes.judges.stackmerge import lines, merge
from vllm_probes.model import SessionModel
from vllm_probes.rows import StackFile, ThreadStack
from vllm_tui.screens.stack_looks import Forest, Group, forests, groups, members
from vllm_tui.screens.stack_tree import branches, calls, forest_rows, group_rows, rank_texts

RED = ("✖", "$text-error")


def model_of(*events: object) -> SessionModel:
    model = SessionModel()
    for event in (Script().attempt_started(), *events):
        model.apply(event)  # type: ignore[arg-type]
    return model


def seen(model: SessionModel, named: Mapping[int, tuple[str, str]] | None = None) -> list[Group]:
    return groups(members(model, model.stacks[-1], named or {}))


def drawn(members: Mapping[str, ThreadStack], width: int = 100, *, by_line: bool = False, folded: bool = False) -> str:
    rows = forest_rows(Forest("Workers", members), width, by_line=by_line, folded=folded)
    return "\n".join(row.plain.rstrip() for row in rows)


def test_those_that_do_the_same_stand_together_and_the_named_one_first() -> None:
    script = Script()
    model = model_of(captured(script, 10), captured(script, 13), doing(script, 13, since=4))
    odd, peers, engine = seen(model, {4034: RED})
    assert (odd.labels, odd.what, odd.motion, odd.doing_s) == ({"TP3"}, "waits for a lock", "frozen", 9.0)
    assert odd.is_odd
    assert odd.look == RED
    assert peers.labels == {f"TP{rank}" for rank in range(8) if rank != 3}
    assert (peers.what, peers.is_odd, peers.look) == ("all_reduce", False, None)
    assert (engine.labels, engine.what) == ({"EngineCore"}, "waits for workers")


def test_an_older_capture_has_no_times_and_the_first_no_motion() -> None:
    script = Script()
    model = model_of(captured(script, 10), doing(script, 10, since=4), captured(script, 13))
    assert {group.doing_s for group in seen(model)} == {None}
    first = groups(members(model, model.stacks[0], {}))
    assert {group.doing_s for group in first} == {6.0}
    assert {group.motion for group in first} == {""}


@pytest.mark.parametrize(
    ("after", "motions"),
    [
        (REDUCES, {"frozen"}),
        (REDUCES.replace(":724", ":725"), {"7 frozen, 1 line moves", "frozen"}),
        (REDUCES.replace("forward", "backward"), {"frozen", "function moves"}),
    ],
)
def test_motion_is_told_in_words(after: str, motions: set[str]) -> None:
    script = Script()
    model = model_of(captured(script, 10, *stacks(odd=99)), captured(script, 13, *stacks(odd=5, odd_stack=after)))
    assert {group.motion for group in seen(model)} == motions


def test_a_motion_is_only_that_of_its_own_attempt() -> None:
    again = Script(attempt=2)
    model = model_of(captured(Script(), 10), again.attempt_started(20), captured(again, 30))
    assert {group.motion for group in seen(model)} == {""}


def test_two_ranks_have_no_odd_one_and_a_single_one_no_ranks() -> None:
    script = Script()
    model = model_of(captured(script, 10, *stacks(1, workers=2)))
    assert not any(group.is_odd for group in seen(model))
    (engine,) = (
        one for one in forests(members(model, model.stacks[0], {}), all_threads=False) if len(one.members) == 1
    )
    assert engine.title == "EngineCore"
    assert all("not " not in row.plain for row in forest_rows(engine, 80, by_line=False, folded=True))


def test_threads_of_one_name_are_merged_and_a_second_of_that_name_is_not_lost() -> None:
    twice = [thread("get (queue.py:1)", thread_id=rank, name="pool") for rank in (7, 8)]
    files = [
        StackFile(pid=4031 + rank, process=f"Worker_TP{rank}", threads=[waits(REDUCES, 4031 + rank), *twice])
        for rank in range(2)
    ]
    model = model_of(captured(Script(), 10, *files))
    found = forests(members(model, model.stacks[0], {}), all_threads=True)
    assert [forest.title for forest in found] == ["Workers", "Workers, pool", "Workers, pool (2)"]
    assert all(forest.members.keys() == {"TP0", "TP1"} for forest in found)


def test_processes_of_a_script_are_compared_by_name() -> None:
    files = [StackFile(pid=pid, process="train.py", threads=[waits("step (train.py:9)", pid)]) for pid in (1, 2, 3)]
    model = model_of(captured(Script(), 10, *files))
    (forest,) = forests(members(model, model.stacks[0], {}), all_threads=False)
    assert forest.title == "train.py"
    assert forest.members.keys() == {"pid1", "pid2", "pid3"}


def test_a_drawing_says_who_is_there_and_who_is_not() -> None:
    threads = {
        f"TP{rank}": waits("b (m.py:2) < a (m.py:1)" if rank else "c (m.py:3) < a (m.py:1)", 1) for rank in range(4)
    }
    assert drawn(threads) == (
        " Workers  TP0-3\n"
        "     a     m.py:1    TP0-3\n"
        "     ├─ b  m.py:2    TP1-3  not TP0\n"
        "     └─ c  m.py:3    TP0  not TP1-3"
    )


def test_a_rank_that_ends_where_others_go_on_is_seen() -> None:
    threads = {"TP0": waits("a (m.py:1)", 1), "TP1": waits("b (m.py:2) < a (m.py:1)", 2)}
    assert "└─ b  m.py:2    TP1  not TP0" in drawn(threads)
    assert "└─ b  m.py:2    TP1  not TP0" in drawn(threads, folded=True)


def test_lines_that_are_not_shared_are_left_out_until_they_count() -> None:
    threads = {f"TP{rank}": waits(f"a (m.py:{rank + 1})", 1) for rank in range(2)}
    assert "m.py:" not in drawn(threads)
    assert "m.py:1" in drawn(threads, by_line=True)


@pytest.mark.parametrize("width", [40, 77, 117, 197])
def test_rows_fit(width: int) -> None:
    script = Script()
    names = [f"Worker_DP{dp}_PP0_TP{tp}" for dp in range(3) for tp in range(20)]
    files = [
        StackFile(
            pid=pid, process=name, threads=[waits(REDUCES if pid % 3 else REDUCES.replace("forward", "x" * 99), pid)]
        )
        for pid, name in enumerate(names)
    ]
    model = model_of(captured(script, 10, *files))
    found = members(model, model.stacks[0], {1: RED})
    rows = group_rows(groups(found), width)
    for forest in forests(found, all_threads=True):
        rows += forest_rows(forest, width, by_line=True, folded=False)
    assert max(row.cell_length for row in rows) <= width


def test_of_many_ranks_those_are_named_that_are_fewer() -> None:
    grid = {f"DP{dp}_TP{tp}" for dp in range(16) for tp in range(8)}
    threads = {name: waits("b (m.py:2) < a (m.py:1)" if name != "DP9_TP5" else "a (m.py:1)", 1) for name in grid}
    assert drawn(threads).splitlines()[1:] == [
        "     a     m.py:1    DP0-15_TP0-7",
        "     └─ b  m.py:2    all but DP9_TP5",
    ]
    alone = {name: waits("a (m.py:1)" if name != "DP9_TP5" else "b (m.py:2) < a (m.py:1)", 1) for name in grid}
    assert drawn(alone).splitlines()[-1] == "     └─ b  m.py:2    DP9_TP5  not 127 others"
    files = [
        StackFile(pid=pid, process=f"Worker_{name}", threads=[waits(REDUCES, pid)]) for pid, name in enumerate(grid)
    ]
    model = model_of(captured(Script(), 10, *files[1:]))
    assert "127 workers" in group_rows(groups(members(model, model.stacks[0], {})), 77)[1].plain


frame = st.sampled_from(
    ["f (m.py:1)", "f (m.py:2)", "g (m.py:3)", "wait (threading.py:9)", "_call_impl (torch/nn/modules/module.py:4)"]
)
stacks_of_ranks = st.dictionaries(
    st.integers(0, 9).map("TP{}".format), st.lists(frame, min_size=1, max_size=6).map(" < ".join), min_size=1
)


@given(stacks_of_ranks, st.booleans())
def test_unfolded_every_call_stands_there_once(texts: dict[str, str], by_line: bool) -> None:
    tree = merge({member: waits(text, 1) for member, text in texts.items()}, by_line)
    found = list(calls(branches(tree), folded=False))
    assert [(call.frame, call.present) for call in found] == [(line.frame, line.present) for line in lines(tree)]


@given(stacks_of_ranks, st.booleans())
def test_folded_every_rank_still_ends_somewhere(texts: dict[str, str], by_line: bool) -> None:
    tree = merge({member: waits(text, 1) for member, text in texts.items()}, by_line)
    shown = list(calls(branches(tree), folded=True))
    ends = [node for node in tree.nodes if node.ending]
    assert {(node.frame, node.members) for node in ends} <= {(call.frame, call.present) for call in shown}
    assert len(shown) <= len(tree.nodes)


@given(stacks_of_ranks)
def test_ranks_can_be_read_back(texts: dict[str, str]) -> None:
    tree = merge({member: waits(text, 1) for member, text in texts.items()})
    for line in lines(tree):
        there, missing = rank_texts(line.present, line.absent)
        assert parse(there) == line.present
        assert parse(missing.removeprefix("not ")) == line.absent
