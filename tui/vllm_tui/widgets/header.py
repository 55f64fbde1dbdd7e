"""The top of the screen: state, command, launch and up-time, and what the start-up is doing."""

import time
from collections.abc import Sequence

from textual.content import Content

from vllm_probes.events import ProgressChanged, StopRequested
from vllm_probes.model import AttemptModel
from vllm_probes.rows import DebugSetting
from vllm_tui.format import (
    STATE_LOOKS,
    UNKNOWN,
    bar,
    clock,
    duration,
    plural,
    printable,
    short_command,
    size,
    state_word,
)
from vllm_tui.situation import Situation
from vllm_tui.widgets.rows import Panel, joined, spread

BAR_WIDTH = 20
FLOWS_BYTES_PER_S = 1e6
LIMIT_NAMES = {"kv_cache": "KV cache", "api_server_cpu": "API server CPU", "engine_cpu": "EngineCore CPU"}
STEPS = ("SIGINT", "SIGTERM", "SIGKILL")


class Header(Panel):
    """One row, and a second one while there is something to tell about what vLLM is doing."""

    counts = True

    def rows(self, width: int) -> list[Content]:
        situation = self._situation
        activity, stacks = activity_row(situation), stacks_mark(situation.attempt)
        if activity is None:
            return [title(situation, stacks, width)]
        return [title(situation, Content(""), width), beside(activity, stacks, width)]

    def show(self, situation: Situation) -> None:
        super().show(situation)
        tooltip = "\n".join(setting_line(setting) for setting in situation.model.debug_settings)
        if str(self.tooltip or "") != tooltip:
            self.tooltip = Content(tooltip) if tooltip else None


def title(situation: Situation, stacks: Content, width: int) -> Content:
    """Nothing gives way to the mark of stacks: it is left out first."""
    left, right = title_left(situation), title_right(situation, stacks)
    fits = left.cell_length + right.cell_length < width
    return spread(left, right if fits else title_right(situation, Content("")), width)


def beside(activity: Content, stacks: Content, width: int) -> Content:
    """The same of the second row."""
    fits = stacks and activity.cell_length + stacks.cell_length + 1 < width
    return spread(activity, Content.assemble(stacks, " "), width) if fits else activity


def title_left(situation: Situation) -> Content:
    """`● SERVING  vllm serve Llama-3.1-70B -tp 8`."""
    return Content.assemble(" ", state_mark(situation), "  ", short_command(situation.model.command))


def state_mark(situation: Situation) -> Content:
    """The state as symbol and word."""
    if situation.connection == "lost":
        return Content.styled("✖ KEEPER LOST", "bold $text-error")
    if situation.attempt is None:
        return Content.styled("◌ CONNECTING", "bold $text-accent")
    state = situation.model.state
    symbol, style = STATE_LOOKS[state]
    return Content.styled(f"{symbol} {state_word(state)}", f"bold {style}")


def title_right(situation: Situation, stacks: Content) -> Content:
    """`REPLAY 4x 12:41:05 · attempt 2 · eager ✓ · 2 debug settings · stacks: py-spy   up 0:12:41`."""
    attempt = situation.attempt
    if attempt is None:
        return Content("")
    up = Content.assemble(("up " if situation.command_runs else "ran ", "dim"), clock(situation.up_s or 0.0), " ")
    launch = [replay_mark(situation), Content(attempt_name(attempt)), *lever_marks(attempt)]
    launch.append(extra_settings(situation.model.debug_settings))
    if situation.readonly and not situation.pace:
        launch.append(Content.styled("read-only", "$text-warning"))
    launch.append(stacks)
    return Content.assemble(joined(launch), "   ", up)


def attempt_name(attempt: AttemptModel) -> str:
    pid = attempt.launch.attached_pid
    return f"attempt {attempt.number}" if pid is None else f"attached to {pid}"


def replay_mark(situation: Situation) -> Content:
    pace = situation.pace
    if pace is None:
        return Content("")
    how = "over" if pace.over else "paused" if pace.paused else f"{pace.speed:g}x"
    at = time.strftime("%H:%M:%S", time.localtime(situation.model.time))
    return Content.styled(f"REPLAY {how} {at}", "bold $text-accent")


def lever_marks(attempt: AttemptModel) -> list[Content]:
    """Each lever of the launch, and whether it reached vLLM's processes."""
    marks = []
    for lever in attempt.launch.levers:
        checked = attempt.arrived.get(lever)
        if checked is None:
            marks.append(Content.styled(lever, "bold"))
        elif checked.arrived:
            marks.append(Content.assemble((lever, "bold"), (" ✓", "$text-success")))
        else:
            marks.append(Content.styled(f"{lever} ✗ not in vLLM", "bold $text-error"))
    return marks


def extra_settings(settings: Sequence[DebugSetting]) -> Content:
    """How many debug settings are in force that no lever of ours put there."""
    count = sum(setting.origin != "lever" for setting in settings)
    return Content.styled(plural(count, "debug setting"), "$text-warning") if count else Content("")


def stacks_mark(attempt: AttemptModel | None) -> Content:
    """`stacks: py-spy or signal`; louder where py-spy cannot read them; empty where that is not known."""
    rungs = attempt.rungs if attempt and not attempt.ended else None
    if rungs is None:
        return Content("")
    if rungs.py_spy:
        return Content.styled("stacks: py-spy or signal" if rungs.hook else "stacks: py-spy", "dim")
    return Content.styled("stacks: signal only" if rungs.hook else "stacks: kernel only", "$text-warning")


def setting_line(setting: DebugSetting) -> str:
    return f"{printable(setting.setting)}  ({setting.origin}): {setting.cost}"


def activity_row(situation: Situation) -> Content | None:
    """What the start-up or the stop is at; None while there is nothing to say."""
    attempt = situation.attempt
    if attempt is None:
        return None
    if situation.holds:
        since = attempt.tree_ended.mono if attempt.tree_ended else situation.now
        return Content(f" waits to start again for {duration(situation.now - since)}, x calls it off, R starts it now")
    if attempt.ended is not None:
        return None
    if not attempt.stop and attempt.state in ("idle", "serving", "running"):
        return resting_row(attempt)
    if attempt.stop:
        return Content(f" {stop_sentence(situation, attempt, attempt.stop)}")
    since = attempt.phase.mono if attempt.phase else attempt.state_since_mono
    label = attempt.phase.label if attempt.phase and attempt.state != "stopping" else attempt.state_reason
    label = label or ("shuts down" if attempt.state == "stopping" else "no step of the start-up in the log yet")
    parts = [
        Content(printable(label)),
        progress_mark(attempt.progress) if attempt.progress else Content(""),
        flow_mark(situation),
        Content.styled(f"for {duration(situation.now - since)}", "dim"),
    ]
    return Content.assemble(" ", joined(parts, "  "))


def resting_row(attempt: AttemptModel) -> Content | None:
    """Why a running server is as it is, and what keeps it from being faster."""
    if (limit := attempt.limit) and limit.limit:
        name = LIMIT_NAMES.get(limit.limit, limit.limit.replace("_", " "))
        evidence = ", ".join(f"{one.signal} {one.value}" for one in limit.evidence)
        texts = [Content(printable(limit.summary.rstrip("."))), Content.styled(printable(evidence), "dim")]
        return Content.assemble(" limited by ", (name, "bold $text-accent"), "  ", joined(texts))
    return Content.assemble(" ", (attempt.state_reason, "dim")) if attempt.state_reason else None


def stop_sentence(situation: Situation, attempt: AttemptModel, stop: StopRequested) -> str:
    """What was sent to whom, and what comes next."""
    if stop.kill or not attempt.signals:
        wish = "SIGKILL was asked for" if stop.kill else "asked to stop"
        return f"{wish} {duration(situation.now - stop.mono)} ago"
    last = attempt.signals[-1]
    sent = f"{last.signal} sent to {plural(len(last.processes), 'process')}"
    ago = f"{duration(situation.now - last.mono)} ago"
    if last.signal not in STEPS[:-1]:
        return f"{sent} {ago}"
    hint = "" if situation.readonly or situation.pace else ", x at once"
    return f"{sent} {ago}; {STEPS[STEPS.index(last.signal) + 1]} follows if they stay{hint}"


def flow_mark(situation: Situation) -> Content:
    """`12.3G so far, 210M/s`, or how fast the run reads and from where; empty where nothing flows."""
    host = situation.model.host
    if host is None or situation.model.state not in ("downloading", "loading"):
        return Content("")
    if situation.model.state == "downloading" and host.download_bytes is not None:
        rate = host.download_bytes_per_s
        return Content(f"{size(host.download_bytes)} so far, {UNKNOWN if rate is None else size(int(rate))}/s")
    if (host.model_read_bytes_per_s or 0.0) < FLOWS_BYTES_PER_S:
        return Content("")
    where = f" from {printable(host.model_filesystem)}" if host.model_filesystem else ""
    return Content(f"reads {size(int(host.model_read_bytes_per_s or 0))}/s{where}")


def progress_mark(progress: ProgressChanged) -> Content:
    """`████████░░░░  62 %  5 of 8  0:41 left`."""
    if not progress.total > 0:
        return Content("")
    fraction = min(1.0, progress.done / progress.total)
    is_known = progress.eta is not None and any(char.isdigit() for char in progress.eta)
    left = f"  {printable(progress.eta or '')} left" if is_known else ""
    counts = f"  {progress.done:g} of {progress.total:g}{left}"
    return Content.assemble((bar(fraction, BAR_WIDTH), "$text-primary"), f" {fraction:4.0%}", (counts, "dim"))
