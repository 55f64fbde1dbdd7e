"""The Textual app: takes events in, shows them a few times a second, and turns keys into commands."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from textual import on, work
from textual.app import App, SystemCommand
from textual.screen import Screen

from vllm_probes.commands import CaptureStacks, Command, EndHolders, Probe, Relaunch, StartNow, Stop, StopWatching
from vllm_probes.events import AttemptStarted, Event, ModelRestored
from vllm_probes.model import SessionModel, restore
from vllm_tui import actions
from vllm_tui.alarm import Alarm, Notify
from vllm_tui.leaving import AppResult, Leaving
from vllm_tui.logfeed import LogFeed
from vllm_tui.screens import questions
from vllm_tui.screens.dialog import Question
from vllm_tui.screens.main import MainScreen
from vllm_tui.screens.page import Page
from vllm_tui.screens.pages import PageName, page_named
from vllm_tui.situation import Connection, Pace, Situation
from vllm_tui.source import OtherVersionError, ReplayControls, Source
from vllm_tui.widgets.log_style import RANK_COLOURS
from vllm_tui.widgets.rows import Panel

if TYPE_CHECKING:
    from vllm_tui.screens.stacks import StacksPage

TICK_S = 0.1
TICKS_BETWEEN_PAINTS = 3
RECONNECT_PAUSE_S = 1.0
FIRST_TRIES = 5
"""A keeper that has just been started is not missed before."""


class VllmTui(App[AppResult]):
    """A view of one session."""

    TITLE = "vllm-tui"
    CSS_PATH = "app.tcss"
    BINDINGS = [*actions.bindings("app")]
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self, source: Source, *, folder: Path, clock: Callable[[], float] = time.monotonic, notify: Notify = "off"
    ) -> None:
        super().__init__()
        self.source = source
        self._replay = source if isinstance(source, ReplayControls) else None
        self._folder = folder
        self._clock = clock
        self._feed = LogFeed(folder)
        self._model = SessionModel()
        self._connection: Connection = "waiting"
        self._replay_over = False
        self._dirty = True
        self._shown_second = -1
        self._ticks_since_paint = 0
        self._blocked_levers: dict[str, str] = {}
        self._leaving: Leaving | None = None
        self._left = False
        self._asked_about = ""
        self._alarm = Alarm(notify)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Colours of processes in the log, readable on a dark and on a light background."""
        ranks = {f"rank-{rank}": colour for rank, colour in enumerate(RANK_COLOURS)}
        return {"api-server": "#7f93a8", "engine-core": "#4a90d9", **ranks}

    def get_default_screen(self) -> Screen[None]:
        return MainScreen(self._feed)

    # --- events ---------------------------------------------------------------------------------------------------

    @on(MainScreen.Opened)
    def _begin(self) -> None:
        self.run_worker(self._pump(), name="pump")
        self.set_interval(TICK_S, self._tick)

    async def _pump(self) -> None:
        """Take events in for as long as there are any; look for another keeper where a live one is lost."""
        for patience in itertools.count(FIRST_TRIES, -1):
            try:
                async for batch in self.source.batches():
                    self._take(batch)
            except (OtherVersionError, msgspec.ValidationError):
                self._leave("refused")
                return
            if not self.source.live:
                self._replay_over = True
                self._paint()
                return
            if self._leaving:
                self._leave("keeper_lost")
            if self._connection == "live" or patience <= 0:
                self._connection = "lost"
            self._paint()
            if not await self.source.reconnect():
                await asyncio.sleep(RECONNECT_PAUSE_S)

    def _take(self, batch: Iterable[Event]) -> None:
        first = self._connection in ("waiting", "lost")
        for event in batch:
            if isinstance(event, ModelRestored):
                self._model = restore(event)
            else:
                self._model.apply(event)
            if (call := self._alarm.take(event, self._model)) and self._driver:
                self._driver.write(call)
            if isinstance(event, ModelRestored | AttemptStarted):
                self._blocked_levers = questions.blocked_levers(self._model)
        if self._replay:
            self._model.unknown_line_count = self._replay.unknown_line_count
        self._connection = "live" if self.source.live else "recording"
        self._dirty = True
        self._close_outdated_question()
        if first:
            self._paint()  # anything later waits for the tick: what belongs to one look comes as several events
        if self._leaving and self._model.ended and self._model.attempt and self._model.attempt.over:
            self._leave(self._leaving)

    @property
    def situation(self) -> Situation:
        """What is known at this moment."""
        pace = Pace(self._replay.paused, self._replay.speed, self._replay_over) if self._replay else None
        return Situation(
            model=self._model,
            now=self._clock() if self.source.live else self._model.mono,
            connection=self._connection,
            readonly=self.source.readonly,
            pace=pace,
            blocked_levers=self._blocked_levers,
        )

    # --- painting -------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """The log is looked at on every tick; panels a few times a second, and only if something has changed."""
        if not self.screen_stack:  # timer and events can outlive the screens
            return
        if self.seen_screen is self.main_screen:
            self.main_screen.poll_log()
        self._ticks_since_paint += 1
        if self._ticks_since_paint < TICKS_BETWEEN_PAINTS:
            return
        if self._dirty:
            self._paint()
        elif (second := self._second()) != self._shown_second:
            self._shown_second = second
            for panel in self.seen_screen.query(Panel):
                if panel.counts:
                    panel.show(self.situation)

    def _second(self) -> int:
        """The part of the clock that the screen shows."""
        situation = self.situation
        return int(situation.up_s or 0) if situation.command_runs else -1

    def _paint(self) -> None:
        if not self.screen_stack:
            return
        self._dirty, self._ticks_since_paint, self._shown_second = False, 0, self._second()
        situation = self.situation
        with self.batch_update():
            self.main_screen.show(situation)
            if isinstance(self.seen_screen, Page):
                self.seen_screen.show(situation)

    @property
    def main_screen(self) -> MainScreen:
        screen = self.screen_stack[0]
        assert isinstance(screen, MainScreen)
        return screen

    @property
    def seen_screen(self) -> Screen[Any]:
        """The screen that is seen, also behind a question."""
        return self.screen_stack[-2] if isinstance(self.screen, Question) else self.screen

    # --- keys -----------------------------------------------------------------------------------------------------

    async def action_perform(self, action_id: str) -> None:
        """Do what a key stands for, or say why it cannot be done now."""
        if self._left:
            return
        action = actions.BY_ID[action_id]
        if reason := action.reason(self.situation):
            self._refuse(action, reason)
            return
        await self.run_action(action.run, self.screen if action.run.startswith("screen.") else None)

    def _refuse(self, action: actions.Action, reason: str) -> None:
        """Say why a key does nothing now; one such sentence at a time."""
        self.clear_notifications()
        self.notify(reason, title=f"{action.key_label} {action.label}", severity="warning", markup=False)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Every action by its name, and Textual's theme."""
        page = screen.group if isinstance(screen, Page) else None
        for action, explained in actions.palette(self.situation, page):
            name = action.title or action.label.capitalize()
            yield SystemCommand(name, explained, partial(self.action_perform, action.id))
        yield SystemCommand("Theme", "choose other colours", self.action_change_theme)
        yield SystemCommand("Screenshot", "save the screen as an SVG file", self.deliver_screenshot)

    @work(group="commands")
    async def _send(self, command: Command) -> None:
        await self._ask_keeper(command)

    async def _ask_keeper(self, command: Command) -> None:
        answer = await self.source.send(command)
        if not answer.ok:
            self.notify(answer.message or "The keeper refused.", severity="error", markup=False)

    def action_capture_stacks(self) -> None:
        from vllm_tui.screens.stacks import StacksPage

        page = self.screen if isinstance(self.screen, StacksPage) else StacksPage(self.situation, self._folder)
        reason = actions.may_capture(self.situation)
        if page is not self.screen:
            self.push_screen(page)
        elif reason:
            self._refuse(actions.BY_ID["stacks"], reason)
        if not reason:
            self._capture(page)

    @work(group="commands")
    async def _capture(self, page: "StacksPage") -> None:
        page.capturing += 1
        await self._ask_keeper(CaptureStacks())
        page.capturing -= 1

    def action_probe(self) -> None:
        self.notify("Asking for one token; the answer is there within 10 s.", markup=False)
        self._send(Probe())

    def action_toggle_lever(self, lever: str) -> None:
        levers = self.situation.levers
        if lever in levers:
            self._relaunch([name for name in levers if name != lever])
        else:
            self._relaunch([*levers, lever])

    def action_relaunch_same(self) -> None:
        if self.situation.holds:
            self._start_now()
        else:
            self._relaunch(self.situation.levers)

    @work(exclusive=True, group="question")
    async def _start_now(self) -> None:
        answer = await self._ask(questions.start_now(self.situation))
        if answer:
            self._send(EndHolders() if answer == "end" else StartNow())

    def action_relaunch_clean(self) -> None:
        self._relaunch([], clean=True)

    @work(exclusive=True, group="question")
    async def _relaunch(self, levers: Sequence[str], clean: bool = False) -> None:
        question = questions.relaunch(self.situation, levers, clean=clean)
        answer = await self._ask(question) if question else "relaunch"
        if answer:
            company = answer.partition("+")[2]
            self._send(Relaunch(levers=[*levers, company] if company else list(levers), clean=clean))

    @work(exclusive=True, group="question")
    async def action_stop(self) -> None:
        question = questions.stop(self.situation)
        answer = await self._ask(question) if question else "stop"
        if answer:
            self._send(Stop(kill=answer == "kill"))

    async def _ask(self, question: Question) -> str | None:
        """The answer; None also where the situation changed meanwhile."""
        self.clear_notifications()
        self._asked_about = self.situation.standing
        return await self.push_screen_wait(question)

    def _close_outdated_question(self) -> None:
        """Nobody should answer a question about what is not so any more."""
        standing = self.situation.standing
        if isinstance(self.screen, Question) and standing != self._asked_about:
            self.screen.dismiss(None)
            self.notify(f"The situation has changed: {standing}.", severity="warning", markup=False)

    def action_detach(self) -> None:
        self._leave("left_running")

    async def action_quit(self) -> None:
        self._quit()

    @work(exclusive=True, group="question")
    async def _quit(self) -> None:
        situation = self.situation
        if situation.connection == "lost":
            self._leave("keeper_lost")
        elif situation.connection == "recording" or not (situation.alive or situation.holds):
            self._leave("ended")
        elif (answer := await self._ask(questions.leave(situation))) in ("leave", "unwatch"):
            if answer == "unwatch":
                await self.source.send(StopWatching())
            self._leave("left_running")
        elif answer:
            self._leaving = "stopped"
            self._send(Stop(kill=answer == "kill"))

    def _leave(self, leaving: Leaving) -> None:
        self._left = True
        self._feed.close()
        self.exit(AppResult(leaving, self._model))

    # --- pages ----------------------------------------------------------------------------------------------------

    def action_show(self, name: PageName) -> None:
        """Show a page, in the place of another one."""
        page = page_named(name, self.situation, self._folder)
        if isinstance(self.screen, type(page)):
            return
        if isinstance(self.screen, Page):
            self.pop_screen()
        self.push_screen(page)

    # --- recordings -----------------------------------------------------------------------------------------------

    def action_replay(self, control: Literal["toggle_pause", "step", "change_speed"], *arguments: float) -> None:
        if self._replay:
            getattr(self._replay, control)(*arguments)
            self._dirty = True
