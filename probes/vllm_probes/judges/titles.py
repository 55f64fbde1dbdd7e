"""What a process is, from its title or command line: its name, its role and its rank."""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from vllm_probes.judges.commandline import base_name, script, server_arguments
from vllm_probes.log.line import rank_of
from vllm_probes.rows import Role

VLLM_ROLES: frozenset[Role] = frozenset(("api_server", "engine_core", "worker", "coordinator"))


class Identity(NamedTuple):
    """`rank` is the global one, None where the name alone does not tell it."""

    process: str
    role: Role
    rank: int | None = None


# Titles of vLLM 0.32 (reference: `set_process_title` in utils/system_utils.py), its log names, and its Ray actors.
_TITLE = re.compile(r".*::([^\s.]+)", re.DOTALL)
_NAMES: list[tuple[re.Pattern[str], Role]] = [
    (re.compile(r"APIServer(_\w+)?|ApiServer_\w+|DPSupervisor"), "api_server"),
    (re.compile(r"EngineCore(_\w+)?|(DPMoE)?EngineCoreActor"), "engine_core"),
    (re.compile(r"Worker(_\w+)?|VllmWorker(-\d+)?|RayWorker(Proc|Wrapper)"), "worker"),
    (re.compile(r"DPCoordinator|VLLM_DP_Coordinator"), "coordinator"),
]
_PROGRAMS: list[tuple[re.Pattern[str], Role]] = [
    (re.compile(r"vllm-rs"), "api_server"),
    (
        re.compile(
            r"([\w.]+-)*(gcc|g\+\+|cc|c\+\+|cpp|clang(\+\+)?|as|ld|lld|ld\.\w+)(-[\d.]+)?|cc1(plus)?|collect2"
            r"|nvcc|cicc|ptxas|cudafe\+\+|fatbinary|nvlink|hipcc|ninja(-build)?|cmake|g?make|compile_worker"
        ),
        "compiler",
    ),
]
_TRACKER = "multiprocessing.resource_tracker"
_PART = re.compile(r"_(DP|PP|PCP|TP)(\d+)")


def identify(argv: Sequence[str], parent_argv: Sequence[str] = (), log_name: str | None = None) -> Identity:
    """What runs under this command line.

    A vLLM title counts first, whatever its prefix (`VLLM_PROCESS_NAME_PREFIX`), then the name from the log prefix, then
    the command line. A child that still has the command line of its parent was forked and has not said yet what it
    will be: it keeps the name, but not the role, and it is not a second `APIServer`.
    """
    is_copy = bool(argv) and list(argv) == list(parent_argv)
    found = _TITLE.match(argv[0]) if argv else None
    title = found[1] if found else None
    for name in (log_name, title) if is_copy else (title, log_name):
        if name and (role := _role(name, _NAMES)):
            is_own = not is_copy or name == log_name
            return Identity(name, role, rank_of(name)) if is_own else Identity(name, "other")
    if not is_copy and server_arguments(script(argv)) is not None:
        return Identity("APIServer", "api_server")
    name = _program(argv)
    if len(argv) > 2 and argv[-2] == "-c" and _TRACKER in argv[-1]:
        return Identity(name, "resource_tracker")
    return Identity(name, _role(name, _PROGRAMS) or "other")


def is_vllm_name(process: str) -> bool:
    """Whether only vLLM gives a process this name; ranks of other programs keep their own."""
    return _role(process, _NAMES) is not None


def parts(name: str) -> dict[str, int]:
    """Where in the grid of ranks a process is: `{"DP": 0, "PP": 1, "TP": 3}` of `Worker_DP0_PP1_TP3`."""
    return {part: int(number) for part, number in _PART.findall(name)}


def grid_ranks(names: Collection[str]) -> dict[str, int]:
    """Global ranks of workers whose titles have several parts, from the grid that all titles make.

    Ranks are laid out DP x PP x PCP x TP (`initialize_model_parallel`, distributed/parallel_state.py of 0.32). A title
    tells no sizes, but a complete grid does; of the first part any range may be on this host. Empty while the grid has
    gaps: workers that start get their titles one by one.
    """
    places = {name: parts(name) for name in names}
    used = [part for part in ("DP", "PP", "PCP", "TP") if any(part in place for place in places.values())]
    if len(used) < 2 or any(list(place) != used for place in places.values()):
        return {}
    sizes = {part: len({place[part] for place in places.values()}) for part in used}
    inner = used[1:]
    complete = all(sizes[part] > 1 and max(place[part] for place in places.values()) < sizes[part] for part in inner)
    count = 1
    for size in sizes.values():
        count *= size
    if not complete or count != len(places):
        return {}
    return {name: _position(place, sizes) for name, place in places.items()}


def _position(place: dict[str, int], sizes: dict[str, int]) -> int:
    position = 0
    for part, size in sizes.items():
        position = position * size + place[part]
    return position


def _program(argv: Sequence[str]) -> str:
    """The base name of the script, or of the executable; a module that is run with `-m` keeps its dotted name."""
    path = (script(argv) or list(argv) or [""])[0]
    if base_name(path) == "__main__.py":  # the folder says more: torch's compile workers run like that
        path = path.removesuffix("/__main__.py")
    return base_name(path).split(" ")[0] or "?"


def _role(name: str, patterns: Sequence[tuple[re.Pattern[str], Role]]) -> Role | None:
    return next((role for pattern, role in patterns if pattern.fullmatch(name)), None)
