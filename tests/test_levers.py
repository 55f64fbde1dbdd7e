"""Levers as data, and what a plan makes of them."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.launch import levers
from vllm_probes.launch.levers import LeverError, Plan, blocked, check_arrival, load_levers, unset_line
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.rows import Change, DebugSetting

DUMPS = "/s/coredumps"
ALL = ["eager", "launch-blocking", "coredump"]


def base(command: str = "vllm serve m", **env: str) -> LaunchSpec:
    return LaunchSpec(shlex.split(command), {"PATH": "/bin", **env}, "/home")


def plan(spec: LaunchSpec, *chosen: str, bare: bool = True, clean: bool = False) -> Plan:
    return levers.plan(spec, chosen, bare=bare, clean=clean, coredumps=DUMPS)


def settings(result: Plan, origin: str) -> list[str]:
    return [setting.setting for setting in result.debug_settings if setting.origin == origin]


def test_the_data() -> None:
    found = load_levers()
    assert [(lever.id, lever.key) for lever in found.values()] == list(zip(ALL, "ebc", strict=True))
    assert found["launch-blocking"].offers == ["eager"]
    assert all(lever.gives and lever.cost and lever.caution and lever.python for lever in found.values())
    assert all(lever.flag or lever.env for lever in found.values())
    assert load_levers() == found


def test_nothing_chosen_and_bare_changes_nothing() -> None:
    spec = base("vllm serve m --api-key secret", NCCL_DEBUG="WARN")
    assert plan(spec) == Plan(spec, [], [])


HOOKED = {"PYTHONPATH": str(levers.HOOK)}


@pytest.mark.parametrize(
    ("command", "env", "expected"),
    [
        ("vllm serve m", {}, {"PYTHONFAULTHANDLER": "1", "SPT_NOENV": "1", **HOOKED}),
        (
            "python -m vllm.entrypoints.openai.api_server",
            {},
            {"PYTHONFAULTHANDLER": "1", "SPT_NOENV": "1", **HOOKED},
        ),
        ("python offline.py", {}, {"PYTHONFAULTHANDLER": "1", **HOOKED}),
        ("vllm serve m", {"PYTHONFAULTHANDLER": "", "SPT_NOENV": "0"}, HOOKED),
        ("env SPT_NOENV=0 vllm serve m", {}, {"PYTHONFAULTHANDLER": "1", **HOOKED}),
        ("env PYTHONPATH=/mine vllm serve m", {}, {"PYTHONFAULTHANDLER": "1", "SPT_NOENV": "1"}),
        ("docker run vllm/vllm-openai --model m", {}, {}),
        ("ssh node vllm serve m", {}, {}),
    ],
)
def test_what_is_set_at_every_launch(command: str, env: dict[str, str], expected: dict[str, str]) -> None:
    spec = base(command, **env)
    result = plan(spec, bare=False)
    assert result.spec == LaunchSpec(spec.argv, spec.env | expected, spec.cwd)
    assert result.changes == [Change(name=name, after=value) for name, value in expected.items()]
    assert result.debug_settings == []
    assert plan(spec).spec == spec


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"{levers.HOOK}"),
        ("/mine", f"{levers.HOOK}:/mine"),
        (":/mine", f"{levers.HOOK}::/mine"),
        (f"/mine:{levers.HOOK}", f"/mine:{levers.HOOK}"),
    ],
)
def test_the_hook_comes_before_the_python_path_of_the_user(before: str, after: str) -> None:
    spec = base(PYTHONPATH=before, PYTHONFAULTHANDLER="1", SPT_NOENV="1")
    result = plan(spec, bare=False)
    assert result.spec.env["PYTHONPATH"] == after
    assert result.changes == ([Change(name="PYTHONPATH", before=before, after=after)] if after != before else [])


def test_eager() -> None:
    result = plan(base("vllm serve m -- x"), "eager")
    assert result.spec.argv == ["vllm", "serve", "m", "--enforce-eager", "--", "x"]
    assert result.changes == [Change(name="--enforce-eager", after="")]
    assert settings(result, "lever") == ["--enforce-eager"]


def test_blocking_and_coredump() -> None:
    result = plan(base(CUDA_LAUNCH_BLOCKING="0"), "launch-blocking", "coredump")
    assert result.changes[0] == Change(name="CUDA_LAUNCH_BLOCKING", before="0", after="1")
    assert result.spec.env["CUDA_COREDUMP_FILE"] == "/s/coredumps/cuda_coredump_%h.%p.%t"
    assert result.spec.env["CUDA_ENABLE_COREDUMP_ON_EXCEPTION"] == "1"
    assert result.spec.argv == ["vllm", "serve", "m"]
    assert settings(result, "lever") == ["CUDA_LAUNCH_BLOCKING=1", "CUDA_ENABLE_COREDUMP_ON_EXCEPTION=1"]
    assert settings(result, "inherited") == []


def test_a_container_gets_variables_and_the_folder_in_its_command_line() -> None:
    result = plan(base("docker run --gpus all vllm/vllm-openai --model m"), *ALL)
    argv = result.spec.argv
    assert argv[:2] == ["docker", "run"]
    assert argv[-4:] == ["vllm/vllm-openai", "--model", "m", "--enforce-eager"]
    assert argv[argv.index("CUDA_LAUNCH_BLOCKING=1") - 1] == "-e"
    assert argv[argv.index("/s/coredumps:/s/coredumps") - 1] == "-v"
    assert "CUDA_COREDUMP_FILE=/s/coredumps/cuda_coredump_%h.%p.%t" in argv
    assert result.spec.env == base().env


def test_ray_is_told_to_copy_the_variables() -> None:
    name = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"
    ray = "vllm serve m --distributed-executor-backend ray"
    assert plan(base(ray), "launch-blocking").spec.env[name] == "CUDA_"
    assert plan(base(ray, **{name: "MY_"}), "launch-blocking", "coredump").spec.env[name] == "MY_,CUDA_"
    assert name not in plan(base(ray), "eager").spec.env
    assert name not in plan(base(), "launch-blocking").spec.env


def test_clean_is_as_typed_without_levers_and_inherited_settings() -> None:
    spec = base("vllm serve m --enforce-eager", NCCL_DEBUG="INFO", VLLM_TRACE_FUNCTION="1", HOME="/h")
    result = plan(spec, *ALL, clean=True)
    assert result.spec == LaunchSpec(spec.argv, {"PATH": "/bin", "HOME": "/h"}, "/home")
    assert {(change.name, change.before, change.after) for change in result.changes} == {
        ("NCCL_DEBUG", "INFO", None),
        ("VLLM_TRACE_FUNCTION", "1", None),
    }
    assert [(setting.setting, setting.origin) for setting in result.debug_settings] == [("--enforce-eager", "typed")]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("vllm serve m --enforce-eager", ["--enforce-eager"]),
        ("vllm serve m --enforce-eager --no-enforce-eager", []),
        ("vllm serve m --enforce_eager", ["--enforce-eager"]),
        ("vllm serve m -O0", ["-O=0"]),
        ("vllm serve m -O 0", ["-O=0"]),
        ("vllm serve m -O3 --optimization-level=2", []),
        ("vllm serve m --log-level DEBUG", ["--log-level=DEBUG"]),
        ("vllm serve m --log-level info", []),
        ("vllm serve m -cc.cudagraph_mode=NONE", ["-cc.cudagraph_mode=NONE"]),
        ("vllm serve m --load-format dummy --load-format auto", []),
        ("env CUDA_LAUNCH_BLOCKING=1 vllm serve m", ["CUDA_LAUNCH_BLOCKING=1"]),
        ("docker run -e NCCL_DEBUG=TRACE vllm/vllm-openai", ["NCCL_DEBUG=TRACE"]),
        ("compute-sanitizer --tool memcheck vllm serve m", ["compute-sanitizer"]),
        ("python x.py --enforce-eager", ["--enforce-eager"]),
        ("vllm serve m --max-model-len 0", []),
    ],
)
def test_typed_settings(command: str, expected: list[str]) -> None:
    result = plan(base(command))
    assert settings(result, "typed") == expected
    assert all(setting.cost for setting in result.debug_settings)


@pytest.mark.parametrize(
    ("name", "value", "counts"),
    [
        ("VLLM_LOGGING_LEVEL", "DEBUG", True),
        ("VLLM_LOGGING_LEVEL", "INFO", False),
        ("CUDA_LAUNCH_BLOCKING", "1", True),
        ("CUDA_LAUNCH_BLOCKING", "0", False),
        ("CUDA_LAUNCH_BLOCKING", "", False),
        ("NCCL_DEBUG", "INFO", True),
        ("NCCL_DEBUG", "WARN", False),
        ("TORCH_DISTRIBUTED_DEBUG", "OFF", False),
        ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", True),
        ("VLLM_USE_DEEP_GEMM", "0", True),
        ("VLLM_USE_DEEP_GEMM", "1", False),
        ("VLLM_LOG_BATCHSIZE_INTERVAL", "-1", False),
        ("VLLM_LOG_BATCHSIZE_INTERVAL", "5", True),
        ("TORCH_LOGS", "+dynamo", True),
        ("CUDA_VISIBLE_DEVICES", "0", False),
        ("PYTHONFAULTHANDLER", "1", False),
    ],
)
def test_inherited_settings(name: str, value: str, counts: bool) -> None:
    result = plan(base(**{name: value}))
    assert settings(result, "inherited") == ([f"{name}={value}"] if counts else [])
    assert (name in plan(base(**{name: value}), clean=True).spec.env) is not counts


def test_the_unset_line_names_only_what_the_shell_handed_down() -> None:
    result = plan(base("vllm serve m -O0", NCCL_DEBUG="INFO", CUDA_LAUNCH_BLOCKING="1"), "eager")
    assert unset_line(result.debug_settings) == "unset CUDA_LAUNCH_BLOCKING NCCL_DEBUG"
    assert unset_line([DebugSetting(setting="-O=0", origin="typed", cost="")]) == ""


@pytest.mark.parametrize(
    ("lever", "command", "words"),
    [
        ("eager", "vllm serve m --enforce-eager", "typed --enforce-eager yourself"),
        ("eager", "python offline.py", "Instead, write enforce_eager=True in LLM(...)."),
        ("eager", "torchrun spmd.py", "`spmd.py` decides itself"),
        ("eager", "bash -c 'vllm serve m'", "runs a text of its own"),
        ("eager", "docker compose up", "put --enforce-eager behind `vllm serve` there"),
        ("launch-blocking", "env CUDA_LAUNCH_BLOCKING=0 vllm serve m", "sets CUDA_LAUNCH_BLOCKING itself"),
        ("launch-blocking", "ssh node vllm serve m", "`ssh` does not hand this environment on"),
        ("launch-blocking", "sudo vllm serve m", "`sudo` does not hand this environment on"),
        ("coredump", "docker exec box vllm serve m", "gets no new folder"),
    ],
)
def test_a_lever_that_cannot_work_says_why(lever: str, command: str, words: str) -> None:
    reason = blocked(lever, base(command))
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize(
    ("lever", "command"),
    [
        ("eager", "vllm serve m --enforce-eager --no-enforce-eager"),
        ("eager", "srun vllm serve m"),
        ("launch-blocking", "python offline.py"),
        ("launch-blocking", "docker exec box vllm serve m"),
        ("coredump", "docker run vllm/vllm-openai"),
        ("coredump", "bash run.sh"),
    ],
)
def test_levers_that_work(lever: str, command: str) -> None:
    assert blocked(lever, base(command)) is None
    assert plan(base(command), lever).changes


def test_what_the_shell_sets_anyway_is_said_and_not_set_twice() -> None:
    spec = base(CUDA_LAUNCH_BLOCKING="1")
    assert "comes from your shell" in (blocked("launch-blocking", spec) or "")
    result = plan(spec, "launch-blocking")
    assert result.changes == []
    assert settings(result, "lever") == []
    assert settings(result, "inherited") == ["CUDA_LAUNCH_BLOCKING=1"]


def test_a_lever_without_a_place_is_refused() -> None:
    with pytest.raises(LeverError, match="decides itself"):
        plan(base("python offline.py"), "eager")


def test_an_unknown_lever_is_refused_with_the_known_ones() -> None:
    for act in (lambda: plan(base(), "eagre"), lambda: blocked("eagre", base())):
        with pytest.raises(LeverError, match=r"'eagre'.*eager, launch-blocking, coredump"):
            act()


def test_secrets_are_not_in_the_changes() -> None:
    spec = base(NCCL_DEBUG_FILE="/x?token=0123456789abcdef", NCCL_DEBUG="INFO")
    result = plan(spec, clean=True)
    assert "0123456789abcdef" not in repr(result.changes)
    assert "0123456789abcdef" not in repr(plan(spec).debug_settings)
    assert plan(spec).spec == spec


ON = {"CUDA_LAUNCH_BLOCKING": "1"}


@pytest.mark.parametrize(
    ("lever", "environ", "process", "command", "fields", "expected"),
    [
        ("launch-blocking", ON, "Worker_TP0", "VLLM::Worker_TP0", {}, True),
        ("launch-blocking", ON, "EngineCore", "VLLM::EngineCore", {}, True),
        ("launch-blocking", {"PATH": "/bin"}, "Worker", "", {}, False),
        ("launch-blocking", {"CUDA_LAUNCH_BLOCKING": "0"}, "Worker", "", {}, False),
        ("launch-blocking", ON, "docker", "docker run x", {}, None),
        ("launch-blocking", ON, "bash", "bash start.sh", {}, None),
        ("launch-blocking", {}, "Worker", "", {}, None),
        ("launch-blocking", None, "Worker", "", {}, None),
        ("eager", None, "APIServer", "python /bin/vllm serve m --enforce-eager", {}, True),
        ("eager", None, "APIServer", "python /bin/vllm serve m", {}, None),
        ("eager", None, "docker", "docker run vllm/vllm-openai --enforce-eager", {}, None),
        ("eager", None, "EngineCore", "VLLM::EngineCore", {"enforce_eager": "True"}, True),
        ("eager", None, "APIServer", "vllm serve m --enforce-eager", {"enforce_eager": "False"}, False),
        ("eager", None, "EngineCore", "", {}, None),
    ],
)
def test_arrival(
    lever: str,
    environ: dict[str, str] | None,
    process: str,
    command: str,
    fields: dict[str, str],
    expected: bool | None,
) -> None:
    found = check_arrival(lever, environ, process, shlex.split(command), fields)
    assert (found and found[0]) is expected
    assert found is None or found[1]


def test_arrival_of_a_coredump_goes_by_its_fixed_values() -> None:
    env = plan(base(), "coredump").spec.env
    assert check_arrival("coredump", env, "Worker", [], {}) == (True, "environment of Worker")
    del env["CUDA_COREDUMP_FILE"]
    found = check_arrival("coredump", env, "Worker", [], {})
    assert found
    assert "CUDA_COREDUMP_FILE" in found[1]


@given(
    chosen=st.lists(st.sampled_from(ALL)),
    command=st.sampled_from(["vllm serve m", "docker run -it vllm/vllm-openai:x --model m", "srun vllm serve m -- x"]),
    env=st.dictionaries(
        st.sampled_from(["NCCL_DEBUG", "CUDA_LAUNCH_BLOCKING", "HF_TOKEN", "HOME"]), st.sampled_from("01")
    ),
    bare=st.booleans(),
)
def test_a_plan_starts_from_what_was_typed(chosen: list[str], command: str, env: dict[str, str], bare: bool) -> None:
    """The same whatever the order and repetition, never losing a word that was typed, never touching the base."""
    spec = base(command, **env)
    before = LaunchSpec(list(spec.argv), dict(spec.env), spec.cwd)
    result = plan(spec, *chosen, bare=bare)
    assert spec == before
    assert result == plan(spec, *chosen, *chosen, bare=bare)
    typed = iter(result.spec.argv)
    assert all(word in typed for word in spec.argv)
    assert result.spec.env.keys() >= spec.env.keys()
    changed = {change.name for change in result.changes}
    assert {
        name for name, value in result.spec.env.items() if env.get(name, "/bin") != value and name != "PATH"
    } <= changed
