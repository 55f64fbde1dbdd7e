"""The processes of a run: what they are, what they use, and whether they move."""

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from vllm_probes.judges.address import Address
from vllm_probes.judges.commandline import is_python
from vllm_probes.judges.titles import VLLM_ROLES, Identity, grid_ranks, identify
from vllm_probes.rows import ProcessRow
from vllm_probes.sensors.tree import command_line, descendants, major_faults, start_ticks, state_letter

WALK_AGAIN_S = 5.0
"""The tree is walked at least this often, whether processes were started or not."""
WALK_SHARE = 400
"""On a host where processes start all the time a walk may use one part in so many of a core."""

CPU_STEP_PERCENT = 10.0
RESTING_PERCENT = 1.0
"""Below it a process has come to rest: told even where it used less than a step before."""
RSS_STEP = 0.05
BYTES_STEP = 1 << 20
FAULTS_STEP = 8
_RESTING = frozenset("RSI")
"""States that a healthy process changes all the time."""


class ProcessSensor:
    """The descendants of one shim, or the processes that a walk of another kind finds.

    A walk down the tree reads one file for every thread, 10 ms for 12 processes of 80 threads, so it is made when
    the kernel has started something since the last one; in between the known processes are looked at.
    """

    def __init__(self, shim_pid: int, walk: Callable[[], list[int]] | None = None) -> None:
        """`shim_pid`: what has started the command; with a `walk` of its own, whose first pid is that of the command,
        any other process that did."""
        self._shim_pid = shim_pid
        self._descend = walk or partial(descendants, shim_pid)
        self._pids: list[int] = []
        self._last_start = b""
        self._walked_mono = float("-inf")
        self._may_walk_mono = float("-inf")
        self._known: dict[tuple[int, int], _Known] = {}
        self._ranks: dict[str, int] = {}
        self._shim_rank: int | None = None
        self._command: tuple[int, int] | None = None

    def sample(self, names: Mapping[int, str]) -> list[ProcessRow]:
        """Every descendant, parents first. `names` are those that the log prefix gave: pid -> name.

        CPU is since the sample before, 0 in the first one. What we may not read is 0.
        """
        self._walk()
        known = self._look()
        rows = [row for one in known.values() if (row := _row(one, self._identify(one, known, names)))]
        self._learn_ranks(rows)
        return rows

    def _walk(self) -> None:
        now = time.monotonic()
        last_start = _last_start()
        is_due = last_start != self._last_start or now - self._walked_mono >= WALK_AGAIN_S
        if is_due and now >= self._may_walk_mono:
            self._pids = self._descend()
            self._last_start, self._walked_mono = last_start, now
            self._may_walk_mono = now + min((time.monotonic() - now) * WALK_SHARE, WALK_AGAIN_S)

    def _look(self) -> dict[int, "_Known"]:
        """What is known of each process that is still there, by pid; its command line read again."""
        found: dict[tuple[int, int], _Known] = {}
        for pid in self._pids:
            ticks = start_ticks(pid)
            if ticks is None:
                continue
            one = self._known.get((pid, ticks)) or _known(pid)
            if one is not None:
                one.refresh()
                found[pid, ticks] = one
        self._known = found
        if self._command is None:
            self._command = next(iter(found), None)
            self._shim_rank = _rank(environ(self._shim_pid))
        return {pid: one for (pid, _), one in found.items()}

    def _identify(self, one: "_Known", known: Mapping[int, "_Known"], names: Mapping[int, str]) -> Identity:
        parent = known.get(one.parent_pid)
        identity = identify(one.argv, parent.argv if parent else (), names.get(one.process.pid))
        if identity.role == "worker" and identity.rank is None:
            return identity._replace(rank=self._ranks.get(identity.process))
        if identity.role != "other":
            return identity
        if one.rank is not None and one.rank != self._inherited_rank(one, known):
            return identity._replace(role="worker", rank=one.rank)
        is_command = self._command is not None and self._known.get(self._command) is one
        return identity._replace(role="command") if is_command else identity

    def _inherited_rank(self, one: "_Known", known: Mapping[int, "_Known"]) -> int | None:
        """RANK of the nearest Python above: a launcher's workers have one of their own, their children the same."""
        while parent := known.get(one.parent_pid):
            if is_python(parent.argv):
                return parent.rank
            one = parent
        return self._shim_rank

    def _learn_ranks(self, rows: Sequence[ProcessRow]) -> None:
        ranks = grid_ranks({row.process for row in rows if row.role == "worker"})
        if len(ranks) >= len(self._ranks):  # a grid that has lost workers tells wrong sizes
            self._ranks = ranks


@dataclass(slots=True)
class _Known:
    """A process between two samples. A zombie, and one that must not be asked, keeps its last command line."""

    process: psutil.Process
    parent_pid: int = 0
    argv: list[str] = field(default_factory=list)
    rank: int | None = None
    """RANK of its environment, for Pythons only."""
    visible_devices: str | None = None

    def refresh(self) -> None:
        pid = self.process.pid
        argv = command_line(pid)
        if argv and argv != self.argv:
            self.argv = argv
            variables = environ(pid)
            self.rank = _rank(variables) if is_python(argv) else None
            self.visible_devices = variables.get("CUDA_VISIBLE_DEVICES")
        elif not self.argv:
            self.argv = _kernel_name(pid)
        self.parent_pid = _parent_pid(self.process)


def strangers(since: float, own: Container[int] = ()) -> list[ProcessRow]:
    """The vLLM processes of this host that started after `since` (Unix seconds) and whose pids are not in `own`.

    For launchers whose processes are not our descendants (docker, srun, ray), and for lists of all servers. Looks at
    every process of the host: not for every second.
    """
    argvs = {pid: argv for pid in psutil.pids() if pid not in own and (argv := _vllm_arguments(pid))}
    found = []
    for pid, argv in argvs.items():
        known = _known(pid)
        parent_argv = argvs.get(_parent_pid(known.process), ()) if known else ()
        identity = identify(argv, parent_argv)
        if known and identity.role in VLLM_ROLES and (row := _row(known, identity, foreign=True)):
            found.append(row)
    return [row for row in found if row.started >= since]


def difference(before: Mapping[int, ProcessRow], rows: Sequence[ProcessRow]) -> tuple[list[ProcessRow], list[int]]:
    """The rows that differ from the last ones by more than noise, and the pids that are gone.

    `before` must be what was last told, not what was last seen, or slow changes get lost.
    """
    changed = [row for row in rows if row.pid not in before or _differs(before[row.pid], row)]
    return changed, sorted(set(before) - {row.pid for row in rows})


def listens(pids: Iterable[int], address: Address) -> bool:
    """Whether one of these processes has a socket bound to the address, so that who answers there is ours."""
    return any(_has_socket(pid, address) for pid in pids)


def environ(pid: int) -> dict[str, str]:
    """The environment it was started with; empty where we may not read it, or where its title was written over it."""
    if state_letter(pid) == "D":  # the kernel would wait for a lock that such a process may hold
        return {}
    try:
        return dict(psutil.Process(pid).environ())
    except psutil.Error:
        return {}


def _differs(before: ProcessRow, now: ProcessRow) -> bool:
    def facts(row: ProcessRow) -> tuple[object, ...]:
        state = "S" if row.state in _RESTING else row.state
        return (
            row.started,
            row.parent_pid,
            row.process,
            row.role,
            row.rank,
            row.foreign,
            state,
            row.thread_count,
            row.visible_devices,
        )

    return (
        facts(before) != facts(now)
        or abs(before.cpu_percent - now.cpu_percent) >= CPU_STEP_PERCENT
        or now.cpu_percent < RESTING_PERCENT <= before.cpu_percent / 5
        or abs(before.rss_bytes - now.rss_bytes) > RSS_STEP * before.rss_bytes
        or now.read_bytes - before.read_bytes >= BYTES_STEP
        or now.written_bytes - before.written_bytes >= BYTES_STEP
        or now.disk_read_bytes - before.disk_read_bytes >= BYTES_STEP
        or now.major_faults - before.major_faults >= FAULTS_STEP
    )


def _row(one: _Known, identity: Identity, *, foreign: bool = False) -> ProcessRow | None:
    process = one.process
    state = state_letter(process.pid)
    try:
        with process.oneshot():
            read_bytes, written_bytes, disk_read_bytes = _bytes(process)
            return ProcessRow(
                pid=process.pid,
                parent_pid=process.ppid(),
                started=process.create_time(),
                process=identity.process,
                role=identity.role,
                rank=identity.rank,
                state=state or "X",
                cpu_percent=process.cpu_percent(),
                rss_bytes=process.memory_info().rss,
                read_bytes=read_bytes,
                written_bytes=written_bytes,
                disk_read_bytes=disk_read_bytes,
                major_faults=major_faults(process.pid),
                thread_count=process.num_threads(),
                foreign=foreign,
                visible_devices=one.visible_devices if identity.role in VLLM_ROLES else None,
            )
    except psutil.Error:
        return None


def _bytes(process: psutil.Process) -> tuple[int, int, int]:
    """Read, written, and read from a disk; zeros where we may not know."""
    try:
        io = process.io_counters()
    except psutil.AccessDenied:
        return 0, 0, 0
    return io.read_chars, io.write_chars, io.read_bytes


def _known(pid: int) -> _Known | None:
    try:
        return _Known(psutil.Process(pid))
    except psutil.Error:
        return None


def _parent_pid(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _kernel_name(pid: int) -> list[str]:
    """In place of a command line; psutil's `name` would read the command line, too."""
    try:
        return [Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")]
    except OSError:
        return []


def _vllm_arguments(pid: int) -> list[str]:
    argv = command_line(pid) or _kernel_name(pid)
    return argv if any("::" in word or "vllm" in word for word in argv) else []


def _rank(variables: Mapping[str, str]) -> int | None:
    rank = variables.get("RANK") or variables.get("LOCAL_RANK") or ""
    return int(rank) if rank.isdecimal() else None


def _has_socket(pid: int, address: Address) -> bool:
    try:
        sockets = psutil.Process(pid).net_connections("unix" if address.uds else "tcp")
    except psutil.Error:
        return False
    if address.uds:
        return any(str(socket.laddr) == address.uds for socket in sockets)
    return any(socket.status == psutil.CONN_LISTEN and socket.laddr.port == address.port for socket in sockets)


def _last_start() -> bytes:
    """The pid that the kernel gave last: it changes whenever a process or thread starts (proc_loadavg(5))."""
    with open("/proc/loadavg", "rb") as file:
        return file.read().split()[-1]
