"""Levers: named changes to a launch, and what debugging is in force anyway. The data is in levers.toml.

Everything here is pure: a plan is made of what was typed and of the levers chosen, never of the launch before.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from vllm_probes.launch import spec as command_lines
from vllm_probes.launch.redact import redact_value
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.rows import Change, DebugSetting

HOOK = Path(__file__).parents[1] / "hook"
"""The folder of the start-up hook, a `sitecustomize` for every Python of the run."""
_ON = r"(?i)(?!(?:0|false|off|no)$).+"
_GPU_PROCESS = re.compile(r"EngineCore|(?:Vllm)?Worker")
_RAY_PREFIXES = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"
_RAY_COPIES = ("VLLM_", "NCCL_", "HF_", "HUGGING_FACE_", "UCX_", "LMCACHE_", "FLASH_ATTENTION_")  # 0.32, ray/ray_env.py


class LeverError(Exception):
    """A lever that does not exist, or that cannot work on this command."""


class Lever(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of levers.toml; `{coredumps}` in a value stands for the session's folder of core dumps."""

    id: str
    key: str
    python: str
    """What to write into a script instead."""
    gives: str
    cost: str
    patience: float = 1.0
    """How many times longer a healthy step may take with it."""
    caution: str
    flag: str | None = None
    env: dict[str, str] = {}
    log_field: str | None = None
    """The field of vLLM's own configuration line that becomes `True` with it."""
    offers: list[str] = []
    """Levers without which it shows little."""


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A flag, variable or program that counts as debugging when its value matches."""

    cost: str
    patience: float = 1.0
    """How many times longer a healthy step may take with it."""
    env: str | None = None
    flag: str | None = None
    program: str | None = None
    value: str = _ON


class Plan(msgspec.Struct, frozen=True):
    """A launch, its difference from what was typed, and every debug setting in force in it. Secrets only in `spec`."""

    spec: LaunchSpec
    changes: list[Change]
    debug_settings: list[DebugSetting]


class _Data(msgspec.Struct, frozen=True):
    lever: list[Lever]
    setting: list[Setting]


@cache
def _data() -> _Data:
    return msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes(), type=_Data)


def load_levers() -> dict[str, Lever]:
    """Every lever by its id."""
    return {lever.id: lever for lever in _data().lever}


def plan(base: LaunchSpec, levers: Sequence[str], *, bare: bool, clean: bool, coredumps: str) -> Plan:
    """The launch that was typed with just these levers; `coredumps` is an absolute folder.

    `bare` leaves out what is otherwise set at every launch; `clean` leaves out the levers, and the debug variables that
    the shell handed down.

    Raises:
        LeverError: a lever is unknown or cannot work on this command.
    """
    draft = _Draft(base)
    chosen = [] if clean else [_lever(lever_id) for lever_id in dict.fromkeys(levers)]
    if clean:
        for name, _ in _inherited(base):
            draft.set_variable(name, None)
    if not bare:
        _add_always_on(draft)
    pulled = [lever for lever in chosen if _pull(draft, lever, coredumps)]
    return Plan(draft.spec, draft.changes, [*map(_lever_setting, pulled), *_debug_settings(draft, pulled)])


def blocked(lever_id: str, base: LaunchSpec) -> str | None:
    """Why the lever would change nothing on this command, and what to do instead; None: it works.

    Raises:
        LeverError: the lever is unknown.
    """
    lever = _lever(lever_id)
    return _in_force(lever, base) or _without_place(lever, base.argv)


def unset_line(settings: Sequence[DebugSetting]) -> str:
    """The command that takes the inherited settings out of a shell; empty when there are none."""
    names = [setting.setting.partition("=")[0] for setting in settings if setting.origin == "inherited"]
    return " ".join(["unset", *names]) if names else ""


def check_arrival(
    lever_id: str,
    environ: Mapping[str, str] | None,
    process: str,
    argv: Sequence[str],
    log_fields: Mapping[str, str],
) -> tuple[bool, str] | None:
    """Whether the lever reached vLLM, and what shows it; None: this process and this log cannot tell (yet).

    Args:
        environ: of the process, as it began; None or empty when it cannot be read or was overwritten.
        process: its name; variables count in EngineCore and workers, flags in the API server's own command line.
        argv: its command line.
        log_fields: of vLLM's configuration line, by name; empty before it is logged.
    """
    lever = _lever(lever_id)
    if lever.flag:
        return _flag_arrival(lever, process, argv, log_fields)
    if not environ or not _GPU_PROCESS.match(process):
        return None
    for name, value in lever.env.items():
        if name not in environ or ("{" not in value and environ[name] != value):
            return False, f"{name}={value} is not in the environment of {process}"
    return True, f"environment of {process}"


class _Draft:
    """A launch in the making, with the list of its changes."""

    def __init__(self, base: LaunchSpec) -> None:
        self.base = base
        self.argv = list(base.argv)
        self.env = dict(base.env)
        self.changes: list[Change] = []

    @property
    def spec(self) -> LaunchSpec:
        return LaunchSpec(self.argv, self.env, self.base.cwd)

    def set_variable(self, name: str, value: str | None) -> None:
        """In the environment, or as an option of the container that vLLM is in."""
        before = self.env.get(name)
        place = command_lines.environment_place(self.argv) if value is not None else None
        if place and place.index is not None:
            before = None
            self.argv[place.index : place.index] = ["-e", f"{name}={value}"]
        elif value is None:
            del self.env[name]
        else:
            self.env[name] = value
        if before != value:
            self.changes.append(Change(name=name, before=_shown(name, before), after=_shown(name, value)))

    def insert(self, index: int, flag: str, value: str = "") -> None:
        self.argv[index:index] = [flag, value] if value else [flag]
        self.changes.append(Change(name=flag, after=value))


def _shown(name: str, value: str | None) -> str | None:
    return None if value is None else redact_value(name, value)


def _lever(lever_id: str) -> Lever:
    levers = load_levers()
    if lever_id not in levers:
        raise LeverError(f"There is no lever {lever_id!r}. The levers are: {', '.join(levers)}.")
    return levers[lever_id]


def _add_always_on(draft: _Draft) -> None:
    """Stacks at a crash; the start-up hook; and SPT_NOENV, or setproctitle overwrites /proc/PID/environ of workers."""
    if command_lines.environment_place(draft.argv):
        return
    typed = command_lines.typed_variables(draft.argv)
    names = ["PYTHONFAULTHANDLER", *(["SPT_NOENV"] if command_lines.is_server(draft.argv) else [])]
    for name in names:
        if name not in draft.env | typed:
            draft.set_variable(name, "1")
    if "PYTHONPATH" not in typed:
        draft.set_variable("PYTHONPATH", _with_hook(draft.env.get("PYTHONPATH", "")))


def _with_hook(python_path: str) -> str:
    """Ours comes first, and loads the sitecustomize that it hides; an empty part stands for the current folder."""
    if not python_path or str(HOOK) in python_path.split(":"):
        return python_path or str(HOOK)
    return f"{HOOK}:{python_path}"


def _pull(draft: _Draft, lever: Lever, coredumps: str) -> bool:
    """Put it on, unless it was typed or handed down anyway."""
    if _in_force(lever, draft.base):
        return False
    if reason := _without_place(lever, draft.base.argv):
        raise LeverError(reason)
    if lever.flag:
        draft.insert(command_lines.flag_place(draft.argv).index or 0, lever.flag)
    place = command_lines.environment_place(draft.argv)
    if place and place.index and _names_folder(lever):
        draft.insert(place.index, "-v", f"{coredumps}:{coredumps}")
    for name, value in lever.env.items():
        draft.set_variable(name, value.replace("{coredumps}", coredumps))
    if lever.env and command_lines.uses_ray(draft.argv):
        _let_ray_copy(draft, lever.env)
    return True


def _let_ray_copy(draft: _Draft, names: Mapping[str, str]) -> None:
    wanted = [name.partition("_")[0] + "_" for name in names if not name.startswith(_RAY_COPIES)]
    present = [prefix for prefix in draft.env.get(_RAY_PREFIXES, "").split(",") if prefix]
    draft.set_variable(_RAY_PREFIXES, ",".join(dict.fromkeys([*present, *wanted])))


def _in_force(lever: Lever, base: LaunchSpec) -> str | None:
    """Why the lever would be a repetition of what was typed or handed down."""
    if lever.flag and _last_says_on(lever.flag, [name for name, _ in command_lines.typed_flags(base.argv)]):
        return f"You typed {lever.flag} yourself: it is in force at every launch."
    typed = command_lines.typed_variables(base.argv).keys() & lever.env.keys()
    if typed:
        return f"Your command line sets {', '.join(sorted(typed))} itself, and that counts: change it there."
    reaches = command_lines.environment_place(base.argv) is None
    if reaches and lever.env and all(base.env.get(name) == value for name, value in lever.env.items()):
        return f"{' '.join(lever.env)} comes from your shell: it is in force at every launch until you unset it."
    return None


def _without_place(lever: Lever, argv: list[str]) -> str | None:
    """Why there is nowhere to put the lever's flag or variables."""
    if lever.flag:
        place = command_lines.flag_place(argv)
        where = "write" if command_lines.is_script(argv) else f"put {lever.flag} behind `vllm serve` there, or write"
        return f"{place.reason} Instead, {where} {lever.python} in LLM(...)." if place.index is None else None
    environment = command_lines.environment_place(argv)
    if environment is None:
        return None
    if environment.index is None:
        return f"{environment.reason} Set {' '.join(lever.env)} behind it, or in a script: {lever.python}."
    if _names_folder(lever) and argv[environment.index - 1] == "exec":
        return "A running container gets no new folder for the dumps: start it anew with this lever."
    return None


def _names_folder(lever: Lever) -> bool:
    return any("{coredumps}" in value for value in lever.env.values())


def _last_says_on(flag: str, typed: Sequence[str]) -> bool:
    """vLLM's parser takes the last of `--flag` and `--no-flag`."""
    negated = flag.replace("--", "--no-", 1)
    said = [name for name in typed if name in (flag, negated)]
    return bool(said) and said[-1] == flag


def _flag_arrival(
    lever: Lever, process: str, argv: Sequence[str], log_fields: Mapping[str, str]
) -> tuple[bool, str] | None:
    if lever.log_field and lever.log_field in log_fields:
        value = log_fields[lever.log_field]
        return value == "True", f"log: {lever.log_field}={value}"
    typed = [name for name, _ in command_lines.typed_flags(list(argv))]
    if lever.flag and process.lower().startswith("apiserver") and _last_says_on(lever.flag, typed):
        return True, f"command line of {process}"
    return None


# --- debug settings in force ----------------------------------------------------------------------------------------


def _lever_setting(lever: Lever) -> DebugSetting:
    name, value = next(iter(lever.env.items()), (lever.flag or "", ""))
    return DebugSetting(
        setting=f"{name}={value}" if value else name, origin="lever", cost=lever.cost, patience=lever.patience
    )


def _debug_settings(draft: _Draft, pulled: Sequence[Lever]) -> Iterator[DebugSetting]:
    """What is in force besides the levers: typed flags, variables and programs, then variables of the shell."""
    argv = draft.base.argv
    for setting in _data().setting:
        for name, value in _typed(setting, argv):
            shown = redact_value(name, value)
            separator = "=" if setting.env or shown else ""
            yield DebugSetting(
                setting=f"{name}{separator}{shown}", origin="typed", cost=setting.cost, patience=setting.patience
            )
    ours = {name for lever in pulled for name in lever.env}
    for name, setting in _inherited(LaunchSpec(argv, draft.env, draft.base.cwd)):
        if name not in ours:
            shown = redact_value(name, draft.env[name])
            yield DebugSetting(
                setting=f"{name}={shown}", origin="inherited", cost=setting.cost, patience=setting.patience
            )


def _typed(setting: Setting, argv: list[str]) -> Iterator[tuple[str, str]]:
    if setting.flag and setting.value == _ON:
        if _last_says_on(setting.flag, [name for name, _ in command_lines.typed_flags(argv)]):
            yield setting.flag, ""
    elif setting.flag:
        values = [value or "" for name, value in command_lines.typed_flags(argv) if name == setting.flag]
        if values and re.fullmatch(setting.value, values[-1]):
            yield setting.flag, values[-1]
    elif setting.env:
        value = command_lines.typed_variables(argv).get(setting.env, "")
        if re.fullmatch(setting.value, value):
            yield setting.env, value
    elif any(program.name == setting.program for program in command_lines.programs(argv)):
        yield setting.program or "", ""


def _inherited(spec: LaunchSpec) -> list[tuple[str, Setting]]:
    settings = [(setting.env, setting) for setting in _data().setting if setting.env]
    return [(name, setting) for name, setting in settings if re.fullmatch(setting.value, spec.env.get(name, ""))]
