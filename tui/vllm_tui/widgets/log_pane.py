"""The log with its title, the search below it and the detail of one line."""

import asyncio

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Key
from textual.widgets import Input

from vllm_probes.log.index import LogIndex
from vllm_probes.rows import Level
from vllm_tui.format import plural, printable
from vllm_tui.logfeed import LogFeed
from vllm_tui.situation import Situation
from vllm_tui.widgets.line_detail import LineDetail
from vllm_tui.widgets.log_view import LogView
from vllm_tui.widgets.rows import Title, joined
from vllm_tui.widgets.search_bar import SearchBar

HINT = "search the log, whatever the case; Enter finds, Esc closes"
LEVELS: tuple[Level | None, ...] = (None, "warning", "error")
_LEVEL_NAMES: dict[Level | None, str] = {"warning": "warnings and errors", "error": "errors only"}


class LogPane(Vertical):
    """Turns keys into what is shown of the log."""

    def __init__(self, feed: LogFeed, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._feed = feed
        self._situation = Situation()
        self._latest = 0
        self._needle = ""
        self.view = LogView(id="log")

    def compose(self) -> ComposeResult:
        yield Title(id="log-title")
        yield self.view
        yield LineDetail(id="line-detail", classes="-closed")

    # --- what is shown --------------------------------------------------------------------------------------------

    def show(self, situation: Situation) -> None:
        """Learn what the model says of the log; a new attempt's log takes the place of the one before."""
        self._situation = situation
        if situation.attempt and situation.attempt.number != self._latest:
            self._latest = situation.attempt.number
            self._open(self._latest)
        self._feed.learn(situation.model, live=situation.connection != "recording")
        self.view.explain(self._explanation())

    def _open(self, number: int) -> None:
        attempt = next(a for a in self._situation.model.attempts if a.number == number)
        self._feed.open(number, attempt.launch.log)
        self._feed.learn(self._situation.model, live=self._situation.connection != "recording")
        self._feed.refresh()
        self.query_one(LineDetail).close()
        if self._feed.rows:
            self.view.show(self._feed.rows)

    def show_line(self, attempt: int, number: int) -> None:
        """Go to line `number` (from 1) of an attempt's log, with all the lines around it."""
        if attempt != self._feed.attempt:
            self._open(attempt)
        if self._filters():
            self._show_all()
        self.view.go_to_line(number - 1)

    def poll(self) -> None:
        """Look whether the log has grown."""
        if self._feed.refresh():
            self.view.grow()
            self.view.explain(self._explanation())
            self.write_title()

    def write_title(self) -> None:
        self.query_one("#log-title", Title).show(self._title())

    def _title(self) -> Content:
        feed, index, rows = self._feed, self._feed.index, self._feed.rows
        if index is None or rows is None:
            return Content.styled("Log", "bold")
        name = "Log" if feed.attempt == self._latest else f"Log of attempt {feed.attempt}"
        filtered = rows is not index
        count = (
            f"{rows.line_count:,} of {plural(index.line_count, 'line')}"
            if filtered
            else plural(index.line_count, "line")
        )
        parts: list[Content | str] = [Content.styled(name, "bold"), count]
        parts.append(self._alarms(index))
        parts += [Content.styled(text, "bold $text-warning") for text in self._filters()]
        if feed.trouble:
            parts.append(Content.styled(feed.trouble, "$text-error"))
        return joined([*parts, self._place()])

    def _alarms(self, index: LogIndex) -> Content:
        """How many errors there are, or which of them is under the cursor."""
        line = None if self.view.following else self.view.current()
        if line and (number := index.alarm_number(line.number - 1)):
            return Content.styled(f"error {number:,} of {index.alarm_count:,}", "bold $text-error")
        if index.error_count:
            return Content.styled(plural(index.error_count, "error"), "bold $text-error")
        return Content(plural(index.warning_count, "warning") if index.warning_count else "")

    def _filters(self) -> list[str]:
        level = _LEVEL_NAMES.get(self._feed.level)
        process = self._feed.pid and printable(self._feed.names.get(self._feed.pid, f"pid {self._feed.pid}"))
        return [text for text in (level, process, "folded" if self._feed.is_folded else "") if text]

    def _explanation(self) -> str:
        """Why no row is shown."""
        index, rows, filters = self._feed.index, self._feed.rows, ", ".join(self._filters())
        if index is None or rows is None or rows.line_count or self._feed.trouble:
            return ""
        if not index.line_count:
            return "It wrote nothing." if self._has_ended() else "No output yet."
        if self._feed.filtering:
            return f"Looking for lines that pass: {filters} …"
        return f"No line passes: {filters}. Esc shows all {plural(index.line_count, 'line')}."

    def _hidden(self, what: str) -> str:
        return f"{what} among the lines shown ({', '.join(self._filters())}): Esc shows all lines."

    def _has_ended(self) -> bool:
        return any(a.ended for a in self._situation.model.attempts if a.number == self._feed.attempt)

    def _place(self) -> Content:
        view = self.view
        if view.following:
            return Content.styled("following", "$text-success")
        if shown := view.current():
            text = f"line {shown.number:,}"
        else:
            text = f"line {view.line + 1:,} is hidden" if view.line is not None else ""
        if view.unseen_count:
            return Content.assemble(
                text, " · ", (f"+{plural(view.unseen_count, 'line')}, G follows", "bold $text-accent")
            )
        return Content(text)

    @on(LogView.Moved)
    def _moved(self) -> None:
        self.write_title()
        self._fill_detail()

    # --- the whole line -------------------------------------------------------------------------------------------

    @on(LogView.LineClicked)
    def _line_clicked(self) -> None:
        self.query_one(LineDetail).open()
        self._fill_detail()

    def toggle_detail(self) -> None:
        detail = self.query_one(LineDetail)
        if detail.is_open:
            detail.close()
        elif self.view.current():
            self.view.go_to(self.view.cursor)
            detail.open()
            self._fill_detail()

    def _fill_detail(self) -> None:
        detail = self.query_one(LineDetail)
        if detail.is_open and (line := self.view.current()):
            detail.show(line.number, *self._feed.whole(line))

    def copy_line(self) -> None:
        if line := self.view.current():
            texts = self._feed.whole(line)
            self.app.copy_to_clipboard("\n".join(texts))
            behind = f" and {plural(len(texts) - 1, 'line')} behind it are" if len(texts) > 1 else " is"
            self.app.notify(f"Line {line.number:,}{behind} copied.", markup=False)

    # --- filters --------------------------------------------------------------------------------------------------

    def cycle_level(self) -> None:
        index = LEVELS.index(self._feed.level)
        self._filter(LEVELS[(index + 1) % len(LEVELS)], self._feed.pid, self._feed.is_folded)

    def cycle_process(self) -> None:
        more = self._feed.find_writers()
        pids: list[int | None] = [None, *self._feed.names]
        if len(pids) == 1:
            looked_at = "No line that was looked at so far" if more else "No line of this log"
            self.app.notify(f"{looked_at} names its process.", markup=False)
            return
        at = pids.index(self._feed.pid) if self._feed.pid in pids else 0
        self._filter(self._feed.level, pids[(at + 1) % len(pids)], self._feed.is_folded)

    def toggle_folding(self) -> None:
        self._filter(self._feed.level, self._feed.pid, not self._feed.is_folded)

    def _show_all(self) -> None:
        self._filter(None, None, False)

    def _filter(self, level: Level | None, pid: int | None, is_folded: bool) -> None:
        self._feed.filter(level, pid, is_folded=is_folded)
        self._feed.refresh()
        if self._feed.rows:
            self.view.replace(self._feed.rows)
            self.view.explain(self._explanation())

    def cycle_attempt(self) -> None:
        numbers = [attempt.number for attempt in self._situation.model.attempts]
        if len(numbers) < 2:
            self.app.notify("There is only one attempt.", markup=False)
            return
        self._open(numbers[numbers.index(self._feed.attempt) - 1])
        self.write_title()

    # --- errors and search ----------------------------------------------------------------------------------------

    def go_to_alarm(self, *, backwards: bool) -> None:
        rows, view = self._feed.rows, self.view
        if rows is None:
            return
        start = rows.line_count if view.following else view.cursor
        row = rows.next_alarm(start, backwards=backwards)
        if row is None:
            row = rows.next_alarm(rows.line_count if backwards else -1, backwards=backwards)
        if row is None:
            shown = rows is self._feed.index or not rows.index.alarm_count
            self.app.notify("The log has no error." if shown else self._hidden("No error is"), markup=False)
            return
        view.go_to(row, centred=True)

    def open_search(self) -> None:
        if not self.query(SearchBar):
            self.mount(SearchBar(self._needle, HINT))

    @on(Input.Submitted)
    def _search_submitted(self, event: Input.Submitted) -> None:
        self._needle = event.value or self._needle
        self.close_search()
        self.find(backwards=self.view.following, inclusive=True)

    def on_search_line_closed(self) -> None:
        self.close_search()

    def close_search(self) -> None:
        self.query(SearchBar).remove()
        self.view.focus()

    def find(self, *, backwards: bool, inclusive: bool = False) -> None:
        """Go to the next match; past the last one, to the first."""
        if not self._needle:
            self.open_search()
        elif self._feed.rows:
            self._find(backwards, inclusive)

    @work(exclusive=True, group="search")
    async def _find(self, backwards: bool, inclusive: bool) -> None:
        rows = self._feed.rows
        assert rows is not None
        around = rows.line_count - 1 if backwards else 0
        start = self.view.cursor + (0 if inclusive else -1 if backwards else 1)
        for begin in (start, around):
            row = await self._search(begin, backwards)
            if row is not None:
                self.view.highlight(self._needle)
                self.view.go_to(row, centred=True)
                return
        self.view.highlight("")
        missing = f"“{self._needle}” is not"
        self.app.notify(self._hidden(missing) if self._filters() else f"{missing} in the log.", markup=False)

    async def _search(self, start: int, backwards: bool) -> int | None:
        """Search from a row to the end, letting the screen breathe in between."""
        rows = self._feed.rows
        resume: int | None = start
        while rows is self._feed.rows and rows is not None and resume is not None:
            found = rows.find(self._needle, resume, backwards=backwards)
            if found.row is not None:
                return found.row
            resume = found.resume
            await asyncio.sleep(0)
        return None

    def on_key(self, event: Key) -> None:
        if event.key == "escape" and not self.query(SearchBar):
            self._go_back()

    def _go_back(self) -> None:
        """Undo one thing: the detail of a line, then what a search has lit, then the filters."""
        detail = self.query_one(LineDetail)
        if detail.is_open:
            detail.close()
        elif self.view.highlighted:
            self._needle = ""
            self.view.highlight("")
        elif self._filters():
            self._show_all()
