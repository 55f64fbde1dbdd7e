"""Runs that were started without us, on real process trees: any pid leads to the root, orphans are not lost."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Spawn, WaitFor
from tests.titled_tree import ENGINE, NODE, WORKERS, TitledTree, has_started, node_environment, server_argv, start_tree
from vllm_probes.sensors import foreign, tree
from vllm_probes.sensors.foreign import ForeignError, Members, Run

LISTENER = """
import socket, sys, time
sockets = [socket.create_server(("127.0.0.1", 0))]
print(sockets[0].getsockname()[1], flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(spawned: Spawn, wait_for: WaitFor) -> Callable[..., TitledTree]:
    return lambda argv, *rest, **options: start_tree(spawned, wait_for, argv, *rest, **options)


@pytest.fixture
def server(start: Callable[..., TitledTree], tmp_path: Path) -> TitledTree:
    return start(server_argv(tmp_path, "--port", "8123"), env={"CUDA_VISIBLE_DEVICES": "2,3"}, cwd=tmp_path)


def listed(pid: int) -> Run | None:
    return next((run for run in foreign.runs() if pid in run.pids), None)


def test_every_process_leads_to_the_root(server: TitledTree, tmp_path: Path) -> None:
    for pid in (server.root.pid, *server.pids.values()):
        run = foreign.run_of(pid)
        assert run.pid == server.root.pid
        assert set(run.pids) == {server.root.pid, *server.pids.values()}
    assert run.argv[2:4] == ["serve", "org/model"]
    assert (run.cwd, run.model, run.visible_devices, run.is_vllm) == (str(tmp_path), "org/model", "2,3", True)
    assert run.address is not None
    assert (run.address.port, run.listens) == (8123, False)
    assert run.user == psutil.Process().username()
    assert run.started == pytest.approx(server.root.create_time(), abs=0.1)


def test_it_is_listed_once_and_not_among_what_is_ours(server: TitledTree) -> None:
    assert [run.pid for run in foreign.runs() if server.root.pid in run.pids] == [server.root.pid]
    assert not [run for run in foreign.runs({server.root.pid, *server.pids.values()}) if server.root.pid in run.pids]


def test_orphans_of_a_killed_engine_stay_in_the_run(server: TitledTree, wait_for: WaitFor) -> None:
    worker = server.pids["VLLM::Worker_TP1"]
    server.kill("VLLM::EngineCore")
    wait_for(lambda: tree.parent(worker) != server.pids["VLLM::EngineCore"])
    run = foreign.run_of(worker)
    assert run.pid == server.root.pid
    assert worker in run.pids


def test_what_a_killed_server_leaves_is_one_run(server: TitledTree, wait_for: WaitFor) -> None:
    engine = server.pids["VLLM::EngineCore"]
    server.root.kill()
    server.root.wait(10)
    wait_for(lambda: tree.parent(engine) != server.root.pid)
    run = listed(engine)
    assert run is not None
    assert (run.pid, set(run.pids)) == (engine, set(server.pids.values()))


def test_orphans_belong_to_the_youngest_server_that_is_older_than_they(
    spawned: Spawn, wait_for: WaitFor, tmp_path: Path
) -> None:
    """Two servers of one script share its process group."""
    line = shlex.join(server_argv(tmp_path))
    shell = psutil.Process(spawned(["bash", "-c", f"{line} & {line} & wait"], env=node_environment(ENGINE)).pid)
    wait_for(lambda: [has_started(root, ENGINE) for root in shell.children()] == [True, True], 20)
    servers = [TitledTree(root) for root in sorted(shell.children(), key=psutil.Process.create_time)]
    worker = servers[1].pids["VLLM::Worker_TP0"]
    servers[1].kill("VLLM::EngineCore")
    wait_for(lambda: tree.parent(worker) != servers[1].pids["VLLM::EngineCore"])
    assert foreign.run_of(worker).pid == servers[1].root.pid
    assert worker not in foreign.run_of(servers[0].root.pid).pids


def test_a_script_with_engines_is_the_root(start: Callable[..., TitledTree], tmp_path: Path) -> None:
    script = tmp_path / "offline.py"
    script.write_text(NODE)
    run = start([sys.executable, str(script)])
    found = foreign.run_of(run.pids["VLLM::Worker_TP0"])
    assert (found.pid, found.model, found.address) == (run.root.pid, None, None)


def test_a_launcher_of_ranks_is_above_its_scripts(start: Callable[..., TitledTree], tmp_path: Path) -> None:
    launcher = tmp_path / "torchrun"
    launcher.write_text(NODE)
    ranks: list[Any] = [["VLLM::EngineCore", WORKERS]]
    run = start([sys.executable, str(launcher), "train.py"], ranks)
    assert foreign.run_of(run.pids["VLLM::Worker_TP1"]).pid == run.root.pid


def test_a_program_that_starts_servers_is_no_part_of_them(server: TitledTree) -> None:
    assert tree.parent(server.root.pid) == os.getpid()
    assert foreign.root_of(server.root.pid) == server.root.pid


def test_any_other_process_is_a_run_of_its_own(spawned: Spawn, wait_for: WaitFor) -> None:
    shell = spawned(["bash", "-c", "sleep 600; true"])
    wait_for(lambda: tree.descendants(shell.pid))
    run = foreign.run_of(shell.pid)
    assert (run.pid, run.is_vllm, len(run.pids)) == (shell.pid, False, 2)
    assert listed(shell.pid) is None


@pytest.fixture
def zombie() -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    yield pid
    os.waitpid(pid, 0)


def test_pids_that_are_no_process(zombie: int, wait_for: WaitFor) -> None:
    wait_for(lambda: tree.state_letter(zombie) == "Z")
    with pytest.raises(ForeignError, match=rf"Process {zombie} has ended .*parent {os.getpid()}"):
        foreign.run_of(zombie)
    with pytest.raises(ForeignError, match="There is no process 4194305 here"):
        foreign.run_of(4194305)  # above pid_max (proc_sys_kernel(5))
    if tree.parent(2) == 0 and not tree.command_line(2):
        with pytest.raises(ForeignError, match="thread of the kernel"):
            foreign.run_of(2)


def test_by_port(spawned: Spawn, tmp_path: Path) -> None:
    program = spawned([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE)
    assert program.stdout
    port = int(program.stdout.readline())
    run = foreign.run_on_port(port)
    assert (run.pid, run.listens) == (program.pid, True)
    assert run.address is not None
    assert run.address.url == f"http://127.0.0.1:{port}"
    program.kill()
    program.wait()
    with pytest.raises(ForeignError, match=f"Nobody listens on port {port}"):
        foreign.run_on_port(port)


def test_a_socket_that_is_bound_but_does_not_listen_is_nobody() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ForeignError, match="Nobody listens"):
            foreign.run_on_port(bound.getsockname()[1])


def test_members_stay_though_their_parents_go(server: TitledTree, wait_for: WaitFor) -> None:
    members = Members([server.root.pid])
    assert members.walk()[0] == server.root.pid
    engine, workers = server.pids["VLLM::EngineCore"], {server.pids[title] for title, _ in WORKERS}
    server.kill("VLLM::EngineCore")
    wait_for(lambda: not tree.is_running(engine))
    assert workers <= set(members.walk())
    server.root.kill()
    server.root.wait(10)
    assert {pid for pid in members.walk() if tree.is_running(pid)} == workers


def test_a_pid_that_was_given_away_is_not_taken_for_the_run(server: TitledTree) -> None:
    ticks = tree.start_ticks(server.root.pid)
    assert ticks is not None
    assert tree.is_same(server.root.pid, ticks)
    assert not tree.is_same(server.root.pid, ticks + 1)
    server.root.kill()
    server.root.wait(10)
    assert not tree.is_same(server.root.pid, ticks)
