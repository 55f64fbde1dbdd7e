"""The process sensor on real process trees."""

import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Spawn, WaitFor
from vllm_probes.judges.address import Address
from vllm_probes.rows import ProcessRow
from vllm_probes.sensors import processes
from vllm_probes.sensors.processes import ProcessSensor, difference, environ, listens, strangers

PYTHON = sys.executable
PYTHON_NAME = os.path.basename(PYTHON)

SHIM = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
subprocess.Popen(sys.argv[1:])
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""

RENAME = """
import ctypes, sys
def rename(title):  # as setproctitle does it: over the memory of the arguments
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, title.encode(), min(len(title), end - start - 1))
for line in sys.stdin:
    rename(line.strip())
"""

TORCHRUN = """
import os, subprocess, sys, time
for rank in "01":
    command = f"true; {sys.executable} {sys.argv[1]}; true"
    subprocess.Popen(["bash", "-c", command], env=os.environ | {"RANK": rank})
time.sleep(600)
"""

RANK = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
time.sleep(600)
"""

Rows = dict[str, ProcessRow]
Tree = Callable[..., ProcessSensor]


@pytest.fixture
def tree(spawned: Spawn) -> Tree:
    """`tree(*command, **environment)`: a sensor on a sub-reaper in the place of the shim, with the command below it."""

    def start(*command: str, **environment: str) -> ProcessSensor:
        return ProcessSensor(spawned([PYTHON, "-c", SHIM, *command], env=os.environ | environment).pid)

    return start


@pytest.fixture
def until(wait_for: WaitFor) -> Callable[..., Rows]:
    """`until(look, ready)`: rows by name, as soon as `ready` likes them."""

    def wait(look: Callable[[], list[ProcessRow]], ready: Callable[[Rows], bool]) -> Rows:
        seen: list[Rows] = []

        def is_ready() -> bool:
            seen.append({row.process: row for row in look()})
            return ready(seen[-1])

        wait_for(is_ready)
        return seen[-1]

    return wait


@pytest.fixture
def until_seen(until: Callable[..., Rows]) -> Callable[..., Rows]:
    def wait(sensor: ProcessSensor, *names: str) -> Rows:
        return until(lambda: sensor.sample({}), lambda rows: set(names) <= set(rows))

    return wait


def sleepers(*titles: str) -> str:
    """Shell code: one process under each title."""
    return " ".join(f"(exec -a {shlex.quote(title)} sleep inf) &" for title in titles)


def test_a_tree_like_that_of_vllm(tree: Tree, until_seen: Callable[..., Rows]) -> None:
    sensor = tree("bash", "-c", sleepers("VLLM::EngineCore", "my team::Worker_TP1", "cc1plus") + "wait")
    rows = until_seen(sensor, "EngineCore", "Worker_TP1", "cc1plus", "bash")
    assert {name: (row.role, row.rank) for name, row in rows.items()} == {
        "bash": ("command", None),
        "EngineCore": ("engine_core", None),
        "Worker_TP1": ("worker", 1),
        "cc1plus": ("compiler", None),
    }
    assert [row.parent_pid for row in rows.values()].count(rows["bash"].pid) == 3
    assert all(row.rss_bytes > 0 and row.thread_count == 1 and not row.foreign for row in rows.values())


def test_only_one_process_is_the_api_server(tree: Tree, until_seen: Callable[..., Rows], tmp_path: Path) -> None:
    server = tmp_path / "vllm"
    server.write_text("import os, time\nos.fork()\ntime.sleep(600)")
    rows = until_seen(tree(PYTHON, str(server), "serve", "m"), "APIServer", "vllm")
    assert rows["vllm"].parent_pid == rows["APIServer"].pid
    assert (rows["APIServer"].role, rows["vllm"].role) == ("api_server", "other")


def test_a_process_is_followed_through_its_names_into_its_grave(
    spawned: Spawn, until: Callable[..., Rows], until_seen: Callable[..., Rows], tmp_path: Path
) -> None:
    titles = tmp_path / "titles"
    os.mkfifo(titles)
    reads = f"exec {PYTHON} -c {shlex.quote(RENAME)} < {titles}"
    parent = f"import subprocess, time; subprocess.Popen(['bash', '-c', {reads!r}]); time.sleep(600)"
    sensor = ProcessSensor(spawned([PYTHON, "-c", SHIM, "bash", "-c", f"{PYTHON} -c {shlex.quote(parent)}; true"]).pid)
    with titles.open("w", buffering=1) as pipe:
        pids = []
        for name in ("Worker", "Worker_TP5"):
            print(f"VLLM::{name}", file=pipe)
            pids.append(until_seen(sensor, name)[name].pid)
        os.kill(pids[0], signal.SIGKILL)
    rows = until(lambda: sensor.sample({}), lambda rows: rows["Worker_TP5"].state == "Z")
    zombie = rows["Worker_TP5"]
    assert pids == [zombie.pid, zombie.pid]
    assert (zombie.rank, zombie.role) == (5, "worker")


def test_names_from_the_log_prefix(tree: Tree, until_seen: Callable[..., Rows]) -> None:
    sensor = tree(PYTHON, "-c", "import time; time.sleep(600)")
    pid = until_seen(sensor, PYTHON_NAME)[PYTHON_NAME].pid
    [named] = sensor.sample({pid: "Worker_TP2"})
    assert (named.process, named.role, named.rank) == ("Worker_TP2", "worker", 2)


def test_ranks_of_a_launcher_come_from_the_environment(tree: Tree, wait_for: WaitFor, tmp_path: Path) -> None:
    launcher, script = tmp_path / "torchrun", tmp_path / "x.py"
    launcher.write_text(TORCHRUN)
    script.write_text(RANK)
    sensor = tree(PYTHON, str(launcher), str(script), RANK="7")  # of the pod: it says nothing
    children = [(PYTHON_NAME, "other", None)] * 2 + [("bash", "other", None)] * 2
    ranks = [("x.py", "worker", 0), ("x.py", "worker", 1)]
    expected = sorted([("torchrun", "command", None), *children, *ranks], key=str)
    wait_for(lambda: sorted(((row.process, row.role, row.rank) for row in sensor.sample({})), key=str) == expected)


def test_ranks_of_a_grid_stay_when_workers_die(tree: Tree, until: Callable[..., Rows]) -> None:
    names = [f"Worker_PP{stage}_TP{place}" for stage in (0, 1) for place in (0, 1)]
    sensor = tree("bash", "-c", sleepers(*(f"VLLM::{name}" for name in names)) + "wait")

    def have_ranks(rows: Rows) -> bool:
        return [rows[name].rank for name in names if name in rows] == [0, 1, 2, 3]

    rows = until(lambda: sensor.sample({}), have_ranks)
    os.kill(rows["Worker_PP0_TP1"].pid, signal.SIGKILL)
    rows = until(lambda: sensor.sample({}), lambda rows: "Worker_PP0_TP1" not in rows)
    assert rows["Worker_PP1_TP1"].rank == 3


def test_use_of_cpu_bytes_and_state(tree: Tree, until: Callable[..., Rows], until_seen: Callable[..., Rows]) -> None:
    sensor = tree(PYTHON, "-c", "while True: open('/proc/self/stat').read()")
    first = until_seen(sensor, PYTHON_NAME)[PYTHON_NAME]
    busy = until(lambda: sensor.sample({}), lambda rows: rows[PYTHON_NAME].cpu_percent > 20)[PYTHON_NAME]
    assert busy.read_bytes > first.read_bytes
    os.kill(busy.pid, signal.SIGSTOP)
    until(lambda: sensor.sample({}), lambda rows: rows[PYTHON_NAME].state == "T")
    os.kill(busy.pid, signal.SIGKILL)
    until(lambda: sensor.sample({}), lambda rows: not rows)


def test_processes_that_start_later_are_found(tree: Tree, until_seen: Callable[..., Rows], tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    sensor = tree("bash", "-c", f"read < {go}; {sleepers('VLLM::EngineCore')} wait")
    assert "EngineCore" not in until_seen(sensor, "bash")
    go.write_text("\n")
    assert until_seen(sensor, "EngineCore")


def test_a_vanished_shim_has_no_tree(spawned: Spawn) -> None:
    gone = spawned(["true"])
    gone.wait()
    assert ProcessSensor(gone.pid).sample({}) == []


def test_strangers(spawned: Spawn, until: Callable[..., Rows]) -> None:
    foreign = spawned(["bash", "-c", "exec -a VLLM::Worker_TP6 sleep inf"])
    row = until(lambda: strangers(0.0), lambda rows: "Worker_TP6" in rows)["Worker_TP6"]
    assert (row.pid, row.role, row.rank, row.foreign) == (foreign.pid, "worker", 6, True)
    assert foreign.pid in [row.pid for row in strangers(row.started)]
    assert foreign.pid not in [row.pid for row in strangers(row.started + 1)]
    assert foreign.pid not in [row.pid for row in strangers(0.0, own={foreign.pid})]


def test_environ(spawned: Spawn, wait_for: WaitFor) -> None:
    child = spawned(["sleep", "inf"], env={"A": "1=2"})
    wait_for(lambda: environ(child.pid).get("A") == "1=2")
    child.kill()
    child.wait()
    assert environ(child.pid) == {}


# --- sockets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_bound_port_counts_when_it_listens(family: int, host: str) -> None:
    with socket.socket(family) as server:
        server.bind((host, 0))
        address = Address(port=server.getsockname()[1])
        assert not listens([os.getpid()], address)
        server.listen()
        assert listens([1 << 22, os.getpid()], address)
        assert not listens([os.getppid()], address)
        with socket.create_connection((host, address.port)) as client:
            assert not listens([os.getpid()], Address(port=client.getsockname()[1]))


def test_unix_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        assert listens([os.getpid()], Address(uds=str(tmp_path / "s")))
        assert not listens([os.getpid()], Address(uds=str(tmp_path / "t")))


# --- what is worth telling ------------------------------------------------------------------------------------------

ROW = ProcessRow(pid=7, parent_pid=1, started=5.0, process="EngineCore", cpu_percent=50.0, rss_bytes=1 << 30)


@pytest.mark.parametrize(
    "change",
    [
        {"process": "Worker"},
        {"rank": 1},
        {"state": "T"},
        {"state": "D"},
        {"started": 6.0},
        {"thread_count": 9},
        {"cpu_percent": 39.0},
        {"rss_bytes": 2 << 30},
        {"read_bytes": 1 << 20},
        {"written_bytes": 1 << 20},
        {"disk_read_bytes": 1 << 20},
    ],
)
def test_changes_that_are_told(change: dict[str, object]) -> None:
    row = msgspec.structs.replace(ROW, **change)
    assert difference({7: ROW}, [row]) == ([row], [])


@pytest.mark.parametrize(
    "change", [{}, {"state": "R"}, {"cpu_percent": 45.0}, {"rss_bytes": (1 << 30) + 4096}, {"read_bytes": 4096}]
)
def test_noise_is_not_told(change: dict[str, object]) -> None:
    assert difference({7: ROW}, [msgspec.structs.replace(ROW, **change)]) == ([], [])


def test_coming_to_rest_is_told() -> None:
    before = msgspec.structs.replace(ROW, cpu_percent=6.0)
    still = msgspec.structs.replace(ROW, cpu_percent=0.0)
    assert difference({7: before}, [still]) == ([still], [])


def test_new_and_gone() -> None:
    new = msgspec.structs.replace(ROW, pid=8)
    assert difference({7: ROW, 3: ROW}, [new]) == ([new], [3, 7])


@given(st.lists(st.floats(0, 800), max_size=30))
def test_what_is_told_is_never_far_from_the_truth(percents: list[float]) -> None:
    told: dict[int, ProcessRow] = {}
    for percent in percents:
        row = msgspec.structs.replace(ROW, cpu_percent=percent)
        told.update({changed.pid: changed for changed in difference(told, [row])[0]})
        assert abs(told[7].cpu_percent - percent) < processes.CPU_STEP_PERCENT
