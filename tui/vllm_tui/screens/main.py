"""The main screen: header, notices, GPUs, processes and engine, the log, and the keys."""

from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.screen import Screen

from vllm_tui import actions
from vllm_tui.logfeed import LogFeed
from vllm_tui.situation import Situation
from vllm_tui.widgets.engine import EnginePanel, EngineSummary
from vllm_tui.widgets.findings import FindingsPanel
from vllm_tui.widgets.gpus import GpuPanel, GpuSummary
from vllm_tui.widgets.header import Header
from vllm_tui.widgets.host import HostLine
from vllm_tui.widgets.key_bar import KeyBar
from vllm_tui.widgets.log_pane import LogPane
from vllm_tui.widgets.notices import Notices
from vllm_tui.widgets.processes import ProcessSummary, ProcessTable
from vllm_tui.widgets.rows import Panel
from vllm_tui.widgets.verdict import VerdictBanner

TABLES = (GpuPanel, ProcessTable, EnginePanel)


class MainScreen(Screen[None]):
    """Hands every moment to its panels; keeps nothing but what is open."""

    BINDINGS = [*actions.bindings("screen")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (160, "-huge")]
    AUTO_FOCUS = "LogView"

    def __init__(self, feed: LogFeed) -> None:
        super().__init__()
        self.log_pane = LogPane(feed, id="log-pane")

    class Opened(Message):
        """Every part of the screen is there and can be shown something."""

    def on_mount(self) -> None:
        self.post_message(self.Opened())

    def compose(self) -> ComposeResult:
        yield Header(id="header")
        yield VerdictBanner(id="verdict")
        yield FindingsPanel(id="findings")
        yield Notices(id="notices")
        with Vertical(id="summaries"):
            yield GpuSummary()
            yield ProcessSummary()
            yield EngineSummary()
        with VerticalScroll(id="panels"):
            with Container(id="tables"):
                yield GpuPanel(id="gpus")
                with Horizontal():
                    yield ProcessTable(id="processes")
                    yield EnginePanel(id="engine")
            yield HostLine(id="host")
        yield self.log_pane
        yield KeyBar(id="key-bar")

    def show(self, situation: Situation) -> None:
        """Show another moment."""
        for panel in self.query(Panel):
            panel.show(situation)
        self.log_pane.show(situation)
        if not self._has_tables:
            self.remove_class("-toggled")

    @property
    def _has_tables(self) -> bool:
        """A GPU, a process or a server is there to be shown."""
        return any(isinstance(panel, TABLES) and panel.display for panel in self.query(Panel))

    def poll_log(self) -> None:
        self.log_pane.poll()

    def show_line(self, attempt: int, number: int) -> None:
        """Go to a line of an attempt's log, also where the log is hidden behind panels."""
        if self.has_class("-narrow", "-toggled"):
            self.remove_class("-toggled")
        self.log_pane.view.focus()
        self.log_pane.show_line(attempt, number)

    def action_toggle_panels(self) -> None:
        if not self._has_tables:
            self.app.notify("Nothing runs: there is neither a GPU nor a process nor a server to show.", markup=False)
            return
        self.toggle_class("-toggled")
        instead_of_log = self.has_class("-toggled", "-narrow")
        (self.query_one("#panels") if instead_of_log else self.log_pane.view).focus()

    def action_find(self, backwards: bool) -> None:
        self.log_pane.find(backwards=backwards)

    def action_alarm(self, backwards: bool) -> None:
        self.log_pane.go_to_alarm(backwards=backwards)

    def action_search(self) -> None:
        self.log_pane.open_search()

    def action_log_top(self) -> None:
        self.log_pane.view.go_to(0)

    def action_log_follow(self) -> None:
        self.log_pane.view.follow()

    def action_line_detail(self) -> None:
        self.log_pane.toggle_detail()

    def action_copy_line(self) -> None:
        self.log_pane.copy_line()

    def action_cycle_level(self) -> None:
        self.log_pane.cycle_level()

    def action_cycle_process(self) -> None:
        self.log_pane.cycle_process()

    def action_toggle_folding(self) -> None:
        self.log_pane.toggle_folding()

    def action_cycle_attempt(self) -> None:
        self.log_pane.cycle_attempt()
