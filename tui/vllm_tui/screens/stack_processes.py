"""Stacks process by process, from the files of a capture: every thread with all its calls, innermost first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from textual.content import Content

from vllm_probes.rows import StackFile
from vllm_tui.format import plural, printable
from vllm_tui.stackfiles import Frame, Thread, innermost, read_threads
from vllm_tui.widgets.rows import cell

CALL_WIDTH = 36


@dataclass(frozen=True, slots=True)
class ProcessStacks:
    """One process of a capture: its threads, or why there are none."""

    process: str
    pid: int
    threads: list[Thread]
    trouble: str = ""
    note: str = ""
    """How they were had, where that is not the usual way."""


def read_stacks(folder: Path, stack: StackFile) -> ProcessStacks:
    """The stacks of one process from its file in the session folder."""
    threads: list[Thread] = []
    trouble = stack.error or "no stacks"
    if stack.file is not None:
        try:
            threads, trouble = read_threads(folder / stack.file), ""
        except OSError as error:
            trouble = f"cannot read {stack.file}: {error.strerror}"
        except msgspec.DecodeError as error:
            trouble = f"{stack.file} is damaged: {error}"
    note = "as it told itself: without threads that ran" if stack.rung == "faulthandler" else ""
    return ProcessStacks(stack.process, stack.pid, threads, trouble, note)


def overview(processes: Sequence[ProcessStacks], width: int) -> list[Content]:
    """What each process is at, one a row; nothing where there is only one."""
    if len(processes) < 2:
        return []
    name_width = min(CALL_WIDTH, max(len(process.process) for process in processes))
    return [overview_row(process, name_width, width) for process in processes]


def overview_row(process: ProcessStacks, name_width: int, width: int) -> Content:
    frame = innermost(process.threads[0]) if process.threads else None
    text = process.trouble or (frame.brief if frame else "no calls")
    row = Content.assemble(
        "   ",
        cell(printable(process.process), name_width, "bold"),
        "   ",
        (printable(text), "dim" if not frame else ""),
    )
    return row.truncate(width, ellipsis=True)


def process_rows(process: ProcessStacks, width: int, *, all_threads: bool) -> list[Content]:
    """One process: its name, then its main thread or all of its threads."""
    name = Content.assemble((f" {printable(process.process)}", "bold $text-accent"), (f"  pid {process.pid}", "dim"))
    if process.trouble:
        return [name, error_row(process.trouble)]
    shown = process.threads if all_threads else process.threads[:1]
    hidden = len(process.threads) - len(shown)
    more = f"  + {plural(hidden, 'thread')}" if hidden else ""
    more += f"  {process.note}" if process.note else ""
    calls = (row for thread in shown for row in thread_rows(thread, width))
    return [Content.assemble(name, (more, "dim")), *calls]


def error_row(text: str) -> Content:
    return Content.styled(f"   ✖ {printable(text)}", "$text-error")


def thread_rows(thread: Thread, width: int) -> list[Content]:
    """One thread: its name and what it is at, then its calls."""
    marks = ["active" if thread.active else "idle", *(["holds the GIL"] if thread.owns_gil else [])]
    name = printable(thread.thread_name or f"thread {thread.thread_id:#x}")
    head = Content.assemble(f"   {name}", (f"  {', '.join(marks)}", "bold" if thread.active else "dim"))
    return [head, *(frame_row(frame, width) for frame in thread.frames)]


def frame_row(frame: Frame, width: int) -> Content:
    """Function and place; of a place that is too long the end stays, since it has the line."""
    call_width = min(CALL_WIDTH, width // 2 - 4)
    room = width - call_width - 7
    place = printable(frame.place)
    place = place if len(place) <= room else "…" + place[len(place) - room + 1 :]
    return Content.assemble(
        "     ", cell(printable(frame.name), call_width, "" if frame.own else "dim"), "  ", (place, "dim")
    )
