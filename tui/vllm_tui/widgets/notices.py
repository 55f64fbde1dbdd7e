"""Lines below the header that are there only when something is wrong: leftovers, a lost keeper, a full disk."""

from collections.abc import Iterator

from textual.content import Content

from vllm_probes.events import ProbeFinished
from vllm_probes.gpus import strangers, visible_to_run
from vllm_probes.judges.gpu_signatures import HELD_BYTES
from vllm_probes.judges.probing import meaning, served
from vllm_probes.model import AttemptModel
from vllm_probes.rows import Hold
from vllm_tui import actions
from vllm_tui.format import duration, ending, plural, printable, program_name, size
from vllm_tui.situation import Situation, lasted_s
from vllm_tui.widgets.rows import Panel, hanging

FEW_FREE_BYTES = 1 << 30
WARN_BELOW_S = 2 * 3600.0
PROBE_SHOWN_S = 60.0
MAX_ROWS = 8
LOOKS = {
    "error": ("✖", "bold $text-error"),
    "warning": ("▲", "$text-warning"),
    "info": ("•", "$text-accent"),
}


class Notices(Panel):
    """Every notice, wrapped to the width, the gravest first."""

    def rows(self, width: int) -> list[Content]:
        rows = [row for severity, text in notices(self._situation) for row in notice_rows(severity, text, width)]
        return rows[:MAX_ROWS]


def notice_rows(severity: str, text: str, width: int) -> list[Content]:
    """One notice: its symbol, then the text wrapped beside it."""
    symbol, style = LOOKS[severity]
    return hanging(Content.styled(f" {symbol} ", f"bold {style}"), Content.styled(printable(text), style), width)


def notices(situation: Situation) -> Iterator[tuple[str, str]]:
    """(severity, sentence) of everything that the user should know now."""
    if situation.connection == "lost":
        yield "error", lost_sentence(situation)
    for hold in situation.holds:
        yield "warning", f"Waits for {hold_sentence(hold)}"
    if attempt := situation.attempt:
        yield from ending_notices(attempt, actions.may_change(situation) is None and not situation.holds)
        yield from probe_notices(situation, attempt)
        yield from (("info", answer.said) for answer in attempt.stall_answers if answer.ok)
        yield from lever_notices(attempt)
        yield from file_notices(situation, attempt)
    yield from gpu_notices(situation)
    yield from stranger_notices(situation)
    yield from disk_notices(situation)
    yield from trouble_notices(situation)
    if count := situation.model.unknown_line_count:
        yield "info", f"{plural(count, 'line')} of the recording could not be read by this version."


def lost_sentence(situation: Situation) -> str:
    if situation.attempt is None:
        return "No keeper answers; keeper.log in the session folder says why. Trying again…"
    alive = f"; {subject(situation)} itself runs on" if situation.alive else ""
    return f"The keeper of this session is gone{alive}. Looking for a new keeper…"


def subject(situation: Situation) -> str:
    """What this session is about, by name."""
    attempt = situation.attempt
    return "vLLM" if attempt is None or attempt.launch.expects_vllm else program_name(attempt.launch.command)


def hold_sentence(hold: Hold) -> str:
    """`port 8000: python (4242, alice); kill 4242 ends it.`"""
    if hold.pid is None:
        return f"{hold.what}; who holds it cannot be seen from here."
    names = f"{hold.process} ({', '.join(filter(None, (str(hold.pid), hold.user)))})"
    if hold.session:
        return f"{hold.what}: {names} of your session {hold.session}."
    return f"{hold.what}: {names}; {hold.hint}."


def ending_notices(attempt: AttemptModel, may_act: bool) -> Iterator[tuple[str, str]]:
    """How the command ended, what it left behind, and, where this view may act, what can be done."""
    if attempt.leftovers:
        yield "error", leftover_sentence(attempt, may_act)
    elif attempt.ended and (attempt.state == "crashed" or attempt.ended.error):
        yield "error", ending_sentence(attempt, may_act)
    elif attempt.ended:
        yield "info", ending_sentence(attempt, may_act)
    elif attempt.state == "crashed":
        yield "error", f"vLLM has crashed, its command still runs. {attempt.state_reason or ''}"
    if attempt.tree_ended and attempt.tree_ended.survivors:
        names = ", ".join(f"{ref.process} ({ref.pid}, {ref.state})" for ref in attempt.tree_ended.survivors)
        yield "error", f"Not even SIGKILL ended {names}; a process in state D waits for its driver or disk."
    if attempt.tree_ended and attempt.tree_ended.left_shm:
        yield "info", f"Left in /dev/shm: {' '.join(attempt.tree_ended.left_shm)}"


def leftover_sentence(attempt: AttemptModel, may_act: bool) -> str:
    """`APIServer was killed (SIGKILL); 3 of its processes still run: …`."""
    assert attempt.ended is not None
    how = ending(attempt.ended.code, attempt.ended.signal)
    count = len(attempt.leftovers)
    names = ", ".join(f"{ref.process} ({ref.pid})" for ref in attempt.leftovers[:4]) + (" …" if count > 4 else "")
    runs, them = ("process still runs", "it") if count == 1 else ("processes still run", "them")
    hint = f" x ends {them}, R ends {them} and starts again." if may_act else ""
    return f"{command_name(attempt)} {how}; {count} of its {runs}: {names}.{hint}"


def ending_sentence(attempt: AttemptModel, may_act: bool) -> str:
    """`APIServer ended with code 1 after 12 s. R starts it again.`."""
    assert attempt.ended is not None
    if attempt.ended.error:
        return attempt.ended.error
    was_stopped = attempt.stop and attempt.state != "crashed"
    how = "was stopped" if was_stopped else ending(attempt.ended.code, attempt.ended.signal)
    after = duration(lasted_s(attempt, attempt.ended))
    return f"{command_name(attempt)} {how} after {after}.{' R starts it again, q leaves.' if may_act else ''}"


def command_name(attempt: AttemptModel) -> str:
    """The command's process by the name that the process table gave it."""
    argv = attempt.launch.command
    if attempt.launch.expects_vllm and ("serve" in argv or any("api_server" in word for word in argv)):
        return "APIServer"
    return program_name(argv)


def probe_notices(situation: Situation, attempt: AttemptModel) -> Iterator[tuple[str, str]]:
    """What the latest probe came to; later it stands among the details."""
    probe = attempt.probe
    if probe and situation.now - probe.mono < PROBE_SHOWN_S:
        severity = "info" if served(probe.lights) else "error"
        yield severity, f"Probe: {meaning(probe.lights)} {probe_text(probe)}"


def probe_text(probe: ProbeFinished) -> str:
    """`health ok 0.002 s · metrics ok 0.004 s · probe no answer within 10 s`."""
    parts = (
        f"{light.name} {light.said if light.outcome != 'ok' else f'ok {light.latency_s or 0.0:.3f} s'}"
        for light in probe.lights
    )
    return " · ".join(parts)


def lever_notices(attempt: AttemptModel) -> Iterator[tuple[str, str]]:
    """Levers that the launch lost on its way."""
    for checked in attempt.arrived.values():
        if not checked.arrived:
            yield "warning", f"{checked.lever} did not reach vLLM ({checked.where})."


def file_notices(situation: Situation, attempt: AttemptModel) -> Iterator[tuple[str, str]]:
    """What a lever has been pulled for."""
    for file in situation.model.files:
        if file.attempt == attempt.number:
            yield "info", f"A GPU core dump is there: {file.path} ({size(file.size_bytes)})."


def gpu_notices(situation: Situation) -> Iterator[tuple[str, str]]:
    """A driver that cannot be used or does not answer, and what it has reported during this attempt."""
    gpus, attempt = situation.model.gpus, situation.attempt
    if gpus.reason and (gpus.status == "failed" or (gpus.status == "silent" and not gpus.rows)):
        yield "warning", gpus.reason
    latest = {fault.index: fault for fault in gpus.faults if attempt and fault.attempt == attempt.number}
    for index, fault in sorted(latest.items()):
        ago = duration(situation.now - fault.mono)
        yield (
            "error",
            f"GPU {index} reported Xid {fault.xid}{f' ({fault.meaning})' if fault.meaning else ''} {ago} ago.",
        )


def stranger_notices(situation: Situation) -> Iterator[tuple[str, str]]:
    """Memory of a GPU of this run that processes of others have: the next allocation may fail."""
    model = situation.model
    if not situation.command_runs:
        return
    others = strangers(model.gpus, model.processes)
    for index in visible_to_run(model.processes, model.gpus.cards):
        holders = [one for one in others.get(index, ()) if (one.used_bytes or 0) >= HELD_BYTES]
        if holders:
            names = ", ".join(f"{size(one.used_bytes or 0)} {one.process} ({one.pid}, {one.user})" for one in holders)
            yield "warning", f"GPU {index} has memory in use that is not of this run: {names}."


def disk_notices(situation: Situation) -> Iterator[tuple[str, str]]:
    """A disk that fills up, whoever fills it; a full disk kills vLLM at start and swallows every later line."""
    disk = situation.model.disk
    if disk is None:
        return
    if disk.full_in_s is not None and disk.full_in_s < WARN_BELOW_S:
        forecast = f"full in {duration(disk.full_in_s)} at this rate ({size(disk.free_bytes)} free)"
        yield "warning", f"The disk of this session fills up: {forecast}."
    elif disk.free_bytes < FEW_FREE_BYTES:
        yield "warning", f"The disk of this session has only {size(disk.free_bytes)} left; a full one stops vLLM's log."
    if disk.hole_bytes:
        yield "info", f"{size(disk.hole_bytes)} were cut out of the middle of the log to bound it."


def trouble_notices(situation: Situation) -> Iterator[tuple[str, str]]:
    """The latest trouble of our own; the others are behind a key."""
    troubles = [
        trouble
        for trouble in situation.model.troubles
        if trouble.severity != "info" and trouble.attempt in (0, situation.attempt.number if situation.attempt else 0)
    ]
    if troubles:
        more = f" (D shows {len(troubles) - 1} more)" if len(troubles) > 1 else ""
        yield troubles[-1].severity, f"{troubles[-1].what} {troubles[-1].hint}{more}"
