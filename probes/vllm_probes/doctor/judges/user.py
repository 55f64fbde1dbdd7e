"""What this user's shell, login and other processes do to a run."""

from collections.abc import Mapping, Sequence

from vllm_probes.doctor.check import Check, age, note, ok, plural, unknown, warning
from vllm_probes.doctor.facts import LeftoverFacts, LogoutFacts, Stranger
from vllm_probes.launch.levers import plan, unset_line
from vllm_probes.launch.spec import LaunchSpec

FIRST_PERSON_UID = 1000
"""Below it are system users, whom logind leaves alone (systemd, SYSTEM_UID_MAX)."""
SHOWN = 8
ENDING_S = 10.0
"""What has just lost its server may be ending."""
_LINGER = "loginctl enable-linger"


def judge_debug_variables(environ: Mapping[str, str]) -> Check:
    """Variables of this shell that make vLLM slower or louder; the list is that of the levers (levers.toml)."""
    spec = LaunchSpec(argv=["vllm", "serve"], env=dict(environ), cwd="/")
    settings = plan(spec, [], bare=True, clean=False, coredumps="").debug_settings
    if not settings:
        return ok("debug-variables", "None is set.")
    what = f"{plural(len(settings), 'variable')} of this shell: {', '.join(one.setting for one in settings)}."
    means = f"What they cost: {'; '.join(dict.fromkeys(one.cost for one in settings))}."
    return warning("debug-variables", what, means, unset_line(settings))


def judge_leftovers(leftovers: LeftoverFacts) -> Check:
    """Engines and workers whose server is gone, and vLLM that others have started."""
    orphans = [one for one in leftovers.strangers if one.is_orphan and one.age_s >= ENDING_S]
    if orphans:
        what = f"{plural(len(orphans), 'vLLM process')} run without the server that started them: {_listed(orphans)}."
        if len(orphans) == 1:
            what = f"A vLLM process runs without the server that started it: {_listed(orphans)}."
        sudo = "" if all(one.user == leftovers.user for one in orphans) else "sudo "
        means = "They keep GPU memory, ports and shared memory that a new run needs."
        return warning("leftovers", what, means, f"{sudo}kill {' '.join(str(one.pid) for one in orphans)}")
    if leftovers.strangers:
        count = plural(len(leftovers.strangers), "vLLM process")
        what = f"{count} of other runs: {_listed(leftovers.strangers)}."
        return note("leftovers", what, "They share GPUs, memory and ports with what is started here.", "vllm-tui ls")
    return ok("leftovers", "No vLLM runs that vllm-tui has not started.")


def judge_logout(logout: LogoutFacts) -> Check:
    """What systemd-logind does to a run when its user logs out (logind.conf(5), loginctl(1)).

    A login's processes end with it when KillUserProcesses is on, those below the user's own systemd end with the last
    login unless the user lingers. RemoveIPC empties /dev/shm when no login is left: one whose processes still run
    counts as one (systemd 255, `session_may_gc` in logind-session.c), so that only strikes what runs outside of logins.
    """
    check_id = "logout"
    if not logout.has_logind:
        return ok(check_id, "No systemd-logind runs here: nothing is ended when a user logs out.")
    if logout.uid < FIRST_PERSON_UID:
        return ok(check_id, f"{logout.user} is a system user, whom systemd-logind leaves alone.")
    if logout.unit == "session":
        return _of_session(logout)
    if logout.lingers:
        return ok(check_id, f"{logout.user} lingers: what runs goes on after the last logout.")
    if logout.unit == "manager":
        what = f"This shell runs below user@{logout.uid}.service, and {logout.user} does not linger."
        return warning(check_id, what, "vLLM is killed when you log out for the last time.", _LINGER)
    if logout.removes_ipc:
        what = f"This shell is no part of a login, RemoveIPC is on, and {logout.user} does not linger."
        means = "When the last login of this user ends, the files of a running vLLM in /dev/shm are removed."
        return note(check_id, what, means, f"`{_LINGER}`, or RemoveIPC=no in /etc/systemd/logind.conf.")
    return ok(check_id, "This shell is no part of a login: a logout does not end what it starts.")


def _of_session(logout: LogoutFacts) -> Check:
    fix = f"{_LINGER} && systemd-run --user --scope vllm-tui -- vllm serve MODEL"
    means = "vLLM is killed when this login ends."
    if logout.kills_processes is None:
        what = "No file of systemd-logind says whether KillUserProcesses is on."
        return unknown("logout", what, f"If it is: {means}", fix)
    if logout.kills_processes:
        return warning("logout", "KillUserProcesses is on in systemd-logind.", means, fix)
    return ok("logout", "What runs goes on after a logout: KillUserProcesses is off.")


def _listed(strangers: Sequence[Stranger]) -> str:
    shown = [f"{one.process} (pid {one.pid}, {one.user or '?'}, {age(one.age_s)})" for one in strangers[:SHOWN]]
    return ", ".join([*shown, *([f"{len(strangers) - SHOWN} more"] if len(strangers) > SHOWN else [])])
