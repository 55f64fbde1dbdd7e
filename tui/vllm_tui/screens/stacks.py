"""The latest captured stacks: every process with its threads, innermost call first."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from textual.binding import Binding
from textual.content import Content
from textual.reactive import reactive

from vllm_probes.events import StacksCaptured
from vllm_probes.rows import StackFile
from vllm_tui.format import plural, printable
from vllm_tui.screens.page import Page
from vllm_tui.situation import Situation
from vllm_tui.stackfiles import Frame, Thread, innermost, read_threads
from vllm_tui.widgets.rows import cell, joined

CALL_WIDTH = 36
COPY_WIDTH = 200
_REASONS = {"key": "by hand"}


@dataclass(frozen=True, slots=True)
class ProcessStacks:
    """One process of a capture: its threads, or why there are none."""

    process: str
    pid: int
    threads: list[Thread]
    trouble: str = ""


class StacksPage(Page):
    """Reads the files of one capture when it is shown; another capture takes its place."""

    BINDINGS = [
        Binding("t", "toggle_threads", "threads", show=False),
        Binding("left_square_bracket,less_than_sign", "older(1)", "older", show=False),
        Binding("right_square_bracket,greater_than_sign", "older(-1)", "newer", show=False),
        Binding("n", "next_process(False)", "next process", show=False),
        Binding("p,N", "next_process(True)", "process before", show=False),
        Binding("y", "copy", "copy", show=False),
    ]

    capturing: reactive[int] = reactive(0, init=False)
    """How many captures were asked for and have not come."""

    def __init__(self, situation: Situation, folder: Path) -> None:
        super().__init__(situation)
        self._folder = folder
        self._age = 0
        self._all_threads = False
        self._shown: StacksCaptured | None = None
        self._process_rows: list[int] = []
        """Where each process begins on the page."""

    def keys(self) -> Sequence[tuple[str, str]]:
        threads = "main threads only" if self._all_threads else "all threads"
        return (("s", "again"), ("t", threads), ("n p", "process"), ("[ ]", "older, newer"), ("y", "copy"))

    @property
    def captured(self) -> StacksCaptured | None:
        stacks = self._situation.model.stacks
        return stacks[-1 - min(self._age, len(stacks) - 1)] if stacks else None

    def show(self, situation: Situation) -> None:
        super().show(situation)
        if self.is_mounted and self.captured is not self._shown:
            self.fill(self.size.width)

    def watch_capturing(self) -> None:
        if self.is_mounted:
            self.fill(self.size.width)

    def page_title(self) -> Content:
        under_way = Content.styled("capturing…" if self.capturing else "", "bold $text-warning")
        captured = self.captured
        if captured is None:
            return joined([Content.styled("Stacks", "bold"), under_way])
        here, count = self._situation.attempt, len(self._situation.model.stacks)
        notes = [
            f"attempt {captured.attempt}" if here and captured.attempt != here.number else "",
            plural(len(captured.stacks), "process"),
            time.strftime("%H:%M:%S", time.localtime(captured.time)),
            _REASONS.get(captured.reason, printable(captured.reason)),
            f"{count - self._age} of {count}" if count > 1 else "",
        ]
        return joined([Content.styled("Stacks", "bold"), *(Content.styled(note, "dim") for note in notes), under_way])

    def page_rows(self, width: int) -> list[Content]:
        captured = self._shown = self.captured
        if captured is None:
            text = "Waiting for the stacks…" if self.capturing else "No stacks were captured."
            return [Content(""), Content.styled(f"   {text}", "dim")]
        processes = [self._read(stack) for stack in captured.stacks]
        rows = overview(processes, width)
        self._process_rows = []
        for process in processes:
            self._process_rows.append(len(rows))
            rows += process_rows(process, width, all_threads=self._all_threads)
        return rows

    def _read(self, stack: StackFile) -> ProcessStacks:
        threads: list[Thread] = []
        trouble = stack.error or "no stacks"
        if stack.file is not None:
            try:
                threads, trouble = read_threads(self._folder / stack.file), ""
            except OSError as error:
                trouble = f"cannot read {stack.file}: {error.strerror}"
            except msgspec.DecodeError as error:
                trouble = f"{stack.file} is damaged: {error}"
        return ProcessStacks(stack.process, stack.pid, threads, trouble)

    def action_next_process(self, backwards: bool) -> None:
        """Scroll to where the next process begins."""
        here, starts = self._text.scroll_offset.y, self._process_rows
        later = [y for y in reversed(starts) if y < here] if backwards else [y for y in starts if y > here]
        if later:
            self._text.scroll_to(y=later[0], animate=False)

    def action_toggle_threads(self) -> None:
        self._all_threads = not self._all_threads
        self.fill(self.size.width)

    def action_older(self, step: int) -> None:
        self._age = max(0, min(self._age + step, len(self._situation.model.stacks) - 1))
        self.fill(self.size.width)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard("\n".join(row.plain.rstrip() for row in self.page_rows(COPY_WIDTH)))
        self.app.notify("The stacks are copied.", markup=False)


def overview(processes: Sequence[ProcessStacks], width: int) -> list[Content]:
    """What each process is at, one a row; nothing where there is only one."""
    if len(processes) < 2:
        return []
    name_width = min(CALL_WIDTH, max(len(process.process) for process in processes))
    return [*(overview_row(process, name_width, width) for process in processes), Content("")]


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
        return [name, error_row(process.trouble), Content("")]
    shown = process.threads if all_threads else process.threads[:1]
    hidden = len(process.threads) - len(shown)
    more = f"  + {plural(hidden, 'thread')}" if hidden else ""
    calls = (row for thread in shown for row in thread_rows(thread, width))
    return [Content.assemble(name, (more, "dim")), *calls, Content("")]


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
