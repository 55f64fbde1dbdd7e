"""What is launched, and what its command line tells: is it vLLM, does it run out of our sight, where do flags go?

A command line is a chain of programs, each starting the next (`srun … numactl … vllm serve m`). It is only read, never
run, and read with caution: what is not known for sure is "no".
"""

import os
import re
from collections.abc import Iterator
from itertools import pairwise

import msgspec

_ENGINE_SUBCOMMANDS = {("serve",), ("run-batch",), ("bench", "latency"), ("bench", "throughput")}
_ENGINE_MODULE = re.compile(r"vllm\.entrypoints\.(?!cli\b)")
_ENGINE_IMAGE = re.compile(r"(\S+/)?vllm-(openai|cpu)[\w.-]*([:@]\S+)?")  # their entry point is `vllm serve`
_VLLM_IMAGE = re.compile(r"(\S+/)?vllm[\w.-]*([:@]\S+)?")
_VLLM_WORD = re.compile(r"\bvllm\b")

# fmt: off
_WRAPPERS = frozenset(
    (
        "env", "nice", "ionice", "nohup", "setsid", "time", "timeout", "stdbuf", "unbuffer", "taskset", "numactl",
        "chrt", "sudo", "doas", "runuser", "strace", "ltrace", "perf", "nsys", "ncu", "compute-sanitizer", "cuda-gdb",
        "gdb", "py-spy", "memray", "xvfb-run", "uv", "uvx", "poetry", "pdm", "hatch", "pixi", "conda", "mamba",
        "micromamba", "srun", "salloc", "sbatch", "mpirun", "mpiexec", "ssh", "systemd-run",
    )
)
_CONTAINER_CLIENTS = frozenset(("docker", "nerdctl", "podman"))
_SCRIPT_LAUNCHERS = frozenset(("torchrun", "accelerate", "deepspeed"))
_SHELLS = frozenset(("sh", "bash", "dash", "zsh", "ksh", "fish"))
_PYTHON = re.compile(r"(python|pypy)[\d.]*")
_SCRIPT = re.compile(r".+\.(py|sh|bash)")

# Their processes are children of a daemon or of another host. Not podman, apptainer or mpirun: those start children.
_OUTSIDERS = frozenset(
    (
        "docker", "docker-compose", "nerdctl", "crictl", "kubectl", "oc", "ssh", "srun", "sbatch", "systemd-run",
        "tmux", "screen", "machinectl", "lxc", "incus",
    )
)
# fmt: on
_RAY_FLAGS = frozenset(("--distributed-executor-backend", "--data-parallel-backend", "-dpb"))


class LaunchSpec(msgspec.Struct, frozen=True):
    """A command with the environment and the folder it runs in."""

    argv: list[str]
    env: dict[str, str]
    cwd: str


class Place(msgspec.Struct, frozen=True):
    """Where in argv something can be put in; without an index, the reason says why nowhere."""

    index: int | None
    reason: str = ""


class Program(msgspec.Struct, frozen=True):
    """One program of the chain: its base name and its arguments up to the next one."""

    name: str
    index: int
    arguments: list[str]


def programs(argv: list[str]) -> list[Program]:
    """The chain, outermost first; the last one is the first that is no known wrapper."""
    starts = [0] if argv else []
    while starts and _is_wrapper(argv, starts[-1]) and (inner := _inner_program(argv, starts[-1])):
        starts.append(inner)
    return [Program(_name(argv[start]), start, argv[start + 1 : end]) for start, end in pairwise([*starts, len(argv)])]


def engine_start(argv: list[str]) -> int | None:
    """Where the arguments of vLLM's own command line begin: behind `vllm serve`, its module or its image."""
    for index, token in enumerate(argv):
        if _name(token) == "vllm":
            for words in _ENGINE_SUBCOMMANDS:
                if tuple(argv[index + 1 : index + 1 + len(words)]) == words:
                    return index + 1 + len(words)
        if token == "-m" and _ENGINE_MODULE.match("".join(argv[index + 1 : index + 2])):
            return index + 2
        if _ENGINE_MODULE.match(token.removeprefix("-m")) and token.startswith("-m"):
            return index + 1
    return _behind_engine_image(argv)


def is_server(argv: list[str]) -> bool:
    """Whether it is `vllm serve` or an api_server module, which start their processes by spawn, never by fork."""
    start = engine_start(argv)
    return start is not None and (argv[start - 1] == "serve" or argv[start - 1].endswith(".api_server"))


def expects_vllm(argv: list[str]) -> bool:
    """Whether the command line speaks of vLLM: its command, module, image, or a script that is named after it."""
    if engine_start(argv) is not None:
        return True
    return any(
        (program.name in _CONTAINER_CLIENTS and any(map(_VLLM_IMAGE.fullmatch, program.arguments)))
        or ("vllm" in (_script_of(program) or "").lower())
        or bool(_VLLM_WORD.search(_inline_code(program) or ""))
        for program in programs(argv)
    )


def outsider(argv: list[str]) -> str | None:
    """The launcher whose processes will not be our descendants: `docker`, `srun`, `ssh`, `ray` …, the outermost."""
    for program in programs(argv):
        if program.name == "podman" and "--remote" in program.arguments:
            return program.name
        if program.name == "systemd-run" and "--scope" in program.arguments:
            continue
        if program.name in _OUTSIDERS or (program.name == "ray" and program.arguments[:1] != ["start"]):
            return program.name
    return "ray" if uses_ray(argv) else None


def uses_ray(argv: list[str]) -> bool:
    """Whether workers are Ray actors, which get only some variables of the environment."""
    return any(name in _RAY_FLAGS and value == "ray" for name, value in typed_flags(argv))


def is_script(argv: list[str]) -> bool:
    """Whether Python or shell code decides what vLLM gets, so that no flag of ours reaches it."""
    return engine_start(argv) is None and any(
        _script_of(program) or _inline_code(program) for program in programs(argv)
    )


def flag_place(argv: list[str]) -> Place:
    """Where an engine flag goes: at the end, but before a `--`, behind which everything is positional."""
    start = engine_start(argv)
    if start is None:
        return Place(None, _why_no_flags(argv))
    return Place(argv.index("--", start) if "--" in argv[start:] else len(argv))


def environment_place(argv: list[str]) -> Place | None:
    """Where a container's command line takes `-e NAME=VALUE`; None: the environment of the launch reaches vLLM."""
    chain = programs(argv)
    for program in chain:
        if program.name in _CONTAINER_CLIENTS:
            for index, word in enumerate(program.arguments, start=program.index + 1):
                if word in ("run", "exec", "create"):
                    return Place(index + 1)
    for program in chain:
        if _drops_environment(program):
            return Place(None, f"`{program.name}` does not hand this environment on.")
    return None


def typed_flags(argv: list[str]) -> Iterator[tuple[str, str | None]]:
    """Every flag with its value, as vLLM's parser takes it: `--enforce_eager` is `--enforce-eager`."""
    arguments = argv[engine_start(argv) or 1 : flag_place(argv).index]
    for token, following in pairwise([*arguments, ""]):
        name, equals, value = token.partition("=")
        if name.startswith("--") and len(name) > 2:
            name = name.replace("_", "-")
        elif name.startswith("-O") and len(name) > 2:
            name, equals, value = "-O", "=", name[2:]
        elif not name.startswith("-"):
            continue
        yield name, value if equals else (following if following and not following.startswith("-") else None)


def typed_variables(argv: list[str]) -> dict[str, str]:
    """Variables that the command line sets itself: `env NAME=VALUE …`, `docker run -e NAME=VALUE …`."""
    found: dict[str, str] = {}
    for program in programs(argv):
        if program.name == "env" or program.name in _CONTAINER_CLIENTS:
            words = (word.removeprefix("--env=") for word in program.arguments)
            found |= {
                name: value for name, equals, value in (w.partition("=") for w in words) if equals and _is_name(name)
            }
    return found


def _name(token: str) -> str:
    return os.path.basename(token)


def _is_name(text: str) -> bool:
    return text.isidentifier() and text.upper() == text


def _is_wrapper(argv: list[str], index: int) -> bool:
    return _name(argv[index]) in _WRAPPERS


def _is_known(token: str) -> bool:
    name = _name(token)
    known = _WRAPPERS | _CONTAINER_CLIENTS | _SCRIPT_LAUNCHERS | _SHELLS | _OUTSIDERS | {"ray"}
    return name in known or bool(_PYTHON.fullmatch(name) or _SCRIPT.fullmatch(token))


def _inner_program(argv: list[str], wrapper: int) -> int | None:
    """The next program that we know; options of wrappers are too many to know which of them take a value."""
    return next((index for index in range(wrapper + 1, len(argv)) if _is_known(argv[index])), None)


def _script_of(program: Program) -> str | None:
    """The base name of the script that an interpreter or launcher runs, or of the program if it is one itself."""
    if _SCRIPT.fullmatch(program.name):
        return program.name
    if program.name in _SHELLS | _SCRIPT_LAUNCHERS or _PYTHON.fullmatch(program.name):
        scripts = (argument for argument in program.arguments if _SCRIPT.fullmatch(argument))
        return next((_name(script) for script in scripts), None)
    return None


def _inline_code(program: Program) -> str | None:
    """The text behind `-c` (`-lc`) of a shell or of Python."""
    if program.name in _SHELLS or _PYTHON.fullmatch(program.name):
        for option, text in pairwise(program.arguments):
            if re.fullmatch(r"-[a-z]*c", option):
                return text
    return None


def _behind_engine_image(argv: list[str]) -> int | None:
    for program in programs(argv):
        if program.name in _CONTAINER_CLIENTS and not any(a.startswith("--entrypoint") for a in program.arguments):
            for index, argument in enumerate(program.arguments, start=program.index + 1):
                if _ENGINE_IMAGE.fullmatch(argument):
                    return index + 1
    return None


def _drops_environment(program: Program) -> bool:
    options = program.arguments
    if program.name in ("sudo", "doas"):
        return not any(option in ("-E", "--preserve-env") for option in options)
    if program.name == "env":
        return any(option in ("-i", "-", "--ignore-environment") for option in options)
    if program.name in ("srun", "sbatch"):
        return any(option.startswith("--export=") and "ALL" not in option for option in options)
    return program.name in _OUTSIDERS | _CONTAINER_CLIENTS


def _why_no_flags(argv: list[str]) -> str:
    for program in programs(argv):
        if _inline_code(program):
            return f"`{program.name} -c` runs a text of its own, and flags behind it would not reach vLLM."
        if script := _script_of(program):
            return f"`{script}` decides itself what vLLM gets, and flags behind it need not reach vLLM."
    outermost = programs(argv)[-1].name if argv else ""
    return f"`{outermost}` is not `vllm serve`, and what it does with a flag is not known."
