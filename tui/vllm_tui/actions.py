"""Every key in one table: bindings, key bar, palette, help screen and the README's table are made from it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding

from vllm_tui.situation import Situation
from vllm_tui.takeover import refusal

Group = Literal["vLLM", "Log", "Screen", "Stacks page", "Findings page", "Rules page", "Replay"]
Place = Literal["app", "screen", "stacks", "findings", "rules"]
"""Where a key works: on every screen, on the main one, on the page of stacks, on that of findings, on that of rules."""
Reason = Callable[[Situation], str | None]
"""Why an action cannot be done now, as a sentence; None: it can."""


def always(situation: Situation) -> str | None:
    return None


def may_send(situation: Situation) -> str | None:
    """The keeper takes commands from this view."""
    if situation.connection == "recording":
        return "This is a recording: there is nothing to send commands to."
    if situation.connection == "lost":
        return "The keeper is gone: nobody takes commands."
    if situation.readonly:
        return "This view is read-only: it was started with --readonly."
    return "The session is not there yet." if situation.attempt is None else None


def may_change(situation: Situation, lever: str | None = None) -> str | None:
    """The keeper takes commands, and what it watches was started by it."""
    return refusal(situation, lever) or may_send(situation)


def may_stop(situation: Situation) -> str | None:
    return may_change(situation) or (None if situation.alive or situation.holds else "Nothing runs any more.")


def may_capture(situation: Situation) -> str | None:
    return may_send(situation) or (None if situation.alive else "Nothing runs any more.")


def may_probe(situation: Situation) -> str | None:
    if reason := may_capture(situation):
        return reason
    return None if situation.model.endpoint else "No server of this session has been seen yet."


def may_show_stacks(situation: Situation) -> str | None:
    """New ones can be taken, or there are earlier ones."""
    return None if situation.model.stacks else may_capture(situation)


def may_explain(situation: Situation) -> str | None:
    if situation.explained:
        return None
    if situation.command_runs:
        return "It has not ended: why it did is told then."
    return "No failure that can be told from its log."


def may_pull(lever: str) -> Reason:
    """The lever fits this command, or is on and can be taken off."""

    def reason(situation: Situation) -> str | None:
        blocked = None if lever in situation.levers else situation.blocked_levers.get(lever)
        waits = "It waits to be started again: R starts it now, x calls that off." if situation.holds else None
        return may_change(situation, lever) or waits or blocked

    return reason


def may_detach(situation: Situation) -> str | None:
    if situation.connection == "recording":
        return "This is a recording: q leaves it."
    return None if situation.alive else "Nothing runs any more: q leaves."


def replays(situation: Situation) -> str | None:
    return None if situation.pace else "Only a recording can be paused and stepped."


_KEY_LABELS = {
    "slash": "/",
    "right_square_bracket": "]",
    "left_square_bracket": "[",
    "full_stop": ".",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "question_mark": "?",
    "enter": "Enter",
    "space": "Space",
    "ctrl+p": "Ctrl+P",
}
NEVER = 99
PAGES: dict[Group, Place] = {"Stacks page": "stacks", "Findings page": "findings", "Rules page": "rules"}
"""Groups of keys that work on one page only."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a key does. `run` is a Textual action, of the app or of the screen that the key works on."""

    id: str
    keys: str
    """Textual's names of the keys, with commas between; the first is shown."""
    label: str
    help: str
    group: Group
    run: str
    rank: int = NEVER
    """Place in the key bar when there is no room for all: low stays."""
    reason: Reason = always
    title: str = ""
    """Name in the palette, where the label says too little there."""

    @property
    def place(self) -> Place:
        if self.group in PAGES:
            return PAGES[self.group]
        return "app" if self.run.startswith("app.") else "screen"

    @property
    def key_label(self) -> str:
        """The first key as it is written on a keyboard."""
        key = self.keys.partition(",")[0]
        return _KEY_LABELS.get(key, key)


# fmt: off
ACTIONS: tuple[Action, ...] = (
    Action("stacks", "s", "stacks", "capture the Python stacks of every process and show them",
           "vLLM", "app.capture_stacks", 3, may_show_stacks),
    Action("probe", "p", "probe", "ask the server for one token, beside /health and /metrics: does the engine answer?",
           "vLLM", "app.probe", 9, may_probe),
    Action("eager", "e", "eager", "relaunch with --enforce-eager; again: without it",
           "vLLM", "app.toggle_lever('eager')", 5, may_pull("eager"), "Relaunch: eager"),
    Action("blocking", "b", "blocking", "relaunch with CUDA_LAUNCH_BLOCKING=1; again: without it",
           "vLLM", "app.toggle_lever('launch-blocking')", 6, may_pull("launch-blocking"),
           "Relaunch: launch-blocking"),
    Action("coredump", "c", "coredump", "relaunch so that a GPU exception dumps core; again: without it",
           "vLLM", "app.toggle_lever('coredump')", 7, may_pull("coredump"), "Relaunch: coredump"),
    Action("again", "R", "again",
           "relaunch with the same levers; while that waits: start it now, or end what holds it up",
           "vLLM", "app.relaunch_same", 4, may_change, "Relaunch: the same again"),
    Action("clean", "0", "clean", "relaunch as typed: without levers and inherited debug variables",
           "vLLM", "app.relaunch_clean", 12, may_change, "Relaunch: clean"),
    Action("stop", "x", "stop",
           "stop vLLM with all its processes; again while it stops: kill it; while a relaunch waits: call it off",
           "vLLM", "app.stop", 8, may_stop),
    Action("search", "slash", "search", "search the log for text",
           "Log", "screen.search", 9),
    Action("next-match", "n", "next", "go to the next match",
           "Log", "screen.find(False)", 19, title="Next match"),
    Action("previous-match", "N", "match before", "go to the match before",
           "Log", "screen.find(True)"),
    Action("next-error", "right_square_bracket", "error", "go to the next error",
           "Log", "screen.alarm(False)", 10, title="Next error"),
    Action("previous-error", "left_square_bracket", "error before", "go to the error before",
           "Log", "screen.alarm(True)"),
    Action("top", "g,home", "top", "go to the first line",
           "Log", "screen.log_top"),
    Action("follow", "G,end", "follow", "go to the last line and follow the log",
           "Log", "screen.log_follow", 15),
    Action("line", "enter", "line", "show the selected line whole; again to close it",
           "Log", "screen.line_detail", 20, title="Whole line"),
    Action("copy", "y", "copy line", "copy the selected line to the clipboard",
           "Log", "screen.copy_line"),
    Action("level", "f", "filter", "show only warnings and errors, then only errors; Esc shows all",
           "Log", "screen.cycle_level", 13),
    Action("process", "F", "process",
           "show the lines of one process that names itself in the log, then of the next; Esc shows all",
           "Log", "screen.cycle_process", 17),
    Action("fold", "z", "fold", "show repeated lines once and long records by their first lines and last; again: all",
           "Log", "screen.toggle_folding", 21),
    Action("attempt", "a", "attempt", "show the log of the attempt before, and so round",
           "Log", "screen.cycle_attempt"),
    Action("panels", "v", "panels", "show or hide GPUs, processes and engine",
           "Screen", "screen.toggle_panels", 14),
    Action("details", "D", "details", "command, debug settings with their cost, attempts, GPUs, host, troubles",
           "Screen", "app.show('details')", 16),
    Action("findings", "W", "why", "why it ended: every finding with what to do, its line and its documentation",
           "Screen", "app.show('findings')", 15, may_explain, "Why it ended"),
    Action("rules", "K", "rules", "what lines of a log mean and what to do about them: every rule, to search",
           "Screen", "app.show('rules')", title="What lines of a log mean"),
    Action("stacks-view", "v", "processes", "process by process, or all of them in one drawing",
           "Stacks page", "screen.switch('merged')", title="Stacks: process by process, or merged"),
    Action("stacks-threads", "t", "threads", "their other threads as well",
           "Stacks page", "screen.switch('all_threads')", title="Stacks: other threads"),
    Action("stacks-lines", "l", "lines", "tell calls apart by their lines as well, not by function alone",
           "Stacks page", "screen.switch('by_line')", title="Stacks: by line"),
    Action("stacks-fold", "f", "unfold", "every call, or only those that tell something",
           "Stacks page", "screen.switch('folded')", title="Stacks: fold or unfold"),
    Action("stacks-older", "left_square_bracket,less_than_sign", "older", "show the capture before",
           "Stacks page", "screen.older(1)", title="Stacks: older"),
    Action("stacks-newer", "right_square_bracket,greater_than_sign", "newer", "show the next capture",
           "Stacks page", "screen.older(-1)", title="Stacks: newer"),
    Action("stacks-next", "n", "next part", "go to the next process or tree",
           "Stacks page", "screen.next_part(False)", title="Stacks: next part"),
    Action("stacks-previous", "N", "part before", "go to the process or tree before",
           "Stacks page", "screen.next_part(True)", title="Stacks: part before"),
    Action("stacks-copy", "y", "copy", "copy what is shown to the clipboard",
           "Stacks page", "screen.copy", title="Stacks: copy"),
    Action("stacks-save", "w", "save", "write everything of this capture to a text file beside its snapshots",
           "Stacks page", "screen.save", title="Stacks: save"),
    Action("findings-next", "n", "next", "go to the next finding",
           "Findings page", "screen.choose(1)", reason=may_explain, title="Findings: next"),
    Action("findings-previous", "N", "before", "go to the finding before",
           "Findings page", "screen.choose(-1)", reason=may_explain, title="Findings: before"),
    Action("findings-go", "enter", "go there", "go to its line in the log; from a hang to its stacks",
           "Findings page", "screen.go_there", reason=may_explain, title="Findings: go there"),
    Action("findings-copy", "y", "copy", "copy the chosen finding to the clipboard",
           "Findings page", "screen.copy", reason=may_explain, title="Findings: copy"),
    Action("findings-save", "w", "save", "write all findings to a text file in the session folder",
           "Findings page", "screen.save", reason=may_explain, title="Findings: save"),
    Action("rules-search", "slash", "search", "show only the rules that have these words",
           "Rules page", "screen.search", title="Rules: search"),
    Action("rules-next", "n", "next", "go to the next rule",
           "Rules page", "screen.choose(1)", title="Rules: next"),
    Action("rules-previous", "N", "before", "go to the rule before",
           "Rules page", "screen.choose(-1)", title="Rules: before"),
    Action("rules-copy", "y", "copy", "copy what the chosen rule says to the clipboard",
           "Rules page", "screen.copy", title="Rules: copy"),
    Action("pause", "space", "pause", "pause the recording, or go on",
           "Replay", "app.replay('toggle_pause')", 3, replays),
    Action("step", "full_stop", "step", "pause and play one moment",
           "Replay", "app.replay('step')", 4, replays),
    Action("slower", "less_than_sign", "slower", "play at half the speed",
           "Replay", "app.replay('change_speed', 0.5)", 5, replays),
    Action("faster", "greater_than_sign", "faster", "play at twice the speed",
           "Replay", "app.replay('change_speed', 2.0)", 6, replays),
    Action("palette", "ctrl+p", "commands", "every command by name, and the theme",
           "Screen", "app.command_palette", 18),
    Action("detach", "d", "detach", "leave the screen and let vLLM run; vllm-tui attach comes back",
           "vLLM", "app.detach", 11, may_detach),
    Action("quit", "q,ctrl+c", "quit", "leave; asks whether to stop vLLM or let it run",
           "vLLM", "app.quit", 1),
    Action("help", "question_mark", "help", "show every key",
           "Screen", "app.show('help')", 2),
)
# fmt: on

BY_ID = {action.id: action for action in ACTIONS}
GROUPS: tuple[Group, ...] = ("vLLM", "Log", "Screen", "Stacks page", "Findings page", "Rules page", "Replay")


def bindings(place: Place) -> list[Binding]:
    """The bindings of one place."""
    return [
        Binding(action.keys, f"app.perform('{action.id}')", action.label, id=action.id, tooltip=action.help, show=False)
        for action in ACTIONS
        if action.place == place
    ]


def in_group(group: Group, situation: Situation) -> Iterator[Action]:
    """The actions of one group; those of a recording only where one is played."""
    if group != "Replay" or situation.pace:
        yield from (action for action in ACTIONS if action.group == group)


def of_lever(lever: str) -> Action | None:
    """The key that puts a lever on."""
    return next((action for action in ACTIONS if action.run == f"app.toggle_lever('{lever}')"), None)


def palette(situation: Situation, page: Group | None) -> Iterator[tuple[Action, str]]:
    """Every action with its help, and why it cannot be done now; those of a page only where it is shown."""
    for group in GROUPS:
        for action in in_group(group, situation) if group == page or group not in PAGES else ():
            reason = action.reason(situation)
            yield action, f"{action.key_label}: {action.help}" + (f" — not now: {reason}" if reason else "")


def key_bar(situation: Situation, width: int) -> Sequence[Action]:
    """The actions that fit side by side into `width` cells, in the order of the table."""
    offered = [action for action in ACTIONS if action.rank < NEVER and _offered(action, situation)]
    kept: set[str] = set()
    used = 1
    for action in sorted(offered, key=lambda action: action.rank):
        used += len(action.key_label) + len(action.label) + 3
        if used > width:
            break
        kept.add(action.id)
    return [action for action in offered if action.id in kept]


def _offered(action: Action, situation: Situation) -> bool:
    """The keys of a recording only where one is played, and there only those of vLLM that work on it."""
    if situation.pace:
        return action.group != "vLLM" or not action.reason(situation)
    return action.group != "Replay"


_TABLE_HEAD = ("| key | what it does |", "|---|---|")


def markdown_table() -> str:
    """The keys as tables for the README."""
    rows = {action: f"| `{action.key_label}` | {action.help} |" for action in ACTIONS}
    parts = [*_TABLE_HEAD, *(row for action, row in rows.items() if action.group not in PAGES)]
    for group, place in PAGES.items():
        on_page = [row for action, row in rows.items() if action.group == group]
        parts += ["", f"On the page of {place}:", "", *_TABLE_HEAD, *on_page]
    return "\n".join(parts) + "\n"
