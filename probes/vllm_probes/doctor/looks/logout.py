"""What systemd-logind would do to a run when its user logs out."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import psutil

from vllm_probes.doctor.facts import LogoutFacts

_FOLDERS = ("usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd")
"""The later ones count more (logind.conf(5))."""
_TRUE = frozenset(("1", "yes", "y", "true", "t", "on"))
_SESSION = re.compile(r"/session-[^/]+\.scope(?:/|$)", re.MULTILINE)
_MANAGER = re.compile(r"/user@\d+\.service(?:/|$)", re.MULTILINE)


def look(root: Path = Path("/")) -> LogoutFacts:
    """Configuration and linger files are read below `root`."""
    user = psutil.Process().username()
    settings = logind_settings(root)
    return LogoutFacts(
        has_logind=(root / "run/systemd/system").is_dir(),  # sd_booted(3)
        uid=os.getuid(),
        user=user,
        unit=_unit(Path("/proc/self/cgroup").read_text()),
        lingers=(root / "var/lib/systemd/linger" / user).exists(),
        kills_processes=kills(settings, user),
        removes_ipc=settings.get("RemoveIPC", "yes").lower() in _TRUE,
    )


def logind_settings(root: Path) -> dict[str, str]:
    """The settings in force: what is compiled in as far as packaged files tell it, then logind.conf, then drop-ins.

    A packaged file names what is compiled in as comments: `#KillUserProcesses=no`.
    """
    mains = [text for folder in _FOLDERS if (text := _text(root / folder / "logind.conf")) is not None]
    drop_ins = {path.name: path for folder in _FOLDERS for path in (root / folder / "logind.conf.d").glob("*.conf")}
    settings = _assignments(mains, r"^#(\w+)=(.*)$")
    texts = (_text(drop_ins[name]) or "" for name in sorted(drop_ins))
    return settings | _assignments([*mains[-1:], *texts], r"^\s*(\w+)\s*=(.*)$")


def kills(settings: Mapping[str, str], user: str) -> bool | None:
    """Whether a logout ends the processes of this user's session; None: no file says."""
    if "KillUserProcesses" not in settings:
        return None
    only, exclude = settings.get("KillOnlyUsers", "").split(), settings.get("KillExcludeUsers", "root").split()
    is_meant = (not only or user in only) and user not in exclude
    return is_meant and settings["KillUserProcesses"].lower() in _TRUE


def _assignments(texts: Iterable[str], pattern: str) -> dict[str, str]:
    found = (match for text in texts for match in re.finditer(pattern, text, re.MULTILINE))
    return {match[1]: match[2].strip() for match in found}


def _unit(cgroups: str) -> Literal["session", "manager", "other"]:
    if _SESSION.search(cgroups):
        return "session"
    return "manager" if _MANAGER.search(cgroups) else "other"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
