"""Names, roles and ranks from command lines and titles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.judges.commandline import script, server_arguments, shell_code
from vllm_probes.judges.titles import Identity, grid_ranks, identify

SERVE = ["/usr/bin/python3", "/opt/venv/bin/vllm", "serve", "m", "--port", "9"]


@pytest.mark.parametrize(
    ("argv", "process", "role", "rank"),
    [
        (["VLLM::EngineCore"], "EngineCore", "engine_core", None),
        (["VLLM::EngineCore_DP3"], "EngineCore_DP3", "engine_core", None),
        (["VLLM::Worker"], "Worker", "worker", None),
        (["VLLM::Worker_TP3"], "Worker_TP3", "worker", 3),
        (["VLLM::Worker_PP1"], "Worker_PP1", "worker", 1),
        (["VLLM::Worker_DP1_PP0_TP3_EP7"], "Worker_DP1_PP0_TP3_EP7", "worker", None),
        (["VLLM::APIServer_0"], "APIServer_0", "api_server", None),
        (["VLLM::DPCoordinator"], "DPCoordinator", "coordinator", None),
        (["my team::Worker_TP1"], "Worker_TP1", "worker", 1),
        (["a::b::EngineCore"], "EngineCore", "engine_core", None),
        (["ray::RayWorkerWrapper.execute_method"], "RayWorkerWrapper", "worker", None),
        (["ray::IDLE"], "ray::IDLE", "other", None),
        (SERVE, "APIServer", "api_server", None),
        (["python", "-u", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"], "APIServer", "api_server", None),
        (["python", "-Xdev", "-W", "ignore", "/v/bin/vllm", "serve", "m"], "APIServer", "api_server", None),
        (["python", "-m", "vllm.entrypoints.cli.main", "serve", "m"], "APIServer", "api_server", None),
        (["python", "/v/vllm/entrypoints/openai/api_server.py"], "APIServer", "api_server", None),
        (["/v/site-packages/vllm/vllm-rs", "frontend", "--listen-fd", "7"], "vllm-rs", "api_server", None),
        (["python", "/v/bin/vllm", "bench", "serve"], "vllm", "other", None),
        (["bash", "-c", "vllm serve m; true"], "bash", "other", None),
        (["-bash"], "bash", "other", None),
        (["bash", "-euo", "pipefail", "/x/run.sh", "serve"], "run.sh", "other", None),
        (["timeout", "60", "vllm", "serve", "m"], "timeout", "other", None),
        (["python", "x.py", "vllm", "serve"], "x.py", "other", None),
        (["python3.11", "-c", "import vllm", "serve"], "python3.11", "other", None),
        (["python", "-m", "torch.distributed.run", "x.py"], "torch.distributed.run", "other", None),
        (["python", "/v/bin/torchrun", "x.py"], "torchrun", "other", None),
        (
            ["python", "-c", "from multiprocessing.resource_tracker import main;main(5)"],
            "python",
            "resource_tracker",
            None,
        ),
        (
            ["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main(5)", "--multiprocessing-fork"],
            "python",
            "other",
            None,
        ),
        (
            ["python", "/v/torch/_inductor/compile_worker/__main__.py", "--workers=8"],
            "compile_worker",
            "compiler",
            None,
        ),
        (["/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", "-quiet"], "cc1plus", "compiler", None),
        (["/usr/bin/x86_64-linux-gnu-g++-12"], "x86_64-linux-gnu-g++-12", "compiler", None),
        (["ptxas"], "ptxas", "compiler", None),
        (["ninja", "-v"], "ninja", "compiler", None),
        (["sleep", "5"], "sleep", "other", None),
        ([], "?", "other", None),
    ],
)
def test_identify(argv: list[str], process: str, role: str, rank: int | None) -> None:
    assert identify(argv) == (process, role, rank)


def test_forked_child_is_not_a_second_server() -> None:
    assert identify(SERVE, parent_argv=SERVE) == Identity("vllm", "other")
    assert identify(["VLLM::EngineCore"], parent_argv=["VLLM::EngineCore"]) == Identity("EngineCore", "other")


def test_log_prefix_names_what_has_no_title() -> None:
    spawned = ["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main(5)", "--multiprocessing-fork"]
    assert identify(spawned, log_name="Worker_TP1") == Identity("Worker_TP1", "worker", 1)
    assert identify(SERVE, parent_argv=SERVE, log_name="EngineCore") == Identity("EngineCore", "engine_core")
    assert identify(["VLLM::Worker"], log_name="Worker_TP1").process == "Worker"
    assert identify(SERVE, log_name="MainProcess").process == "APIServer"


@given(st.lists(st.text(max_size=12) | st.sampled_from(["-c", "-m", "python", "bash", "-", "--", "-o", "X::Worker"])))
def test_any_command_line_has_a_name(argv: list[str]) -> None:
    assert identify(argv).process
    assert len(script(argv)) <= len(argv)
    shell_code(argv)
    server_arguments(argv)


def grid(**parts: range) -> list[str]:
    names = ["Worker"]
    for part, numbers in parts.items():
        names = [f"{name}_{part}{number}" for name in names for number in numbers]
    return names


def test_grid_ranks_follow_the_order_of_the_parts() -> None:
    names = grid(PP=range(2), TP=range(4))
    assert grid_ranks(names[::-1]) == {name: rank for rank, name in enumerate(names)}


def test_grid_of_a_second_node_starts_where_the_first_ends() -> None:
    assert grid_ranks(grid(DP=range(2, 4), TP=range(2))) == {
        "Worker_DP2_TP0": 4,
        "Worker_DP2_TP1": 5,
        "Worker_DP3_TP0": 6,
        "Worker_DP3_TP1": 7,
    }


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["Worker"],
        grid(TP=range(4)),
        grid(PP=range(2), TP=range(2))[:-1],
        grid(PP=range(2), TP=range(1)),
        grid(PP=range(2), TP=range(1, 3)),
        [*grid(PP=range(2), TP=range(2)), "Worker"],
    ],
)
def test_no_ranks_from_a_grid_with_gaps(names: list[str]) -> None:
    assert grid_ranks(names) == {}


def test_ranks_ignore_groups_inside_the_grid() -> None:
    names = ["Worker_PP0_TP0_DCP0_EP0", "Worker_PP0_TP1_DCP1_EP1", "Worker_PP1_TP0_DCP0_EP0", "Worker_PP1_TP1_DCP1_EP1"]
    assert list(grid_ranks(names).values()) == [0, 1, 2, 3]
