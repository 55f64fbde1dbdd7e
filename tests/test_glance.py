"""A few looks at a run: what they say at once, what only time can say, and what is never said of a healthy one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.stack_notation import thread
from tests.verdict_story import (
    NANOSLEEP,
    POLL,
    STEP,
    TABLE,
    engine_idle,
    engine_waits,
    front_idle,
    idle_worker,
    in_all_reduce,
    in_lock,
)
from vllm_probes.events import StacksCaptured, Stamp
from vllm_probes.judges import glance
from vllm_probes.judges.glance import Glance, Snapshot
from vllm_probes.rows import ProcessRow, StackFile, ThreadStack

ROWS = {
    1: ProcessRow(pid=1, parent_pid=0, started=0, process="APIServer", role="api_server"),
    2: ProcessRow(pid=2, parent_pid=1, started=0, process="EngineCore", role="engine_core"),
    10: ProcessRow(pid=10, parent_pid=2, started=0, process="Worker_TP0", role="worker", rank=0),
    11: ProcessRow(pid=11, parent_pid=2, started=0, process="Worker_TP1", role="worker", rank=1),
}


def stamp(at: float) -> Stamp:
    return Stamp(time=1000.0 + at, mono=at, node="n", attempt=0)


class Looks:
    """Looks at a server of two ranks."""

    def __init__(self, *, serves: bool = True) -> None:
        self.seen: Glance = glance.begin(stamp(0))
        self.serves = serves

    def look(self, at: float, *stacks: ThreadStack | str, runs: tuple[int, ...] = ()) -> "Looks":
        """`stacks` of engine and ranks, or why there is none; `runs`: pids whose thread ran since the look before."""
        files = []
        for pid, stack in zip(ROWS, (front_idle(), *stacks), strict=True):
            if isinstance(stack, str):
                files.append(StackFile(pid=pid, process=ROWS[pid].process, error=stack))
                continue
            own = replace(stack, thread_id=pid, switch_count=int(at * 100) if pid in runs else 0)
            files.append(StackFile(pid=pid, process=ROWS[pid].process, file=f"{pid}.json", threads=[own]))
        event = StacksCaptured(**stamp(at), reason="r", folder="f", stacks=files)
        self.seen = glance.look(TABLE, self.seen, event, ROWS, serves=self.serves, is_counted=True)
        return self

    @property
    def end(self) -> Snapshot:
        return glance.conclude(TABLE, self.seen)


def test_an_idle_server_is_well_after_one_look() -> None:
    end = Looks().look(0.1, engine_idle(), idle_worker(), idle_worker()).end
    assert (end.health, end.kind, end.culprits, end.summary) == ("ok", None, [], "Everybody waits for work.")
    assert [group.members for group in end.groups] == [["TP0", "TP1"], ["APIServer"], ["EngineCore"]]


def test_one_look_says_who_it_would_be_and_proves_nothing() -> None:
    end = Looks().look(0.1, engine_waits(), in_all_reduce(), in_lock()).end
    assert (end.health, end.kind, end.culprits) == ("ok", None, [])
    assert end.summary.startswith("Nothing is wrong unless it stays like this: Worker_TP1 waits for a lock: acquire")


def test_a_second_look_at_a_rank_that_has_not_run_suspects_it() -> None:
    end = (
        Looks()
        .look(0, engine_waits(), in_all_reduce(), in_lock())
        .look(0.3, engine_waits(), in_all_reduce(), in_lock())
        .end
    )
    assert (end.health, end.kind) == ("suspect", "rank_absent")
    assert [(one.process, one.rank, one.doing) for one in end.culprits] == [("Worker_TP1", 1, "lock")]
    assert end.summary.endswith("That was so for 0.3 s, which is no proof of a hang.")
    assert ("Worker_TP1", "11.json") in [(one.signal, one.file) for one in end.evidence]


def test_one_that_ran_in_between_gets_on() -> None:
    looks = Looks().look(0, engine_waits(), in_all_reduce(), in_lock())
    assert looks.look(0.3, engine_waits(), in_all_reduce(), in_lock(), runs=(11,)).end.health == "ok"


@pytest.mark.parametrize(
    "work",
    [
        thread(f"synchronize (torch/cuda/streams.py:230) < {STEP}", state="S", syscall=POLL),
        thread(f"__call__ (torch/_ops.py:1279) < linear (app/model.py:12) < {STEP}", state="R"),
        thread(f"prepare (app/model.py:9) < {STEP}", state="R"),
        in_all_reduce(),
    ],
)
def test_work_that_takes_its_time_is_no_hang(work: ThreadStack) -> None:
    looks = Looks()
    for at in range(4):
        looks.look(at / 4, engine_waits(), work, work, runs=(10, 11))
    assert looks.end.health == "ok"


def test_a_process_that_is_stopped() -> None:
    stopped = thread(f"prepare (app/model.py:9) < {STEP}", state="T")
    looks = Looks()
    for at in (0, 0.3):
        looks.look(at, engine_waits(), in_all_reduce(), stopped)
    assert (looks.end.health, looks.end.kind, looks.end.culprits[0].doing) == ("suspect", "process_stopped", "stopped")


def test_looks_that_go_on_become_a_verdict_like_that_of_a_session() -> None:
    looks = Looks()
    for at in range(24):
        looks.look(at / 2, engine_waits(), in_all_reduce(), in_lock())
    assert (looks.end.health, looks.end.kind) == ("stalled", "rank_absent")
    assert looks.end.evidence[0].signal == "no tokens"


def test_tokens_take_it_back() -> None:
    looks = Looks()
    for at in range(24):
        looks.look(at / 2, engine_waits(), in_all_reduce(), in_lock())
    looks.seen = glance.moved(TABLE, looks.seen, stamp(12.0))
    assert looks.look(12.1, engine_waits(), in_all_reduce(), in_lock()).end.health == "ok"


def test_a_start_may_take_its_time() -> None:
    reading = thread("read (app/weights.py:3) < load_weights (app/weights.py:9)", state="S", syscall=0)
    looks = Looks(serves=False)
    for at in range(9):
        looks.look(at, engine_idle(), reading, reading)
    assert looks.end.health == "ok"


def test_without_stacks_nothing_is_said() -> None:
    end = Looks().look(0, *["no right: do this"] * 3).look(0.3, *["no right: do this"] * 3).end
    assert end.health == "ok"  # the front end could be read
    assert [process.error for process in end.processes] == [None, *["no right: do this"] * 3]
    assert [process.doing for process in end.processes] == ["idle", None, None, None]


def test_nothing_at_all_can_be_read() -> None:
    event = StacksCaptured(
        **stamp(0.1), reason="r", folder="f", stacks=[StackFile(pid=1, process="APIServer", error="no right")]
    )
    seen = glance.look(TABLE, glance.begin(stamp(0)), event, {1: ROWS[1]}, serves=True, is_counted=True)
    end = glance.conclude(TABLE, seen)
    assert (end.health, end.kind, end.culprits, end.processes[0].error) == (None, None, [], "no right")
    assert "No stack could be read" in end.summary


def test_where_the_time_goes() -> None:
    looks = Looks()
    sleeping = thread(f"doze (app/pool.py:7) < {STEP}", state="S", syscall=NANOSLEEP)
    for at in range(4):
        looks.look(at / 4, engine_waits(), in_all_reduce(), sleeping if at else in_lock(), runs=(11,))
    shares = {process.process: process.shares for process in looks.end.processes}
    assert [(one.frame, one.doing, one.share) for one in shares["Worker_TP1"]] == [
        ("doze (app/pool.py)", "sleep", 0.75),
        ("acquire (app/pool.py)", "lock", 0.25),
    ]


STACKS = st.sampled_from([idle_worker(), in_all_reduce(), in_lock(), thread(f"run (a/b.py:1) < {STEP}", state="R")])


@given(st.lists(st.tuples(STACKS, STACKS), min_size=1, max_size=6))
def test_shares_add_up_and_a_moment_never_proves_a_hang(looks: list[tuple[ThreadStack, ThreadStack]]) -> None:
    seen = Looks()
    for number, (first, second) in enumerate(looks):
        seen.look(number / 2, engine_waits(), first, second)
    end = seen.end
    assert end.health in ("ok", "suspect")
    assert (end.kind is None) == (end.health == "ok") == (end.culprits == [])
    for process in end.processes:
        assert sum(share.share for share in process.shares) == pytest.approx(1)
