"""One look at the stacks of all processes: what each of them does, and since when."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from vllm_probes.events import StacksCaptured
from vllm_probes.judges.culprits import Standing, said
from vllm_probes.judges.doing import doing, place
from vllm_probes.judges.frames import Classified, FrameTable, threads_that_matter
from vllm_probes.judges.stackmerge import Motion
from vllm_probes.rows import ProcessDoing, ProcessRow, StackFile, ThreadStack

LOADING = "vllm/model_executor/model_loader/"


@dataclass(frozen=True, slots=True)
class Look:
    """One process: what it does, and the thread that says so."""

    standing: Standing
    thread: ThreadStack
    compile_ticks: int
    """CPU of those of its threads that compile."""


def looks_at(
    table: FrameTable,
    event: StacksCaptured,
    rows: Mapping[int, ProcessRow],
    before: Mapping[str, ThreadStack],
    failed: Collection[int],
) -> list[Look]:
    """The processes of which something can be said.

    `before`: the threads of the look before, by pid. `failed`: pids that have logged an exception since the last
    progress.
    """
    found = ((file, rows.get(file.pid), threads_that_matter(table, file)) for file in event.stacks)
    return [
        _look(table, file, row, threads, before.get(str(file.pid)), failed=file.pid in failed)
        for file, row, threads in found
        if row is not None and threads
    ]


def _look(
    table: FrameTable,
    file: StackFile,
    row: ProcessRow,
    threads: list[tuple[ThreadStack, Classified]],
    before: ThreadStack | None,
    *,
    failed: bool,
) -> Look:
    """Kernels are launched and awaited on another thread: a main thread that waits for work hides such a wait."""
    main = threads[0]
    on_gpu = [one for one in threads[1:] if one[1].class_ == "gpu_sync"] if main[1].class_ == "idle" else []
    thread, classified = on_gpu[0] if on_gpu else main
    moved = None if before is None else _leaf_line(before) != _leaf_line(thread)
    is_stopped = file.frozen or row.state[:1] in ("T", "t")
    does = "stopped" if is_stopped else doing(thread, classified, moved=moved, machine=table.machine)
    standing = Standing(
        row=row,
        classified=classified,
        doing=does,
        frame=place(thread),
        failed=failed,
        is_loading=any(LOADING in frame.file for frame in thread.frames),
    )
    return Look(standing, thread, sum(one.cpu_ticks or 0 for one, what in threads if what.class_ == "compile"))


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
