"""The latest captured stacks: every process with its threads, innermost call first."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from textual.binding import Binding
from textual.content import Content

from vllm_probes.events import StacksCaptured
from vllm_probes.rows import StackFile
from vllm_tui.format import plural, printable
from vllm_tui.screens.page import Page
from vllm_tui.situation import Situation
from vllm_tui.stackfiles import Frame, Thread, read_threads
from vllm_tui.widgets.rows import cell

CALL_WIDTH = 36
COPY_WIDTH = 200


class StacksPage(Page):
    """Reads the files of one capture when it is shown; another capture takes its place."""

    BINDINGS = [
        Binding("t", "toggle_threads", "threads", show=False),
        Binding("left_square_bracket,less_than_sign", "older(1)", "older", show=False),
        Binding("right_square_bracket,greater_than_sign", "older(-1)", "newer", show=False),
        Binding("y", "copy", "copy", show=False),
    ]

    def __init__(self, situation: Situation, folder: Path) -> None:
        super().__init__(situation)
        self._folder = folder
        self._age = 0
        self._all_threads = False
        self._shown: StacksCaptured | None = None

    def keys(self) -> Sequence[tuple[str, str]]:
        threads = "main threads only" if self._all_threads else "all threads"
        return (("s", "again"), ("t", threads), ("[ ]", "older, newer"), ("y", "copy"), *super().keys())

    @property
    def captured(self) -> StacksCaptured | None:
        stacks = self._situation.model.stacks
        return stacks[-1 - min(self._age, len(stacks) - 1)] if stacks else None

    def show(self, situation: Situation) -> None:
        super().show(situation)
        if self.is_mounted and self.captured is not self._shown:
            self.fill(self.size.width)

    def page_title(self) -> Content:
        captured = self.captured
        if captured is None:
            return Content.styled("Stacks", "bold")
        at = time.strftime("%H:%M:%S", time.localtime(captured.time))
        count = len(self._situation.model.stacks)
        which = f" · {count - self._age} of {count}" if count > 1 else ""
        note = f" · {plural(len(captured.stacks), 'process')} · {at} · {captured.reason}{which}"
        return Content.assemble(("Stacks", "bold"), (printable(note.replace("processs", "processes")), "dim"))

    def page_rows(self, width: int) -> list[Content]:
        captured = self._shown = self.captured
        if captured is None:
            return [Content(""), Content.styled("  Waiting for the stacks…", "dim")]
        return [row for stack in captured.stacks for row in self._process_rows(stack, width)]

    def _process_rows(self, stack: StackFile, width: int) -> list[Content]:
        head = Content.assemble((f" {printable(stack.process)}", "bold $text-accent"), (f"  pid {stack.pid}", "dim"))
        if stack.file is None:
            return [head, error_row(stack.error or "no stacks"), Content("")]
        try:
            threads = read_threads(self._folder / stack.file)
        except OSError as error:
            return [head, error_row(f"cannot read {stack.file}: {error.strerror}"), Content("")]
        except msgspec.DecodeError as error:
            return [head, error_row(f"{stack.file} is damaged: {error}"), Content("")]
        shown = threads if self._all_threads else threads[:1]
        hidden = len(threads) - len(shown)
        more = f"  + {plural(hidden, 'thread')}" if hidden else ""
        return [
            Content.assemble(head, (more, "dim")),
            *(row for thread in shown for row in thread_rows(thread, width)),
            Content(""),
        ]

    def action_toggle_threads(self) -> None:
        self._all_threads = not self._all_threads
        self.fill(self.size.width)

    def action_older(self, step: int) -> None:
        self._age = max(0, min(self._age + step, len(self._situation.model.stacks) - 1))
        self.fill(self.size.width)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard("\n".join(row.plain.rstrip() for row in self.page_rows(COPY_WIDTH)))
        self.app.notify("The stacks are copied.", markup=False)


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
