"""One look at the stacks of all processes: what each of them does, and since when."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from vllm_probes.events import StacksCaptured
from vllm_probes.judges.culprits import WAITS_FOR_OTHERS, Standing, said
from vllm_probes.judges.doing import doing, is_plain, place
from vllm_probes.judges.frames import Classified, FrameTable, threads_that_matter
from vllm_probes.judges.stackmerge import Motion
from vllm_probes.judges.syscalls import wait_of
from vllm_probes.rows import ProcessDoing, ProcessRow, Role, StackFile, ThreadStack

NEEDS_NO_STACK = frozenset(("stopped", "uninterruptible"))
"""What the kernel says is proof enough."""
WORKERS = ("vllm/v1/worker/gpu_worker.py", "vllm/v1/worker/cpu_worker.py", "vllm/v1/worker/worker_base.py")
MANAGING = frozenset(
    (
        *("sleep", "wake_up", "add_lora", "start_weight_update", "update_weights", "finish_weight_update", "profile"),
        *("reload_weights", "save_sharded_state", "save_tensorized_model", "compute_weight_checksums"),
        *("checkpoint_prepare", "checkpoint_restore"),
    )
)
"""Calls of a worker that are no step (vLLM 0.32)."""
MEETING = frozenset(("init_process_group", "init_distributed_environment", "ncclCommInitRank", "rendezvous"))
LOADING = "vllm/model_executor/model_loader/"


class Look(msgspec.Struct, frozen=True):
    """One process: what it does, and the thread that says so."""

    standing: Standing
    thread: ThreadStack
    loops: bool
    """It was seen at several lines of the same call: so it may be caught on one and the same the next time."""
    compile_ticks: int
    """CPU of those of its threads that compile."""
    network: Mapping[int, int]
    """How often each of those that wait for the network has woken up, by thread."""


def looks_at(
    table: FrameTable,
    event: StacksCaptured,
    rows: Mapping[int, ProcessRow],
    before: Mapping[int, Look],
    failed: Collection[int],
) -> list[Look]:
    """The processes of which something can be said.

    `before`: the look before, by pid. `failed`: pids that have logged an exception since the last progress.
    """
    known = ((file, row) for file in event.stacks if (row := rows.get(file.pid)) is not None)
    return [
        _look(table, file, row, threads, before.get(file.pid), failed=file.pid in failed)
        for file, row in known
        if (threads := threads_that_matter(table, file, row.role))
    ]


def _look(
    table: FrameTable,
    file: StackFile,
    row: ProcessRow,
    threads: list[tuple[ThreadStack, Classified]],
    before: Look | None,
    *,
    failed: bool,
) -> Look:
    thread, classified = _telling(table, file, threads, row.role)
    is_stepping = any(frame.function == "execute_model" and frame.file in WORKERS for frame in thread.frames)
    if is_stepping and classified.class_ == "idle":
        classified = Classified("running")  # in a step nobody waits for work, not even an event loop
    is_there = _has_path_of(before, thread)
    loops = bool(thread.moves)
    if before is not None and is_there:
        loops = loops or before.loops or _leaf_line(before.thread) != _leaf_line(thread)
    moved = None if before is None else loops or not is_there
    is_stopped = file.frozen or row.state[:1] in ("T", "t")
    does = "stopped" if is_stopped else doing(thread, classified, moved=moved, machine=table.machine)
    standing = Standing(
        row=row,
        classified=classified,
        doing=does,
        frame=place(thread),
        failed=failed,
        is_managed=any(frame.function in MANAGING and frame.file in WORKERS for frame in thread.frames),
        is_stepping=is_stepping,
        is_meeting=any(frame.function in MEETING for frame in thread.frames),
        is_blind=not thread.frames and does not in NEEDS_NO_STACK,
        is_on_gpu=any(what.class_ == "gpu_sync" for _, what in threads[1:]),
        is_loading=any(LOADING in frame.file for frame in thread.frames),
    )
    compile_ticks = sum(one.cpu_ticks or 0 for one, what in threads if what.class_ == "compile")
    network = {one.thread_id: one.switch_count or 0 for one in file.threads if table.classify(one).class_ == "network"}
    return Look(standing, thread, loops, compile_ticks, network)


def _telling(
    table: FrameTable, file: StackFile, threads: list[tuple[ThreadStack, Classified]], role: Role
) -> tuple[ThreadStack, Classified]:
    """The main thread, unless another one lets it run no Python, or it waits for work and one of the others that vLLM
    has named is held up.

    So answers are sent by another thread. That of a worker which waits for the GPU is at its place: kernels run on, and
    which GPU is at fault their table tells.
    """
    main = threads[0]
    if holder := _holder_of_gil(file, *main, table.machine):
        return holder, table.classify(holder)
    at_rest = {*WAITS_FOR_OTHERS, "gpu_sync"} if role == "worker" else WAITS_FOR_OTHERS
    held_up = [one for one in threads[1:] if one[1].class_ not in at_rest]
    return held_up[0] if held_up and main[1].class_ == "idle" else main


def _holder_of_gil(file: StackFile, main: ThreadStack, classified: Classified, machine: str) -> ThreadStack | None:
    """Another thread whose native code keeps the lock of the interpreter while the main thread waits for a lock.

    Python itself hands it on every 5 ms (`sys.getswitchinterval`): whoever waits for it wakes up as often, and may be
    seen running.
    """
    may_want_it = main.state == "R" and classified.class_ in ("running", "lock")
    if main.owns_gil or not (may_want_it or wait_of(main, machine) == "lock"):
        return None
    holders = (one for one in file.threads if one.owns_gil and one.moves is False)
    return next((one for one in holders if not is_plain(one.source or "")), None)


def _has_path_of(before: Look | None, thread: ThreadStack) -> bool:
    """It is in the same functions as before."""
    return before is not None and [f.function for f in before.thread.frames] == [f.function for f in thread.frames]


def _leaf_line(thread: ThreadStack) -> int | None:
    return thread.frames[0].line if thread.frames else None


def doings(
    looks: Sequence[Look], motion: Mapping[str, Motion], before: Sequence[ProcessDoing], time: float
) -> list[ProcessDoing]:
    """What each process does, with the time since which every look has shown the same."""
    known = {(one.pid, one.doing, one.frame): one.since for one in before}
    return [_doing(look.standing, motion.get(str(look.standing.row.pid)), known, time) for look in looks]


def _doing(
    standing: Standing, motion: Motion | None, known: Mapping[tuple[int, str, str | None], float], time: float
) -> ProcessDoing:
    return ProcessDoing(
        pid=standing.row.pid,
        doing=standing.doing,
        what=said(standing),
        frame=standing.frame,
        motion=motion,
        since=known.get((standing.row.pid, standing.doing, standing.frame), time),
    )
