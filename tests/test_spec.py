"""What a command line tells."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.launch import spec

SERVE = "vllm serve m -tp 2"
API_SERVER = "python -m vllm.entrypoints.openai.api_server --model m"

EXPECTING = [
    SERVE,
    "/opt/venv/bin/vllm serve m",
    API_SERVER,
    "python3.11 -mvllm.entrypoints.api_server",
    "env A=1 numactl -N 0 vllm serve m",
    "uv run --with vllm vllm serve m",
    "srun -n 1 --job-name x vllm serve m",
    "docker exec -it box vllm serve m",
    "docker run --gpus all -p 8000:8000 vllm/vllm-openai:v0.32.0 --model m",
    "docker run --rm rocm/vllm:latest bash start",
    "kubectl exec pod -- vllm serve m",
    "ssh node vllm serve m",
    "vllm run-batch -i in -o out --model m",
    "vllm bench throughput --model m",
    "bash -c 'cd /x && vllm serve m'",
    "python -c 'from vllm import LLM; LLM(\"m\")'",
    "python /x/run_vllm.py",
    "./start-vllm.sh",
    "torchrun --nproc-per-node 2 vllm_spmd.py",
]
NOT_EXPECTING = [
    "pip install vllm",
    "grep vllm notes",
    "sleep 60",
    "python /home/me/vllm-tests/train.py",
    "vllm chat --url http://localhost:8000",
    "vllm collect-env",
    "bash -c 'sleep 1'",
    "docker run redis",
    "torchrun train.py",
    "tail -f vllm.log",
]


@pytest.mark.parametrize("command", EXPECTING)
def test_commands_that_speak_of_vllm(command: str) -> None:
    assert spec.expects_vllm(shlex.split(command))


@pytest.mark.parametrize("command", [*NOT_EXPECTING, ""])
def test_commands_that_do_not(command: str) -> None:
    assert not spec.expects_vllm(shlex.split(command))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (SERVE, None),
        ("docker run vllm/vllm-openai --model m", "docker"),
        ("sudo docker compose up", "docker"),
        ("podman run vllm/vllm-openai --model m", None),
        ("podman --remote run vllm/vllm-openai", "podman"),
        ("srun -N 2 docker run x", "srun"),
        ("sbatch job.sh", "sbatch"),
        ("salloc srun vllm serve m", "srun"),
        ("ssh node vllm serve m", "ssh"),
        ("kubectl exec pod -- vllm serve m", "kubectl"),
        ("mpirun -n 2 python x.py", None),
        ("systemd-run vllm serve m", "systemd-run"),
        ("systemd-run --user --scope vllm serve m", None),
        ("vllm serve m --distributed-executor-backend ray", "ray"),
        ("vllm serve m --distributed_executor_backend=ray", "ray"),
        ("vllm serve m --data-parallel-backend ray -dp 2", "ray"),
        ("vllm serve m --distributed-executor-backend mp", None),
        ("vllm serve docker", None),
        ("ray job submit -- vllm serve m", "ray"),
        ("ray start --head --block", None),
        ("grep docker notes", None),
        ("env A=docker vllm serve m", None),
    ],
)
def test_launchers_whose_processes_are_not_our_descendants(command: str, expected: str | None) -> None:
    assert spec.outsider(shlex.split(command)) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (SERVE, "vllm serve m -tp 2 HERE"),
        (API_SERVER, f"{API_SERVER} HERE"),
        ("vllm serve m -- x", "vllm serve m HERE -- x"),
        ("kubectl exec pod -- vllm serve m", "kubectl exec pod -- vllm serve m HERE"),
        ("kubectl exec pod -- vllm serve m -- x", "kubectl exec pod -- vllm serve m HERE -- x"),
        ("docker run vllm/vllm-openai:latest --model m", "docker run vllm/vllm-openai:latest --model m HERE"),
        ("docker run --entrypoint bash x vllm serve m", "docker run --entrypoint bash x vllm serve m HERE"),
        ("srun vllm serve m", "srun vllm serve m HERE"),
        ("ssh node vllm serve m", "ssh node vllm serve m HERE"),
    ],
)
def test_where_a_flag_goes(command: str, expected: str) -> None:
    argv = shlex.split(command)
    place = spec.flag_place(argv)
    assert place.index is not None
    argv.insert(place.index, "HERE")
    assert argv == shlex.split(expected)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("python offline.py", "`offline.py` decides itself"),
        ("torchrun --nproc-per-node 2 spmd.py --x", "`spmd.py` decides itself"),
        ("env A=1 bash start.sh", "`start.sh` decides itself"),
        ("bash -c 'vllm serve m'", "`bash -c` runs a text of its own"),
        ("sh -lc 'vllm serve m'", "`sh -c` runs a text of its own"),
        ("docker run --entrypoint bash vllm/vllm-openai -c 'vllm serve m'", "`docker` is not `vllm serve`"),
        ("docker compose up", "`docker` is not `vllm serve`"),
        ("vllm chat", "`vllm` is not `vllm serve`"),
        ("vllm bench serve --model m", "`vllm` is not `vllm serve`"),
        ("", "`` is not `vllm serve`"),
    ],
)
def test_commands_without_a_place_for_flags(command: str, words: str) -> None:
    place = spec.flag_place(shlex.split(command))
    assert place.index is None
    assert place.reason.startswith(words)
    assert place.reason.endswith(".")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python offline.py", True),
        ("torchrun spmd.py", True),
        ("./run.sh", True),
        ("uv run bench.py", True),
        ("python -c 'import vllm'", True),
        (SERVE, False),
        (API_SERVER, False),
        ("python -m http.server", False),
        ("docker run x", False),
    ],
)
def test_scripts(command: str, expected: bool) -> None:
    assert spec.is_script(shlex.split(command)) is expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (SERVE, True),
        (API_SERVER, True),
        ("vllm run-batch", False),
        ("python x.py", False),
        ("vllm", False),
        ("", False),
    ],
)
def test_servers(command: str, expected: bool) -> None:
    assert spec.is_server(shlex.split(command)) is expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("docker run -it x", "docker run HERE -it x"),
        ("sudo podman exec box vllm serve m", "sudo podman exec HERE box vllm serve m"),
        ("docker --context far container run x", "docker --context far container run HERE x"),
    ],
)
def test_where_a_container_takes_variables(command: str, expected: str) -> None:
    argv = shlex.split(command)
    place = spec.environment_place(argv)
    assert place
    assert place.index is not None
    argv.insert(place.index, "HERE")
    assert argv == shlex.split(expected)


@pytest.mark.parametrize(
    "command",
    [
        "ssh node vllm serve m",
        "sudo vllm serve m",
        "env -i vllm serve m",
        "kubectl exec pod -- vllm serve m",
        "docker start box",
        "srun --export=NONE vllm serve m",
        "systemd-run vllm serve m",
    ],
)
def test_launchers_that_hand_no_environment_on(command: str) -> None:
    place = spec.environment_place(shlex.split(command))
    assert place
    assert place.index is None
    assert place.reason


@pytest.mark.parametrize(
    "command",
    [SERVE, "sudo -E vllm serve m", "srun --export=ALL,A=1 vllm serve m", "env A=1 vllm serve m", "bash x.sh"],
)
def test_launchers_that_hand_it_on(command: str) -> None:
    assert spec.environment_place(shlex.split(command)) is None


def test_flags_as_the_parser_takes_them() -> None:
    argv = shlex.split("vllm serve m --enforce_eager -O0 -cc.mode=0 --log-level debug --port=1 --api-key a b -- --not")
    assert list(spec.typed_flags(argv)) == [
        ("--enforce-eager", None),
        ("-O", "0"),
        ("-cc.mode", "0"),
        ("--log-level", "debug"),
        ("--port", "1"),
        ("--api-key", "a"),
    ]


def test_variables_in_the_command_line() -> None:
    assert spec.typed_variables(shlex.split("env A=1 NCCL_DEBUG=INFO vllm serve m")) == {"A": "1", "NCCL_DEBUG": "INFO"}
    assert spec.typed_variables(shlex.split("docker run -e A=1 --env=B=x=y -e C img")) == {"A": "1", "B": "x=y"}
    assert spec.typed_variables(shlex.split("vllm serve A=1")) == {}


@given(
    st.lists(st.sampled_from(["vllm", "serve", "--", "-m", "env", "docker", "run", "bash", "-c", "x.py", "", "A=1"]))
)
def test_any_command_line_can_be_read(argv: list[str]) -> None:
    """And a place for flags lies behind `serve` and before any `--` there."""
    place = spec.flag_place(argv)
    assert (place.index is None) == bool(place.reason)
    if place.index is not None:
        start = spec.engine_start(argv)
        assert start is not None
        assert "--" not in argv[start : place.index]
    spec.expects_vllm(argv)
    spec.outsider(argv)
    spec.environment_place(argv)
    spec.typed_variables(argv)
