"""Everything about the launch that the main screen has only a word for."""

import shlex
import time
from collections.abc import Iterator, Sequence

from textual.binding import Binding
from textual.content import Content

from vllm_probes.events import RungsChecked
from vllm_probes.judges.probing import meaning
from vllm_probes.launch.levers import load_levers, unset_line
from vllm_probes.launch.takeover import has_secrets, stop_command
from vllm_probes.model import AttemptModel
from vllm_probes.rows import Change, GpuCard, GpuRow
from vllm_tui.format import UNKNOWN, duration, ending, plural, size, state_word
from vllm_tui.screens.page import Page
from vllm_tui.situation import Situation, lasted_s
from vllm_tui.takeover import takeover_line, useful_levers
from vllm_tui.widgets.host import part
from vllm_tui.widgets.rows import entry


class DetailsPage(Page):
    """Command, changes, debug settings with their costs, attempts, GPUs, host and troubles."""

    BINDINGS = [Binding("u", "copy_unset", "copy unset", show=False)]

    def keys(self) -> Sequence[tuple[str, str]]:
        inherited = unset_line(self._situation.model.debug_settings)
        return (("u", "copy the unset line"),) if inherited else ()

    def page_title(self) -> Content:
        return Content.styled("Details", "bold")

    def page_rows(self, width: int) -> list[Content]:
        sections = (
            *(launch_rows, takeover_rows, setting_rows, attempt_rows, probe_rows),
            *(limit_rows, gpu_rows, host_rows, trouble_rows),
        )
        return [row for section in sections for row in section(self._situation, width)]

    def action_copy_unset(self) -> None:
        line = unset_line(self._situation.model.debug_settings)
        if line:
            self.app.copy_to_clipboard(line)
        self.app.notify(f"Copied: {line}" if line else "No debug variable came from the shell.", markup=False)


def heading(text: str) -> list[Content]:
    return [Content(""), Content.styled(f" {text}", "bold")]


def launch_rows(situation: Situation, width: int) -> Iterator[Content]:
    model, attempt = situation.model, situation.attempt
    yield from heading("Launch")[1:]
    command = attempt.launch.command if attempt else model.command
    yield from entry("command", shlex.join(command), width)
    yield from entry("folder", model.cwd, width)
    yield from entry("session", model.session, width)
    yield from entry("host", model.node, width)
    for change in attempt.launch.changes if attempt else []:
        yield from entry("changed", change_text(change), width)
    if attempt and attempt.rungs:
        yield from entry("stacks", rungs_text(attempt.rungs), width)


def change_text(change: Change) -> str:
    """`CUDA_LAUNCH_BLOCKING: not set → 1`."""
    if change.before is None and change.after is not None:
        return f"+ {change.name} {change.after}".rstrip()
    if change.after is None:
        return f"- {change.name} {change.before or ''}".rstrip()
    return f"~ {change.name}: {change.before} → {change.after}"


def rungs_text(rungs: RungsChecked) -> str:
    """What the word in the header stands for."""
    if rungs.py_spy:
        return "py-spy reads them" + (", else processes tell them when they get SIGUSR2" if rungs.hook else "")
    if rungs.hook:
        return "py-spy cannot read them; processes tell them when they get SIGUSR2, while they stand still"
    return "nobody can read them: only what the kernel says of each process is known"


def takeover_rows(situation: Situation, width: int) -> Iterator[Content]:
    """How to stop a run that we did not start, and how to start it again from here."""
    launch = situation.attempt.launch if situation.attempt else None
    if launch is None or launch.attached_pid is None:
        return
    yield from heading("Not started by this program")
    if launch.attached_user:
        yield from entry("user", launch.attached_user, width)
    yield from entry("stop it", stop_command(launch.attached_pid, launch.attached_user), width)
    levers = useful_levers(situation)
    if line := takeover_line(situation, levers):
        yield from entry("take it over", line, width)
        for lever in levers:
            yield from entry("", f"{lever}: {load_levers()[lever].gives}", width)
    if has_secrets(launch.command):
        yield from entry("", "*** stands for a secret: type it again", width)


def setting_rows(situation: Situation, width: int) -> Iterator[Content]:
    settings = situation.model.debug_settings
    yield from heading("Debug settings in force")
    if not settings:
        yield Content.styled("   none", "dim")
    for setting in settings:
        yield from entry(setting.origin, f"{setting.setting}: {setting.cost}", width)
    for checked in situation.attempt.arrived.values() if situation.attempt else []:
        mark = "✓ arrived" if checked.arrived else "✗ not in vLLM"
        yield from entry(mark, f"{checked.lever} ({checked.where})", width)
    if line := unset_line(settings):
        yield from entry("turn off", line, width)


def attempt_rows(situation: Situation, width: int) -> Iterator[Content]:
    yield from heading("Attempts")
    for attempt in situation.model.attempts:
        at = time.strftime("%H:%M:%S", time.localtime(attempt.started))
        yield from entry(f"{attempt.number}  {at}", attempt_text(attempt), width)


def attempt_text(attempt: AttemptModel) -> str:
    """`eager · CRASHED · ended with code 1 after 12 s`."""
    parts = [", ".join(attempt.launch.levers) or "as typed", state_word(attempt.state)]
    if attempt.ended:
        how = ending(attempt.ended.code, attempt.ended.signal)
        parts.append(f"{how} after {duration(lasted_s(attempt, attempt.ended))}")
    return " · ".join(parts)


def probe_rows(situation: Situation, width: int) -> Iterator[Content]:
    """The three lights of the latest probe."""
    probe = situation.attempt.probe if situation.attempt else None
    if probe is None:
        return
    at = time.strftime("%H:%M:%S", time.localtime(probe.time))
    yield from heading(f"Probe of {probe.url} at {at}")
    for light in probe.lights:
        took = "" if light.latency_s is None else f", {light.latency_s:.3f} s"
        yield from entry(light.name, f"{light.outcome}: {light.said}{took}", width)
    yield from entry("together", meaning(probe.lights), width)


def limit_rows(situation: Situation, width: int) -> Iterator[Content]:
    """What keeps the run from being faster, with everything that says so."""
    limit = situation.attempt.limit if situation.attempt else None
    if limit is None or limit.limit is None:
        return
    yield from heading("Limited by")
    yield from entry(limit.limit.replace("_", " "), limit.summary, width)
    for one in limit.evidence:
        yield from entry("", f"{one.signal}: {one.value}", width)


def gpu_rows(situation: Situation, width: int) -> Iterator[Content]:
    gpus = situation.model.gpus
    if gpus.status is None:
        return
    yield from heading("GPUs")
    if gpus.driver:
        yield from entry("driver", f"{gpus.driver}, runs CUDA up to {gpus.cuda or UNKNOWN}", width)
    if gpus.reason:
        yield from entry(gpus.status, gpus.reason, width)
    for index, card in sorted(gpus.cards.items()):
        yield from entry(f"GPU {index}", gpu_text(card, gpus.rows.get(index)), width)
    for fault in gpus.faults:
        at = time.strftime("%H:%M:%S", time.localtime(fault.time))
        yield from entry(f"Xid {fault.xid}", f"{at} on GPU {fault.index}: {fault.meaning or 'not a known one'}", width)


def gpu_text(card: GpuCard, row: GpuRow | None) -> str:
    """`NVIDIA H100 80GB HBM3 · GPU-5c1… · limit 700 W · slowed by: hot · pids 411, 412`."""
    parts = [card.name, card.uuid, card.bus_id, "cut into MIG instances" if card.mig else None]
    if card.power_limit_w is not None:
        parts.append(f"limit {card.power_limit_w:.0f} W")
    if row is not None:
        parts += [row.error, f"slowed by: {', '.join(row.throttle)}" if row.throttle else None]
        if row.processes:
            parts.append(f"pids {', '.join(str(process.pid) for process in row.processes)}")
    return " · ".join(part for part in parts if part)


def host_rows(situation: Situation, width: int) -> Iterator[Content]:
    host = situation.model.host
    if host is None:
        return
    yield from heading("Host")
    if host.model_path:
        network = ", over a network" if host.model_is_remote else ""
        yield from entry("model", f"{host.model_path} on {host.model_filesystem or UNKNOWN}{network}", width)
    yield from entry("swap", part(host.swap_used_bytes, host.swap_total_bytes), width)
    limits = [
        f"memory {size(host.cgroup_memory_limit_bytes)}" if host.cgroup_memory_limit_bytes is not None else "",
        f"{host.cgroup_cpu_limit:g} cores" if host.cgroup_cpu_limit is not None else "",
    ]
    yield from entry("cgroup limits", ", ".join(filter(None, limits)) or "none", width)
    if host.oom_kill_count:
        yield from entry("out of memory", f"{plural(host.oom_kill_count, 'process')} killed in this cgroup", width)


def trouble_rows(situation: Situation, width: int) -> Iterator[Content]:
    if situation.model.troubles:
        yield from heading("Troubles of vllm-tui itself")
    for trouble in situation.model.troubles:
        yield from entry(trouble.severity, f"{trouble.what} {trouble.hint}", width)
