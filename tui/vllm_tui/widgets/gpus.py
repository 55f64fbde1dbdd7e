"""The GPUs: one a row with its memory, work, power and the rank that lives there."""

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content

from vllm_probes.gpus import Resident, residents, visible_settings, visible_to_run
from vllm_probes.rows import GpuCard, GpuRow
from vllm_tui.format import BLOCKS, UNKNOWN, bar, duration, plural, printable, size
from vllm_tui.situation import Situation
from vllm_tui.widgets.rows import Panel, cell, joined, rule

GIB = 1 << 30
BAR_WIDTH = 8
TWO_COLUMNS_FROM = 100
FIGURES_WIDTH = 42
MAX_RESIDENT_WIDTH = 22
MIN_HISTORY_WIDTH = 4
LOST_STYLE = "bold $text-error"
HISTORY_STEP_S = 5.0
STALE_AFTER_S = 6.0
IDLE_PERCENT, BUSY_PERCENT = 5.0, 90.0
HOT_C = 85.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """What one row is made of."""

    card: GpuCard
    row: GpuRow
    residents: Sequence[Resident]
    history: Sequence[tuple[float, float]]
    odd: bool
    """It does nothing while the others are busy."""


class GpuPanel(Panel):
    """A table, in two columns where one is wide enough; no rows where there is no GPU."""

    def rows(self, width: int) -> list[Content]:
        gpus = shown(self._situation)
        if not gpus:
            return []
        cell_width = column_width(width, len(gpus))
        names_width = resident_width(gpus, cell_width)
        cells = [gpu_row(gpu, self._situation.now, cell_width, names_width) for gpu in gpus]
        rows = [rule(title(self._situation, gpus), width), *in_columns(cells, width)]
        hidden = len(self._situation.model.gpus.cards) - len(gpus)
        return [*rows, Content.styled(f"   + {hidden} not visible to this run", "dim")] if hidden else rows


class GpuSummary(Panel):
    """The same in one row, for a screen that has no room for a table."""

    def rows(self, width: int) -> list[Content]:
        gpus = shown(self._situation)
        if not gpus:
            return []
        parts = [
            Content.assemble((plural(len(gpus), "GPU"), "bold"), " ", "".join(map(work_block, gpus))),
            Content(span([gpu.row.busy_percent for gpu in gpus], " %")),
            Content(fullest(gpus)),
            Content(span([gpu.row.power_w for gpu in gpus], " W")),
            Content(span([gpu.row.temperature_c for gpu in gpus], " °C")),
        ]
        remarks = [
            Content.styled(f"{gpu.card.index}: {text}", style) for gpu in gpus for text, style in [remark(gpu)] if text
        ]
        parts = [age(self._situation), *remarks, *parts] if remarks else [age(self._situation), *parts]
        return [Content.assemble(" ", joined(parts, "  ")).truncate(width, ellipsis=True)]


def shown(situation: Situation) -> list[Gpu]:
    """The GPUs that the run may use, in the order of their numbers."""
    model = situation.model.gpus
    living = residents(model, situation.model.processes)
    rows = [(model.cards[index], model.rows[index]) for index in _visible(situation) if index in model.rows]
    odd = odd_ones([row for _, row in rows])
    return [
        Gpu(card, row, living.get(card.index, []), model.histories.get(card.index, []), card.index in odd)
        for card, row in rows
    ]


def _visible(situation: Situation) -> list[int]:
    return visible_to_run(situation.model.processes, situation.model.gpus.cards)


def odd_ones(rows: Sequence[GpuRow]) -> set[int]:
    """Those few that do nothing while most are busy."""
    known = {row.index: row.busy_percent for row in rows if row.busy_percent is not None}
    idle = {index for index, busy in known.items() if busy < IDLE_PERCENT}
    busy = {index for index, busy in known.items() if busy >= BUSY_PERCENT}
    return idle if len(idle) < len(busy) and len(idle) + len(busy) == len(known) else set()


# --- the title ------------------------------------------------------------------------------------------------------


def title(situation: Situation, gpus: Sequence[Gpu]) -> Content:
    """`GPUs · 8 × H100 80GB HBM3 · CUDA_VISIBLE_DEVICES=0,1`."""
    settings = " and ".join(visible_settings(situation.model.processes))
    parts = [
        Content.styled("GPUs", "bold"),
        Content.styled(kinds([gpu.card for gpu in gpus]), "dim"),
        Content.styled(f"CUDA_VISIBLE_DEVICES={printable(settings)}" if settings else "", "dim"),
        age(situation),
    ]
    return joined(parts)


def kinds(cards: Sequence[GpuCard]) -> str:
    """What they are: `8 × H100 80GB HBM3`."""
    names = list(dict.fromkeys(printable(card.name or "unknown").removeprefix("NVIDIA ") for card in cards))
    return f"{len(cards)} × {names[0]}" if len(names) == 1 else f"{len(cards)} of {len(names)} kinds"


def age(situation: Situation) -> Content:
    """How old the figures are, where they are not of now."""
    model = situation.model.gpus
    if model.answered_mono is None or (not situation.command_runs and not situation.holds):
        return Content("")
    age_s = situation.now - model.answered_mono
    if model.status == "silent":
        return Content.styled(f"▲ the driver has not answered for {duration(age_s)}", "bold $text-error")
    return Content.styled(f"as of {duration(age_s)} ago", "$text-warning") if age_s > STALE_AFTER_S else Content("")


# --- the rows -------------------------------------------------------------------------------------------------------


def column_width(width: int, count: int) -> int:
    return (width - 1) // 2 if width >= TWO_COLUMNS_FROM and count > 1 else width


def in_columns(cells: Sequence[Content], width: int) -> list[Content]:
    """Side by side where they are half as wide, the first half on the left."""
    if len(cells) < 2 or width < TWO_COLUMNS_FROM:
        return list(cells)
    half = (len(cells) + 1) // 2
    right = [*cells[half:], Content("")]
    return [Content.assemble(left, " ", other) for left, other in zip(cells[:half], right, strict=False)]


def resident_width(gpus: Sequence[Gpu], width: int) -> int:
    """Cells for the names of those who live there, the same in every row; 0 where there is no room."""
    longest = max(len(resident_names(gpu.residents)) for gpu in gpus)
    return min(longest, max(0, width - FIGURES_WIDTH), MAX_RESIDENT_WIDTH)


def gpu_row(gpu: Gpu, now: float, width: int, names_width: int) -> Content:
    """` ▲ 3  ███████░ 71/80G   0%  82W 41°C  Worker_TP3  idle, others busy`, of exactly `width` cells."""
    text, style = remark(gpu)
    mark = {"": " ", LOST_STYLE: "✖"}.get(style, "▲")
    head = Content.assemble((f" {mark} ", style), (f"{gpu.card.index:<2}", "bold"), " ")
    if gpu.row.error:
        return Content.assemble(head, (text, style)).truncate(width, ellipsis=True, pad=True)
    row = Content.assemble(head, memory(gpu), " ", work(gpu, style), " ", power(gpu.row), temperature(gpu.row))
    if names_width:
        row = Content.assemble(row, "  ", cell(resident_names(gpu.residents), names_width))
    room = width - row.cell_length - 2
    if room >= MIN_HISTORY_WIDTH:
        brief = text if len(text) <= room else text.partition(",")[0]
        row = Content.assemble(row, "  ", cell(brief, room, style) if text else history(gpu.history, now, room))
    return row.truncate(width, ellipsis=True, pad=True)


def remark(gpu: Gpu) -> tuple[str, str]:
    """(what is wrong with it, how it looks); empty where all is well."""
    if gpu.row.error:
        return printable(gpu.row.error), LOST_STYLE
    if gpu.odd:
        return "idle, others busy", "bold $text-warning"
    if gpu.row.throttle:
        return f"slow: {', '.join(map(printable, gpu.row.throttle))}", "$text-warning"
    return "", ""


def memory(gpu: Gpu) -> Content:
    used, total = gpu.row.used_bytes, gpu.card.total_bytes
    text = f"{UNKNOWN if used is None else f'{used / GIB:.0f}'}/{UNKNOWN if total is None else f'{total / GIB:.0f}'}G"
    blocks = bar(used / total, BAR_WIDTH) if used is not None and total else " " * BAR_WIDTH
    return Content.assemble((blocks, "$text-primary"), " ", cell(text, 8))


def work(gpu: Gpu, style: str) -> Content:
    return cell(figure(gpu.row.busy_percent, "%"), 4, style or "bold", right=True)


def power(row: GpuRow) -> Content:
    return cell(figure(row.power_w, "W"), 5, right=True)


def temperature(row: GpuRow) -> Content:
    hot = "bold $text-warning" if row.temperature_c is not None and row.temperature_c >= HOT_C else ""
    return cell(figure(row.temperature_c, "°C"), 6, hot, right=True)


def figure(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:.0f}{unit}"


def resident_names(ones: Sequence[Resident]) -> str:
    """`Worker_TP3`; with `~` where the driver's pids could not be compared."""
    return ", ".join(f"{'~' if one.inferred else ''}{printable(one.row.process)}" for one in ones)


def history(told: Sequence[tuple[float, float]], now: float, width: int) -> Content:
    """How busy it was, a cell for each five seconds, the last one on the right."""
    end = now - now % HISTORY_STEP_S
    times = [end - HISTORY_STEP_S * back for back in range(width - 1, -1, -1)]
    return Content.styled("".join(block(busy_at(told, at)) for at in times), "$text-primary")


def busy_at(told: Sequence[tuple[float, float]], mono: float) -> float | None:
    """What was last told then; None before the first."""
    return next((busy for at, busy in reversed(told) if at <= mono), None)


def block(busy_percent: float | None) -> str:
    return " " if busy_percent is None else BLOCKS[max(1, round(busy_percent / 100 * 8))]


def work_block(gpu: Gpu) -> str:
    return "✖" if gpu.row.error else block(gpu.row.busy_percent)


def span(values: Sequence[float | None], unit: str) -> str:
    """`97-100 %`."""
    known = [value for value in values if value is not None]
    low, high = (f"{bound(known):.0f}" for bound in (min, max)) if known else (UNKNOWN, UNKNOWN)
    return f"{low}{unit}" if low == high else f"{low}-{high}{unit}"


def fullest(gpus: Sequence[Gpu]) -> str:
    """Memory of the GPU that has most in use."""
    used = [(gpu.row.used_bytes, gpu.card.total_bytes) for gpu in gpus if gpu.row.used_bytes is not None]
    if not used:
        return UNKNOWN
    most, total = max(used, key=lambda pair: pair[0])
    return f"{size(most)} of {size(total)}" if total else size(most)
