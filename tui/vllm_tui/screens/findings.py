"""Why a run has ended: every finding of its log in full, with what to do about it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from textual.content import Content

from vllm_probes.rows import Finding
from vllm_tui import actions
from vllm_tui.explained import rule_of, search_line
from vllm_tui.format import plural
from vllm_tui.screens.main import MainScreen
from vllm_tui.screens.page import Page
from vllm_tui.screens.stacks import StacksPage
from vllm_tui.situation import Situation
from vllm_tui.widgets.findings import HANG, kind, lever_key, title
from vllm_tui.widgets.rows import LABEL_WIDTH, cell, entry, hanging, joined


class FindingsPage(Page):
    """The findings of the latest attempt that has some; one of them is chosen."""

    BINDINGS = [*actions.bindings("findings")]
    group = "Findings page"

    def __init__(self, situation: Situation, folder: Path) -> None:
        super().__init__(situation)
        self._folder = folder
        self._chosen = 0
        self._drawn_from: tuple[object, ...] = ()
        self._starts: list[int] = []
        """Where each finding begins."""

    def keys(self) -> Sequence[tuple[str, str]]:
        there = "its stacks" if self._findings and self._finding.rule == HANG else "its line"
        return (("n N", "choose"), ("Enter", there), ("y", "copy"), ("w", "save"))

    @property
    def _findings(self) -> list[Finding]:
        attempt = self._situation.explained
        return attempt.exited.findings if attempt and attempt.exited else []

    @property
    def _finding(self) -> Finding:
        """The chosen one; keys ask for it only where there are findings."""
        return self._findings[min(self._chosen, len(self._findings) - 1)]

    @property
    def _number(self) -> int:
        """Of the attempt that they are about."""
        return self._situation.explained.number if self._situation.explained else 0

    def show(self, situation: Situation) -> None:
        super().show(situation)
        if self.is_mounted and self._sources() != self._drawn_from:
            self.fill(self.size.width)

    def _sources(self) -> tuple[object, ...]:
        """What the page is made from, and what decides whether a lever can be pulled."""
        situation = self._situation
        return (self._number, self._findings, situation.standing, situation.levers, situation.connection)

    # --- what stands on it ----------------------------------------------------------------------------------------

    def page_title(self) -> Content:
        here = self._situation.attempt
        notes = [
            f"attempt {self._number}" if here and here.number != self._number else "",
            plural(len(self._findings), "finding"),
        ]
        return joined([Content.styled("Why it ended", "bold"), *(Content.styled(note, "dim") for note in notes)])

    def page_rows(self, width: int) -> list[Content]:
        self._drawn_from = self._sources()
        rows: list[Content] = []
        self._starts = []
        for finding in self._findings:
            rows += [Content("")] if rows else []
            self._starts.append(len(rows))
            rows += self._block(finding, width)
        return rows

    def _block(self, finding: Finding, width: int) -> Iterator[Content]:
        is_chosen = finding is self._finding
        head = joined(
            [*title(finding), *(Content.styled(note, "dim") for note in (finding.severity, finding.rule or ""))]
        )
        yield Content.assemble(("▌" if is_chosen else " ", "$text-accent"), head)
        for label, text in entries(finding):
            yield from entry(label, text, width)
        yield from self._lever_rows(finding, width)

    def _lever_rows(self, finding: Finding, width: int) -> Sequence[Content]:
        """The key that does it, greyed where it cannot be done now."""
        action, reason = lever_key(finding, self._situation)
        if action is None:
            return ()
        key = Content.styled(action.key_label, "bold $foreground 50%" if reason else "bold $text-accent")
        help_style = "$foreground 50%" if reason else ""
        refusal = (f" — not now: {reason}", "$text-warning") if reason else ""
        text = Content.assemble(key, " ", (action.help, help_style), refusal)
        return hanging(Content.assemble("   ", cell("key", LABEL_WIDTH, "dim")), text, width)

    # --- keys -----------------------------------------------------------------------------------------------------

    def action_choose(self, step: int) -> None:
        self._chosen = (self._chosen + step) % len(self._findings)
        self.fill(self.size.width)
        self._text.scroll_to(y=self._starts[self._chosen], animate=False)

    def action_go_there(self) -> None:
        if self._finding.rule == HANG:
            self._show_stacks(self._finding.file)
            return
        main = self.app.screen_stack[0]
        assert isinstance(main, MainScreen)
        while len(self.app.screen_stack) > 1:
            self.app.pop_screen()
        main.show_line(self._number, self._finding.line_number)

    def _show_stacks(self, file: str) -> None:
        """The capture that a file of stacks belongs to."""
        stacks = self._situation.model.stacks
        captured = next((one for one in stacks if file in (stack.file for stack in one.stacks)), None)
        if captured is None:
            self.app.notify(
                "No stacks of this hang are at hand: s shows what there is.", severity="warning", markup=False
            )
            return
        self.app.push_screen(StacksPage(self._situation, self._folder, captured.mono))

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(as_text(self._finding))
        self.app.notify("The chosen finding is copied.", markup=False)

    def action_save(self) -> None:
        path = self._folder / f"attempt-{self._number}-findings.txt"
        self.save(path, "\n".join(map(as_text, self._findings)), "y copies the chosen finding.")


def entries(finding: Finding) -> Iterator[tuple[str, str]]:
    """(label, text) of everything that there is to say."""
    known = rule_of(finding)
    yield "line", finding.line.strip()
    yield "why", finding.why
    yield "what to do", finding.fix
    if known and known.docs:
        yield "more", known.docs
    if finding.rule != HANG and kind(finding) == "cause":
        yield "look for it", search_line(finding)


def as_text(finding: Finding) -> str:
    """The finding for a bug report: its place, then an entry a line."""
    place = f"{finding.severity.upper()}  {kind(finding)}  {finding.class_}  {finding.file}:{finding.line_number}"
    return "\n".join([place, *(f"  {label}: {text}" for label, text in entries(finding))]) + "\n"
