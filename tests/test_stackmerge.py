"""Stacks of many ranks as one tree, rank sets in few words, what moved, and the odd one."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stack_notation import thread
from vllm_probes.judges.ranksets import labels, natural, parse, render
from vllm_probes.judges.stackmerge import (
    Tree,
    lines,
    merge,
    moving,
    odd_ones,
)
from vllm_probes.rows import Frame, ThreadStack

# --- rank sets --------------------------------------------------------------------------------------------------------


def ranks(pattern: str, *ranges: range) -> list[str]:
    """`ranks("DP%d_TP%d", range(2), range(4))`: the whole grid."""
    names = [pattern]
    for numbers in ranges:
        names = [name.replace("%d", str(number), 1) for name in names for number in numbers]
    return names


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([], ""),
        (["TP0"], "TP0"),
        (["TP2", "TP0", "TP1", *ranks("TP%d", range(4, 8))], "TP0-2,4-7"),
        (ranks("TP%d", range(128)), "TP0-127"),
        (ranks("DP%d_TP%d", range(2), range(4)), "DP0-1_TP0-3"),
        ([*ranks("DP%d_TP%d", range(2), range(4))][:-1], "DP0_TP0-3 DP1_TP0-2"),
        (ranks("DP%d_PP%d_TP%d", range(2), range(2), range(4)), "DP0-1_PP0-1_TP0-3"),
        (["PP0_TP1", "PP1_TP1"], "PP0-1_TP1"),
        (["pid4031", "pid4032", "pid4099"], "pid4031-4032,4099"),
        (["EngineCore", "TP1", "APIServer"], "APIServer EngineCore TP1"),
        (["VllmWorker-1", "VllmWorker-2"], "VllmWorker-1-2"),
        (["TP10", "TP9"], "TP9-10"),
        (["rank 1", "1-2", "TP01", 'a"b', ""], r'"" "1-2" "TP01" "a\"b" "rank 1"'),
    ],
)
def test_render(members: list[str], text: str) -> None:
    assert render(members) == text
    assert parse(text) == set(members)


number = st.integers(0, 130)
rank_names = (
    st.builds("TP{}".format, number)
    | st.builds("DP{}_TP{}".format, st.integers(0, 3), st.integers(0, 3))
    | st.builds("DP{}_PP{}_TP{}".format, st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
    | st.builds("pid{}".format, number)
    | st.sampled_from(["EngineCore", "APIServer_0", "VllmWorker-1", "run.py", "python3.11", "TP01", "1-2", "x y"])
    | st.text('aT0_1-,. "\\', max_size=6)
)


@given(st.sets(rank_names, max_size=40))
def test_parse_is_the_inverse_of_render(members: set[str]) -> None:
    assert parse(render(members)) == members


@given(st.sets(rank_names, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_the_members_does_not_matter(members: set[str], rng: random.Random) -> None:
    shuffled = rng.sample(sorted(members), len(members))
    assert render(shuffled) == render(sorted(members))


def test_natural_order() -> None:
    assert sorted(["TP10", "TP9", "TP1"], key=natural) == ["TP1", "TP9", "TP10"]


def test_labels() -> None:
    names = {
        1: "APIServer",
        2: "EngineCore_DP0",
        3: "Worker_TP0",
        4: "Worker_DP1_PP0_TP3_EP7",
        5: "Worker",
        6: "Worker",
    }
    assert labels(names) == {
        **{1: "APIServer", 2: "EngineCore_DP0", 3: "TP0", 4: "DP1_PP0_TP3"},
        **{5: "pid5", 6: "pid6"},
    }


# --- the tree ---------------------------------------------------------------------------------------------------------

LOOP = "step (core.py:{}) < loop (core.py:9) < <module> (run.py:1)"
WAITS = thread("all_reduce (dist.py:7) < " + LOOP.format(3))
COMPUTES = thread("matmul (layer.py:5) < " + LOOP.format(4))
IDLE = thread("get (queue.py:1) < loop (core.py:8) < <module> (run.py:1)")
EIGHT = {f"TP{n}": WAITS for n in range(8)} | {"TP3": COMPUTES}


def drawn(tree: Tree) -> list[str]:
    return [
        f"{'  ' * line.depth}{line.frame.function}:{line.frame.line} {render(line.present)} | {render(line.absent)}"
        + (" ." if line.is_leaf else "")
        for line in lines(tree)
    ]


def test_one_tree_of_all_ranks() -> None:
    assert drawn(merge(EIGHT)) == [
        "<module>:1 TP0-7 | ",
        "  loop:9 TP0-7 | ",
        "    step:0 TP0-7 | ",
        "      all_reduce:7 TP0-2,4-7 | TP3 .",
        "      matmul:5 TP3 | TP0-2,4-7 .",
    ]


def test_by_line_the_same_function_is_two_calls() -> None:
    assert drawn(merge(EIGHT, by_line=True)) == [
        "<module>:1 TP0-7 | ",
        "  loop:9 TP0-7 | ",
        "    step:3 TP0-2,4-7 | TP3",
        "      all_reduce:7 TP0-2,4-7 | TP3 .",
        "    step:4 TP3 | TP0-2,4-7",
        "      matmul:5 TP3 | TP0-2,4-7 .",
    ]


def test_a_stack_may_end_where_another_goes_on_or_not_exist() -> None:
    tree = merge({"TP0": WAITS, "TP1": thread(LOOP.format(3)), "TP2": thread(), "TP3": IDLE})
    assert drawn(tree) == [
        "<module>:1 TP0-1,3 | TP2",
        "  loop:0 TP0-1,3 | TP2",
        "    step:3 TP0-1 | TP2-3 .",
        "      all_reduce:7 TP0 | TP1-3 .",
        "    get:1 TP3 | TP0-2 .",
    ]
    assert {render(group.members): len(group.frames) for group in tree.groups} == {
        "TP0": 4,
        "TP1": 3,
        "TP2": 0,
        "TP3": 3,
    }


def test_groups_come_largest_first_with_the_lines_that_they_share() -> None:
    tree = merge({"TP0": thread("f (x.py:1)"), "TP1": thread("f (x.py:2)"), "TP2": thread("g (x.py:3)")})
    assert [(render(group.members), group.frames) for group in tree.groups] == [
        ("TP0-1", (Frame(function="f", file="x.py"),)),
        ("TP2", (Frame(function="g", file="x.py", line=3),)),
    ]


def test_nothing_to_merge() -> None:
    assert merge({}) == Tree(frozenset(), (), ())
    assert odd_ones(merge({})) == ()


def test_a_stack_deeper_than_ours_may_be() -> None:
    deep = thread(" < ".join(f"f{n} (x.py:{n})" for n in range(3000)))
    assert len(list(lines(merge({"TP0": deep, "TP1": deep})))) == 3000


calls = st.builds(Frame, function=st.sampled_from("abc"), file=st.sampled_from("xy"), line=st.integers(1, 2))
stacks = st.dictionaries(
    st.builds("TP{}".format, st.integers(0, 20)),
    st.builds(ThreadStack, thread_id=st.just(1), frames=st.lists(calls, max_size=5)),
    max_size=12,
)


@given(stacks, st.booleans())
def test_every_rank_is_at_the_root_once_and_in_one_group(some: dict[str, ThreadStack], by_line: bool) -> None:
    tree = merge(some, by_line)
    grouped = [member for group in tree.groups for member in group.members]
    assert sorted(grouped) == sorted(tree.members) == sorted(some)
    rooted = [member for node in tree.nodes if node.depth == 0 for member in node.members]
    ended = [member for node in tree.nodes for member in node.ending]
    with_stack = sorted(member for member, stack in some.items() if stack.frames)
    assert sorted(rooted) == sorted(ended) == with_stack


@given(stacks, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_merging_does_not_matter(some: dict[str, ThreadStack], by_line: bool, rng: random.Random) -> None:
    shuffled = dict(rng.sample(sorted(some.items()), len(some)))
    assert merge(shuffled, by_line) == merge(some, by_line)


@given(stacks)
def test_the_tree_holds_every_stack(some: dict[str, ThreadStack]) -> None:
    """Reading the tree down to where a rank ends gives that rank's stack back."""
    tree = merge(some, by_line=True)
    path: list[Frame] = []
    found: dict[str, list[Frame]] = {}
    for node in tree.nodes:
        path[node.depth :] = [node.frame]
        found |= dict.fromkeys(node.ending, path[::-1])
    assert found == {member: stack.frames for member, stack in some.items() if stack.frames}


# --- two looks, and the odd one ---------------------------------------------------------------------------------------


def test_what_moved() -> None:
    before = {"TP0": WAITS, "TP1": WAITS, "TP2": WAITS, "TP3": WAITS}
    after = {"TP0": WAITS, "TP1": thread("all_reduce (dist.py:8) < " + LOOP.format(3)), "TP2": COMPUTES, "TP4": WAITS}
    assert moving(before, after) == {"TP0": "frozen", "TP1": "line", "TP2": "function"}


@pytest.mark.parametrize(
    ("kinds", "odd"),
    [
        ([WAITS] * 7 + [COMPUTES], ["TP7"]),
        ([WAITS] * 6 + [COMPUTES, IDLE], ["TP6", "TP7"]),
        ([WAITS] * 5 + [COMPUTES] * 3, ["TP5-7"]),
        ([WAITS, COMPUTES], []),
        ([WAITS] * 4 + [COMPUTES] * 2 + [IDLE] * 2, []),
        ([WAITS] * 8, []),
        ([WAITS], []),
    ],
)
def test_odd_ones(kinds: list[ThreadStack], odd: list[str]) -> None:
    tree = merge({f"TP{rank}": stack for rank, stack in enumerate(kinds)})
    assert [render(group.members) for group in odd_ones(tree)] == odd
