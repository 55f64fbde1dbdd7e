"""What will and will not work on this host: facts are looked for (`looks`), then judged (`judges`)."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vllm_probes.doctor import facts
from vllm_probes.doctor.check import Check, unknown
from vllm_probes.doctor.judges import gpus, host, network, target, user
from vllm_probes.doctor.looking import Silence, look

TIMEOUT_S = 5.0

_TOPICS: dict[str, type[facts.Facts]] = {
    "gpus": facts.GpuFacts,
    "target": facts.TargetFacts,
    "shm": facts.ShmFacts,
    "limits": facts.LimitFacts,
    "tracing": facts.TracingFacts,
    "disk": facts.DiskFacts,
    "leftovers": facts.LeftoverFacts,
    "logout": facts.LogoutFacts,
    "interfaces": facts.InterfaceFacts,
    "master": facts.MasterFacts,
    "hub": facts.HubFacts,
}
_ENVIRON = "environ"


class Rule(NamedTuple):
    """A check, and the topics that its judge takes: without facts of the first one it is unknown."""

    check_id: str
    judge: Callable[..., Check]
    topics: tuple[str, ...]


RULES = (
    Rule("vllm", target.judge_vllm, ("target",)),
    Rule("driver", gpus.judge_driver, ("gpus",)),
    Rule("cuda", gpus.judge_cuda, ("target", "gpus")),
    Rule("visible-devices", gpus.judge_visible_devices, ("gpus", _ENVIRON)),
    Rule("shm", host.judge_shm, ("shm", "gpus")),
    Rule("shm-leftovers", host.judge_shm_leftovers, ("shm",)),
    Rule("open-files", host.judge_open_files, ("limits",)),
    Rule("locked-memory", host.judge_locked_memory, ("limits",)),
    Rule("core-size", host.judge_core_size, ("limits",)),
    Rule("processes", host.judge_processes, ("limits",)),
    Rule("ptrace", target.judge_ptrace, ("tracing",)),
    Rule("py-spy", target.judge_py_spy, ("tracing",)),
    Rule("session-disk", host.judge_session_disk, ("disk",)),
    Rule("hub-disk", host.judge_hub_disk, ("disk",)),
    Rule("temp-disk", host.judge_temp_disk, ("disk",)),
    Rule("leftovers", user.judge_leftovers, ("leftovers",)),
    Rule("debug-variables", user.judge_debug_variables, (_ENVIRON,)),
    Rule("logout", user.judge_logout, ("logout",)),
    Rule("host-ip", network.judge_host_ip, ("interfaces", _ENVIRON)),
    Rule("nccl-interface", network.judge_nccl_interface, ("interfaces", _ENVIRON)),
    Rule("gloo-interface", network.judge_gloo_interface, ("interfaces", _ENVIRON)),
    Rule("master-address", network.judge_master_address, ("master", "interfaces")),
    Rule("hub", network.judge_hub, ("hub",)),
)

_SILENT = {
    "gpus": ("A driver that hangs whoever asks it hangs vLLM, too.", "sudo dmesg | grep -iE 'nvrm|xid'"),
    "target": ("The disk that vLLM is installed on may be dead.", "Try it yourself: `time vllm --version`"),
    "disk": ("One of the disks that a run writes to may be dead.", "Try it yourself: `time df -h`"),
    "master": ("No name server answers: a run that uses MASTER_ADDR waits for one.", 'getent hosts "$MASTER_ADDR"'),
    "hub": (
        "Models may not be downloaded here.",
        "`export HF_HUB_OFFLINE=1` for models on this host; else set HTTPS_PROXY.",
    ),
}
_SILENT_OTHER = ("Whether it works is not known.", "vllm-tui doctor")


def examine(timeout_s: float = TIMEOUT_S) -> list[Check]:
    """Every check, in the order of `check.TITLES`, with the environment, limits and folder of this process.

    Takes `timeout_s` seconds at most, plus a moment: what did not answer by then is `unknown`.
    """
    answers: dict[str, Any] = {**look(_TOPICS, timeout_s), _ENVIRON: dict(os.environ)}
    return [_judged(rule, answers) for rule in RULES]


def _judged(rule: Rule, answers: Mapping[str, Any]) -> Check:
    found = [answers[topic] for topic in rule.topics]
    if isinstance(found[0], Silence):
        return unknown(rule.check_id, found[0].why, *_SILENT.get(rule.topics[0], _SILENT_OTHER))
    return rule.judge(*(None if isinstance(answer, Silence) else answer for answer in found))
