"""Every rule that logs are read by: what its lines mean, and what to do about them."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from textual import on
from textual.content import Content
from textual.widgets import Input

from vllm_tui import actions
from vllm_tui.explained import known_rules, meaning, page_of
from vllm_tui.format import plural, printable
from vllm_tui.screens.page import Page
from vllm_tui.situation import Situation
from vllm_tui.widgets.findings import grade
from vllm_tui.widgets.rows import cell, entry, joined
from vllm_tui.widgets.search_bar import SearchBar, SearchLine

if TYPE_CHECKING:
    from vllm_probes.judges.rules import Rule

ID_WIDTH = 26
LEAD_ROWS = 3
"""Above the chosen rule there is as much to be seen of those before it."""
HINT = "a word of the message, of what it means or of what to do; Enter keeps it, Esc shows all"
_STEPS, _HARMLESS = "steps of a run", "harmless"


class RulesPage(Page):
    """A row for each rule, by subject; the chosen one in full."""

    BINDINGS = [*actions.bindings("rules")]
    group = "Rules page"

    def __init__(self, situation: Situation) -> None:
        super().__init__(situation)
        self._all = sorted(known_rules().values(), key=lambda rule: (*_subject_order(rule), rule.id))
        self._rules: Sequence[Rule] = self._all
        self._needle = ""
        self._chosen = 0
        self._chosen_row = 0

    def keys(self) -> Sequence[tuple[str, str]]:
        return (("/", "search"), ("n N", "choose"), ("y", "copy"))

    # --- what stands on it ----------------------------------------------------------------------------------------

    def page_title(self) -> Content:
        count = plural(len(self._all), "rule")
        if self._needle:
            count = f"{len(self._rules)} of {count} with “{printable(self._needle)}”"
        return joined([Content.styled("What lines of a log mean", "bold"), Content.styled(count, "dim")])

    def page_rows(self, width: int) -> list[Content]:
        rows: list[Content] = []
        for subject, rules in groupby(self._rules, _subject_of):
            rows += [Content("")] if rows else []
            rows.append(Content.styled(f" {printable(subject)}", "bold"))
            for rule in rules:
                is_chosen = rule is self._rules[self._chosen]
                self._chosen_row = len(rows) if is_chosen else self._chosen_row
                rows += _entry(rule, width, is_chosen=is_chosen)
        return rows or [Content.styled(" No rule has that: / and Esc show all.", "dim")]

    # --- keys -----------------------------------------------------------------------------------------------------

    def action_choose(self, step: int) -> None:
        if self._rules:
            self._choose((self._chosen + step) % len(self._rules))

    def _choose(self, number: int) -> None:
        self._chosen = number
        self.fill(self.size.width)
        self._text.scroll_to(y=max(0, self._chosen_row - LEAD_ROWS), animate=False)

    def action_search(self) -> None:
        if not self.query(SearchBar):
            self.mount(SearchBar(self._needle, HINT), before=self._keys)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._look_for(event.value)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self._close_search()

    def on_search_line_closed(self, event: SearchLine.Closed) -> None:
        self._look_for("")
        self._close_search()

    def _look_for(self, needle: str) -> None:
        self._needle = needle.strip()
        words = self._needle.lower().split()
        self._rules = [rule for rule in self._all if _has_all(rule, words)]
        self._choose(0)

    def _close_search(self) -> None:
        self.query(SearchBar).remove()
        self._text.focus()

    def action_copy(self) -> None:
        if self._rules:
            rule = self._rules[self._chosen]
            self.app.copy_to_clipboard("\n".join([rule.id, *(f"  {label}: {text}" for label, text in page_of(rule))]))
            self.app.notify(f"What {rule.id} means is copied.", markup=False)


def _subject_of(rule: "Rule") -> str:
    """What failures are about, and what is none."""
    if rule.explains:
        return rule.class_.replace("_", " ")
    return _STEPS if rule.phase else _HARMLESS


def _subject_order(rule: "Rule") -> tuple[bool, bool, str]:
    subject = _subject_of(rule)
    return (not rule.explains, subject == _HARMLESS, subject)


def _has_all(rule: "Rule", words: Sequence[str]) -> bool:
    texts = [rule.id, _subject_of(rule), rule.why, rule.fix, rule.label or "", *rule.samples]
    said = "\n".join(texts).lower()
    return all(word in said for word in words)


def _entry(rule: "Rule", width: int, *, is_chosen: bool) -> Iterator[Content]:
    symbol, style = grade(rule.severity)
    mark = ("▌" if is_chosen else " ", "$text-accent")
    name = cell(printable(rule.id), ID_WIDTH, "bold" if is_chosen else "")
    head = Content.assemble(mark, (symbol, style), " ", name, " ")
    if is_chosen:
        yield head + Content.styled(f"{rule.severity} {rule.role}", "dim")
        for label, text in page_of(rule):
            yield from entry(label, text, width)
    else:
        yield (head + Content.styled(printable(meaning(rule)), "dim")).truncate(width, ellipsis=True)
