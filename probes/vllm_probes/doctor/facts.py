"""What the looks found, topic by topic, before anybody judges it. None: not known, or not there."""

from typing import Literal

import msgspec

from vllm_probes.rows import GpuCard


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one topic."""


GpuStatus = Literal["ok", "no_library", "not_loaded", "mismatch", "no_permission", "failed"]


class GpuFacts(Facts, frozen=True, kw_only=True):
    """The NVIDIA driver, as NVML and the kernel tell."""

    status: GpuStatus
    error: str | None = None
    """NVML's own words, unless `ok`."""
    driver: str | None = None
    cuda: str | None = None
    """The newest CUDA that the driver runs: `12.8`."""
    lacks_libcuda: bool = False
    cards: list[GpuCard] = []
    errors: list[str] = []
    """GPUs that do not answer, and why: `GPU 3: GPU is lost`."""
    module: str | None = None
    """Version of the kernel module that is loaded."""
    has_gpu: bool = False
    """The host has one on its PCI bus, whether we may use it or not."""


class TargetFacts(Facts, frozen=True, kw_only=True):
    """The vLLM that a shell would start here. `script` None: there is none on PATH."""

    script: str | None = None
    interpreter: str | None = None
    """The Python behind the script; None: the script names none."""
    error: str | None = None
    """Why that Python does not run."""
    python: str | None = None
    vllm: str | None = None
    torch: str | None = None
    torch_source: str = ""
    """The text of torch/version.py."""


class ShmFacts(Facts, frozen=True, kw_only=True):
    """POSIX shared memory. Without `total_bytes` there is no /dev/shm."""

    total_bytes: int | None = None
    free_bytes: int | None = None
    leftovers: list[str] = []
    """Paths of files that no process which we can see has mapped, and that we may remove."""
    leftover_bytes: int = 0
    sees_host: bool = False
    """We are in the host's own pid namespace, so nobody is hidden."""


class LimitFacts(Facts, frozen=True, kw_only=True):
    """Resource limits of this shell (getrlimit(2)). None: unlimited."""

    files_soft: int | None
    files_hard: int | None
    locked_bytes: int | None
    can_lock: bool
    """Has CAP_IPC_LOCK, which the limit does not bind."""
    rdma_devices: list[str] = []
    core_bytes: int | None
    task_room: int | None
    """Processes and threads that may still be started: by the limit of this user, or by the cgroup."""
    task_limit: str = ""
    """Who sets that: `ulimit -u` or the cgroup's file."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A Python that py-spy was tried on."""

    python: str
    error: str | None = None
    """py-spy's words when it did not read it."""


class TracingFacts(Facts, frozen=True, kw_only=True):
    """What py-spy can read here. `py_spy` None: it is missing."""

    py_spy: str | None = None
    version: str | None = None
    ptrace_scope: int | None = None
    """Yama's; None: a kernel without it."""
    own: Attempt | None = None
    """On the Python that runs us."""
    target: Attempt | None = None
    """On that of the vLLM on PATH."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A folder to write to, existing or not."""

    path: str
    free_bytes: int
    is_writable: bool


class DiskFacts(Facts, frozen=True, kw_only=True):
    """Where a run writes."""

    session: Place | None = None
    session_error: str | None = None
    """Why there is no place for sessions."""
    hub: Place | None = None
    """None: models come from elsewhere, or there is no home."""
    temp: Place


class Stranger(msgspec.Struct, frozen=True, kw_only=True):
    """A vLLM process that no session of this user started."""

    pid: int
    process: str
    user: str | None
    age_s: float
    is_orphan: bool
    """Engine or worker whose server is gone."""


class LeftoverFacts(Facts, frozen=True, kw_only=True):
    """The vLLM processes of other runs; `user` is who asks."""

    user: str
    strangers: list[Stranger] = []


class LogoutFacts(Facts, frozen=True, kw_only=True):
    """What systemd-logind does when this user logs out (logind.conf(5))."""

    has_logind: bool
    uid: int
    user: str
    unit: Literal["session", "manager", "other"] = "other"
    """What this shell runs in: a login's scope, the user's own systemd, or neither."""
    lingers: bool = False
    kills_processes: bool | None = None
    """None: no file says."""
    removes_ipc: bool = True


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface."""

    name: str
    addresses: list[str] = []
    """IPv4 and IPv6."""
    is_running: bool = True


class InterfaceFacts(Facts, frozen=True, kw_only=True):
    """Every network interface of this host."""

    interfaces: list[Interface]


class MasterFacts(Facts, frozen=True, kw_only=True):
    """What the name in MASTER_ADDR resolves to. `name` None: it is not set."""

    name: str | None = None
    addresses: list[str] = []
    error: str | None = None


class HubFacts(Facts, frozen=True, kw_only=True):
    """One request to the model hub, or why there was none."""

    url: str
    offline: str | None = None
    """The setting that keeps the hub from being asked: `HF_HUB_OFFLINE=1`."""
    status: int | None = None
    error: str | None = None
    proxies: list[str] = []
    """Names of the proxy variables that are set."""
