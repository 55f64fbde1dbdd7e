"""Captured stacks: those of all processes in one drawing, or process by process."""

import time
from collections.abc import Sequence
from pathlib import Path

from textual.content import Content
from textual.reactive import reactive

from vllm_probes.events import StacksCaptured
from vllm_tui import actions
from vllm_tui.format import plural, printable
from vllm_tui.screens.page import Page
from vllm_tui.screens.stack_looks import Member, forests, groups, members, waits
from vllm_tui.screens.stack_processes import overview, process_rows, read_stacks
from vllm_tui.screens.stack_tree import forest_rows, group_rows, trouble_rows, wait_rows
from vllm_tui.situation import Situation
from vllm_tui.widgets.doing import culprit_looks
from vllm_tui.widgets.rows import joined

COPY_WIDTH = 200
SAVED_AS = "stacks.txt"
_REASONS = {"key": "by hand", "quiet": "because nothing moved"}


class StacksPage(Page):
    """Shows the latest capture, or an older one that was chosen."""

    BINDINGS = [*actions.bindings("stacks")]
    group = "Stacks page"

    capturing: reactive[int] = reactive(0, init=False)
    """How many captures were asked for and have not come."""

    def __init__(self, situation: Situation, folder: Path, chosen_mono: float | None = None) -> None:
        super().__init__(situation)
        self._folder = folder
        self._chosen_mono = chosen_mono
        """Of the capture to show; None: whatever is the latest."""
        self._drawn_from: tuple[object, ...] = ()
        self._merged, self._by_line, self._folded, self._all_threads = True, False, True, False
        self._starts: list[int] = []
        """Where each part of the page begins."""

    def keys(self) -> Sequence[tuple[str, str]]:
        lines, fold = "functions" if self._by_line else "lines", "unfold" if self._folded else "fold"
        return (
            ("v", "processes" if self._merged else "merged"),
            ("t", "main threads" if self._all_threads else "threads"),
            *((("l", lines), ("f", fold)) if self._merged else ()),
            ("[ ]", "older"),
            ("y", "copy"),
            ("w", "save"),
            ("s", "again"),
            ("n N", "part"),
        )

    @property
    def captured(self) -> StacksCaptured | None:
        stacks = self._situation.model.stacks
        return stacks[self._position] if stacks else None

    @property
    def _position(self) -> int:
        """Of the capture to show; of one that has been forgotten meanwhile, of the oldest."""
        stacks = self._situation.model.stacks
        if self._chosen_mono is None:
            return len(stacks) - 1
        return next((at for at, one in enumerate(stacks) if one.mono == self._chosen_mono), 0)

    def show(self, situation: Situation) -> None:
        super().show(situation)
        if self.is_mounted and self._sources() != self._drawn_from:
            self.fill(self.size.width)
        elif self.is_mounted:
            self._title.show(self.page_title())

    def _sources(self) -> tuple[object, ...]:
        """What the page is made from: conclusions about a capture come after it."""
        attempt = self._situation.attempt
        return (self.captured, attempt.doing, attempt.verdict) if attempt else (self.captured,)

    def watch_capturing(self, before: int, after: int) -> None:
        if after > before:
            self._chosen_mono = None
        if self.is_mounted:
            self.fill(self.size.width)

    # --- what stands on it ----------------------------------------------------------------------------------------

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
            f"{self._position + 1} of {count}" if count > 1 else "",
        ]
        return joined([Content.styled("Stacks", "bold"), *(Content.styled(note, "dim") for note in notes), under_way])

    def page_rows(self, width: int) -> list[Content]:
        self._drawn_from = self._sources()
        rows: list[Content] = []
        self._starts = []
        for block in self._blocks(width):
            rows += [Content("")] if rows else []
            self._starts.append(len(rows))
            rows += block
        return rows

    def _blocks(self, width: int) -> list[list[Content]]:
        """The parts of the page."""
        if (captured := self.captured) is None:
            text = "Waiting for the stacks…" if self.capturing else "No stacks were captured."
            return [[Content(""), Content.styled(f"   {text}", "dim")]]
        if self._merged:
            return self._merged_blocks(captured, width, folded=self._folded)
        return self._process_blocks(captured, width, all_threads=self._all_threads)

    def _merged_blocks(self, captured: StacksCaptured, width: int, *, folded: bool) -> list[list[Content]]:
        """What each group does, who has no stacks, who waits for whom, and one tree for each kind of process."""
        found = self._members(captured)
        seen = forests(found, all_threads=self._all_threads)
        head = [*group_rows(groups(found), width), *trouble_rows(troubles(captured), width)]
        chain = wait_rows(waits(found), width)
        trees = [forest_rows(forest, width, by_line=self._by_line, folded=folded) for forest in seen]
        return [head, *([chain] if chain else []), *trees]

    def _members(self, captured: StacksCaptured) -> list[Member]:
        """Marked by the verdict where the capture was made in the hang that it is about."""
        model = self._situation.model
        attempt = next((one for one in model.attempts if one.number == captured.attempt), None)
        verdict = attempt.verdict if attempt else None
        is_of_hang = verdict is not None and verdict.since is not None and captured.time >= verdict.since
        return members(model, captured, culprit_looks(attempt) if is_of_hang else {})

    def _process_blocks(self, captured: StacksCaptured, width: int, *, all_threads: bool) -> list[list[Content]]:
        processes = [read_stacks(self._folder, stack) for stack in captured.stacks]
        head = overview(processes, width)
        rows = [process_rows(process, width, all_threads=all_threads) for process in processes]
        return [head, *rows] if head else rows

    # --- keys -----------------------------------------------------------------------------------------------------

    def action_next_part(self, backwards: bool) -> None:
        """Scroll to where the next part of the page begins."""
        here = self._text.scroll_offset.y
        later = [y for y in reversed(self._starts) if y < here] if backwards else [y for y in self._starts if y > here]
        if later:
            self._text.scroll_to(y=later[0], animate=False)

    def action_switch(self, what: str) -> None:
        setattr(self, f"_{what}", not getattr(self, f"_{what}"))
        if what == "merged":
            self._text.scroll_home(animate=False)
        self.fill(self.size.width)

    def action_older(self, step: int) -> None:
        stacks = self._situation.model.stacks
        position = max(0, self._position - step)
        self._chosen_mono = stacks[position].mono if position < len(stacks) - 1 else None
        self.fill(self.size.width)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(plain(self._blocks(COPY_WIDTH)))
        self.app.notify("The stacks are copied as they are shown.", markup=False)

    def action_save(self) -> None:
        """Everything there is of this capture, as text beside its files."""
        if (captured := self.captured) is None:
            self.app.notify("There are no stacks to save yet.", severity="warning", markup=False)
            return
        merged = self._merged_blocks(captured, COPY_WIDTH, folded=False)
        each = self._process_blocks(captured, COPY_WIDTH, all_threads=True)
        path = self._folder / captured.folder / SAVED_AS
        self.save(path, plain([[self.page_title()], *merged, *each]), "y copies what is shown.")


def troubles(captured: StacksCaptured) -> list[tuple[str, str]]:
    """(process, why nothing of it can be merged)."""
    missing = [file for file in captured.stacks if not any(thread.frames for thread in file.threads)]
    return [
        (file.process, file.error or "its stacks are not in the recording; v looks for its file") for file in missing
    ]


def plain(blocks: Sequence[Sequence[Content]]) -> str:
    """As text, with an empty line between the blocks."""
    return "\n\n".join("\n".join(row.plain.rstrip() for row in block) for block in blocks) + "\n"
