"""The vLLM on PATH, and whether py-spy can read it."""

import re
import shlex

from vllm_probes.doctor.check import Check, note, ok, problem, warning
from vllm_probes.doctor.facts import Attempt, TargetFacts, TracingFacts

_DENIED = re.compile(r"permission denied|operation not permitted", re.IGNORECASE)
_NO_STACKS = (
    "Of a vLLM that vllm-tui starts, processes show their stacks only while they stand still; of others none do."
)
_HOOKED_ALONE = "Only a vLLM that vllm-tui starts shows its stacks: it lets every process read it."
_INSTALL = "Install it into the Python that runs vllm-tui: `pip install py-spy`"


def judge_vllm(target: TargetFacts) -> Check:
    """Whether `vllm` would start at all. It is not started: importing it takes many seconds."""
    check_id = "vllm"
    if target.script is None:
        means = "`vllm serve` would not be found; other commands can be launched."
        return note(check_id, "There is no `vllm` on PATH.", means, "Activate its environment: `. FOLDER/bin/activate`")
    if target.interpreter is None:
        means = "Its version and its torch are not known."
        return note(
            check_id,
            f"{target.script} is no Python script.",
            means,
            f"Ask it: `{shlex.quote(target.script)} --version`",
        )
    if target.error is not None:
        what = f"{target.script} is run by {target.interpreter}, which does not work: {target.error}."
        return problem(
            check_id, what, "`vllm serve` does not start.", "Install vLLM anew; environments cannot be moved."
        )
    if target.vllm is None:
        what = f"{target.script} is run by {target.interpreter} (Python {target.python}), which has no vllm installed."
        fix = f"{shlex.quote(target.interpreter)} -m pip install vllm"
        return warning(check_id, what, "It finds vllm only if a path leads it to the sources.", fix)
    torch = f" with torch {target.torch}" if target.torch else ""
    return ok(check_id, f"vLLM {target.vllm}{torch} on Python {target.python} ({target.script}).")


def judge_ptrace(tracing: TracingFacts) -> Check:
    """Whether stacks may be read here, as it was tried on a process that is not below py-spy, as vLLM is not."""
    check_id = "ptrace"
    if tracing.py_spy is None or tracing.own is None:
        return warning(check_id, "py-spy is missing.", _NO_STACKS, _INSTALL)
    if tracing.own.error is None:
        return ok(check_id, f"{_name(tracing)} has read the stacks of a process here.")
    if not _DENIED.search(tracing.own.error):
        what = f"{_name(tracing)} could not read a process here: {_without_dot(tracing.own.error)}."
        return warning(check_id, what, _NO_STACKS, "pip install --upgrade py-spy")
    means = _HOOKED_ALONE if tracing.ptrace_scope == 1 else _NO_STACKS
    return warning(check_id, f"Stacks may not be read{_by_yama(tracing)}.", means, _allow(tracing))


def judge_py_spy(tracing: TracingFacts) -> Check:
    """Whether this py-spy knows the Python of vLLM: it reads only versions that it was made for, so it is tried."""
    check_id = "py-spy"
    if tracing.py_spy is None:
        return warning(check_id, "py-spy is missing.", _NO_STACKS, _INSTALL)
    tried = tracing.target or tracing.own
    if tried is None or tried.error is None:
        whose = (
            f"{tried.python}, vLLM's Python" if tried and tracing.target else "our own Python; there is no other to try"
        )
        return ok(check_id, f"{_name(tracing)} reads {whose}.")
    if _is_denied(tried) or _is_denied(tracing.own):
        means = f"Whether it knows {tried.python} is not known."
        return note(
            check_id, f"{_name(tracing)} may read nothing here.", means, "See what is said of the right to read stacks."
        )
    what = f"{_name(tracing)} cannot read {tried.python}: {_without_dot(tried.error)}."
    return warning(check_id, what, _NO_STACKS, "pip install --upgrade py-spy")


def _is_denied(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.error is not None and _DENIED.search(attempt.error) is not None


def _name(tracing: TracingFacts) -> str:
    return f"py-spy {tracing.version}" if tracing.version else "py-spy"


def _by_yama(tracing: TracingFacts) -> str:
    return f": kernel.yama.ptrace_scope is {tracing.ptrace_scope}" if tracing.ptrace_scope else ""


def _allow(tracing: TracingFacts) -> str:
    """The setting 3 can only be left by a restart (Documentation/admin-guide/LSM/Yama.rst)."""
    if tracing.ptrace_scope in (1, 2):
        return (
            "Run `sudo sysctl -w kernel.yama.ptrace_scope=0`, or vllm-tui as root; "
            "a container also needs `docker run --cap-add SYS_PTRACE …`."
        )
    if tracing.ptrace_scope == 3:
        return "Set kernel.yama.ptrace_scope to 0 in /etc/sysctl.d and restart this host: nothing else changes a 3."
    return "In a container: `docker run --cap-add SYS_PTRACE …`; else run vllm-tui as root."


def _without_dot(text: str) -> str:
    return text.removeprefix("Error: ").rstrip(".")
