"""The runs of vLLM on this host that we did not start: which processes belong together, whose, and what they serve.

Any pid of a run leads to it. The way up from it goes on as long as the parent is part of the same run; processes that
lost their parent (a killed API server leaves its engine, a killed engine its workers) are known by their process group.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_probes.judges.address import Address, address_from_command
from vllm_probes.judges.commandline import base_name, is_python, script
from vllm_probes.judges.model_location import model_location
from vllm_probes.judges.titles import VLLM_ROLES, identify
from vllm_probes.rows import ProcessRow, Role
from vllm_probes.sensors import ports, processes, tree

_STARTED_BY_PYTHON: frozenset[Role] = frozenset(("engine_core", "worker", "coordinator"))
_LAUNCHERS = frozenset(("torchrun", "accelerate", "deepspeed", "torch.distributed.run", "torch.distributed.launch"))
"""Scripts and modules of Python that start one program for each rank."""
_MULTIPROCESSING = ("multiprocessing.spawn", "multiprocessing.forkserver", "multiprocessing.resource_tracker")
_KERNEL_THREADS = 2
"""The pid of kthreadd, the parent of all threads of the kernel."""


class ForeignError(Exception):
    """There is no run to be looked at: a sentence that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run as it is now. None: not known, mostly because it is another user's."""

    pid: int
    """Of the root of its tree."""
    start_ticks: int
    """When the root began, in clock ticks since boot: with the pid it names this run for ever."""
    started: float
    """Unix seconds."""
    uid: int
    user: str
    """Its name; the number where it has none."""
    argv: list[str]
    """Of the root, secrets included."""
    cwd: str | None
    is_vllm: bool
    """Some process of it is vLLM's by title or command line."""
    address: Address | None
    """Where its server listens, or will when it has started."""
    listens: bool
    """It does already: vLLM listens when the engine has started (entrypoints/launchers/launcher.py of 0.32)."""
    model: str | None
    """As its command line names it."""
    visible_devices: str | None
    """CUDA_VISIBLE_DEVICES of its engines and workers."""
    pids: tuple[int, ...]
    """Root first, parents before their children."""


def runs(own: Collection[int] = ()) -> list[Run]:
    """Every run of vLLM on this host whose processes are not in `own`, oldest first. Looks at every process."""
    rows = processes.strangers(0.0, own)
    found = (_run(tops) for tops in _families({row.pid: row for row in rows}))
    return sorted((run for run in found if run is not None), key=lambda run: run.start_ticks)


def run_of(pid: int) -> Run:
    """The run that a process belongs to, be it vLLM or any other tree of processes.

    Raises:
        ForeignError: there is no such process, or it is a zombie or a thread of the kernel.
    """
    _need_process(pid)
    root = root_of(pid)
    families = _families({row.pid: row for row in processes.strangers(0.0)})
    tops = next((tops for tops in families if root in tops), [root])
    if (run := _run(tops)) is None:
        raise ForeignError(f"Process {pid} has just ended.")
    return run


def run_on_port(port: int) -> Run:
    """The run of the process that listens on a TCP port of this host, or whose command line says that it will.

    Raises:
        ForeignError: nobody listens there, or it cannot be seen who.
    """
    if (pid := ports.listener(port)) is not None:
        return run_of(pid)
    for run in runs():  # whose sockets are not ours to see, but their command lines are
        if run.address is not None and run.address.uds is None and run.address.port == port:
            return run
    if ports.is_taken(port):
        raise ForeignError(
            f"Who listens on port {port} cannot be seen from here: `sudo ss -ltnp 'sport = :{port}'` tells."
        )
    raise ForeignError(
        f"Nobody listens on port {port} of this host, and no vLLM says that it will: `vllm-tui ls` lists them."
    )


def root_of(pid: int) -> int:
    """The topmost process of the run that a process belongs to, from its ancestors alone."""
    argv = tree.command_line(pid)
    while True:
        parent_pid = tree.parent(pid)
        parent_argv = tree.command_line(parent_pid) if parent_pid > 1 else []
        above = tree.command_line(tree.parent(parent_pid)) if parent_argv else []
        if not parent_argv or not _is_part(pid, argv, parent_pid, parent_argv, above):
            return pid
        pid, argv = parent_pid, parent_argv


class Members:
    """The processes of a run over time: whoever was seen in it stays in it, whatever becomes of its parent."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._start_ticks = {pid: tree.start_ticks(pid) for pid in pids}

    def walk(self) -> list[int]:
        """Those that are there now, with everything below them."""
        found: dict[int, None] = {}
        for pid, ticks in self._start_ticks.items():
            if pid not in found and ticks is not None and tree.start_ticks(pid) == ticks:
                found |= dict.fromkeys((pid, *tree.descendants(pid)))
        self._start_ticks = {pid: self._start_ticks.get(pid) or tree.start_ticks(pid) for pid in found}
        return list(found)


def _is_part(pid: int, argv: list[str], parent_pid: int, parent_argv: list[str], above: list[str]) -> bool:
    """Whether the parent belongs to the run: one of vLLM's own processes, a launcher of ranks, or the script whose
    engine or worker this is.

    A Python that has adopted an orphan is none of its run: it has a process group of its own.
    """
    parent_role = identify(parent_argv, above).role
    if parent_role in VLLM_ROLES:
        return True
    if not is_python(parent_argv) or tree.process_group(pid) != tree.process_group(parent_pid):
        return False
    is_child = identify(argv, parent_argv).role in _STARTED_BY_PYTHON or _is_of_multiprocessing(argv, parent_argv)
    return is_child or base_name((script(parent_argv) or [""])[0]) in _LAUNCHERS


def _is_of_multiprocessing(argv: list[str], parent_argv: list[str]) -> bool:
    """Started by `spawn` or `forkserver`, or forked, which leaves the parent's command line."""
    return argv == parent_argv or any(module in word for word in argv for module in _MULTIPROCESSING)


def _need_process(pid: int) -> None:
    """Raises ForeignError."""
    state = tree.state_letter(pid)
    if state is None:
        raise ForeignError(f"There is no process {pid} here: `vllm-tui ls` lists every vLLM on this host.")
    if not tree.is_running(pid):
        raise ForeignError(
            f"Process {pid} has ended (state {state}): its parent {tree.parent(pid)} has not taken note of it yet."
        )
    if _KERNEL_THREADS in (pid, tree.parent(pid)):
        raise ForeignError(f"Process {pid} is a thread of the kernel, and no program.")


def _families(rows: Mapping[int, ProcessRow]) -> list[list[int]]:
    """The topmost processes of each run, its root first: orphans join what is left of their process group."""
    began = {top: tree.start_ticks(top) or 0 for top in {root_of(pid) for pid in rows}}
    families: dict[int, list[int]] = {}
    for top in sorted(began, key=lambda pid: (_is_orphan(rows.get(pid)), began[pid])):
        older = [root for root in families if began[root] <= began[top] and _is_orphan(rows.get(top))]
        kin = [root for root in older if tree.process_group(root) == tree.process_group(top)]
        families.setdefault(kin[-1] if kin else top, []).append(top)
    return list(families.values())


def _is_orphan(row: ProcessRow | None) -> bool:
    """An engine or worker at the top of its tree: no such process begins there."""
    return row is not None and row.role in _STARTED_BY_PYTHON


def address_of(pids: Collection[int]) -> tuple[Address | None, bool]:
    """Where the server of these processes listens, or will, and whether it does already.

    What a command line says, else (a config file, a script) the first port that one of the servers listens on.
    """
    servers = _servers(pids, _roles(pids))
    told = next((found for pid in servers if (found := _told_address(pid))), None)
    if told is not None:
        return told, processes.listens(servers, told)
    bound = next((address for pid in servers for address in ports.listening(pid)), None)
    return (None, False) if bound is None else (Address(host=bound[0], port=bound[1]), True)


def _roles(pids: Iterable[int]) -> dict[int, Role]:
    return {pid: identify(tree.command_line(pid), tree.command_line(tree.parent(pid))).role for pid in pids}


def _servers(pids: Collection[int], roles: Mapping[int, Role]) -> list[int]:
    """The root, which may be a script with a server in it, and every API server."""
    return [pid for at, pid in enumerate(pids) if at == 0 or roles[pid] == "api_server"]


def _run(tops: list[int]) -> Run | None:
    """None: its root has just ended."""
    root, pids = tops[0], Members(tops).walk()
    start_ticks = tree.start_ticks(root)
    try:
        process = psutil.Process(root)
        started, uid, user = process.create_time(), process.uids().real, process.username()
    except psutil.Error:
        return None
    if start_ticks is None or root not in pids:
        return None
    roles = _roles(pids)
    address, listens = address_of(pids)
    return Run(
        pid=root,
        start_ticks=start_ticks,
        started=started,
        uid=uid,
        user=user,
        argv=tree.command_line(root) or [tree.title(root)],
        cwd=_cwd(root),
        is_vllm=any(role in VLLM_ROLES for role in roles.values()),
        address=address,
        listens=listens,
        model=_model(map(tree.command_line, _servers(pids, roles))),
        visible_devices=_visible_devices(pid for pid in pids if roles[pid] in VLLM_ROLES),
        pids=tuple(pids),
    )


def _told_address(pid: int) -> Address | None:
    argv = tree.command_line(pid)
    return address_from_command(argv, processes.environ(pid)) if argv else None


def _model(argvs: Iterable[list[str]]) -> str | None:
    locations = (model_location(argv, {}) for argv in argvs)
    return next((one.model for one in locations if one is not None), None)


def _visible_devices(pids: Iterable[int]) -> str | None:
    """Those of all processes together: a launcher may give each rank one GPU."""
    given = (processes.environ(pid).get("CUDA_VISIBLE_DEVICES") for pid in pids)
    return ",".join(dict.fromkeys(_split(one for one in given if one is not None))) or None


def _split(lists: Iterable[str]) -> Iterator[str]:
    return (device.strip() for devices in lists for device in devices.split(",") if device.strip())


def _cwd(pid: int) -> str | None:
    try:
        return str(Path(os.readlink(f"/proc/{pid}/cwd")))
    except OSError:
        return None
