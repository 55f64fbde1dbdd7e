"""The processes of the tree: vLLM's own one a row, their helpers folded into one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.content import Content

from vllm_probes.rows import ProcessRow, Role
from vllm_tui.format import plural, printable, process_state, size
from vllm_tui.widgets.rows import Panel, cell, joined, rule

MAIN_ROLES: tuple[Role, ...] = ("command", "api_server", "coordinator", "engine_core", "worker")
MAX_ROWS = 24
STUCK_STATES = "DTtZ"
BUSY_PERCENT = 50.0
INDENT = "   "
PID_WIDTH, STATE_WIDTH = 8, 10
WIDE = 90


class ProcessTable(Panel):
    """A table as wide as the panel; no rows while nothing runs."""

    def rows(self, width: int) -> list[Content]:
        shown, folded = split(list(self._situation.model.processes.values()))
        if not shown:
            return []
        title = Content.assemble(("Processes", "bold"), (f" · {len(shown) + len(folded)}", "dim"))
        rows = [rule(title, width), heading(width), *(table_row(row, width) for row in shown)]
        if folded:
            rows.append(folded_row(folded, width))
        if any(row.foreign for row in shown):
            rows.append(Content.styled(f"{INDENT}* not started by us: shown, never signalled", "dim"))
        return rows


class ProcessSummary(Panel):
    """The same in one row, for a screen that has no room for a table."""

    def rows(self, width: int) -> list[Content]:
        shown, folded = split(list(self._situation.model.processes.values()))
        if not shown:
            return []
        parts = [summary(group) for group in groups(shown)]
        if folded:
            parts.append(Content.styled(f"+{len(folded)}", "dim"))
        return [Content.assemble(" ", joined(parts, "  ")).truncate(width, ellipsis=True)]


def split(rows: Sequence[ProcessRow]) -> tuple[list[ProcessRow], list[ProcessRow]]:
    """(the processes that matter in their order, the others); where vLLM is not recognised, by use of the CPU."""
    main = sorted((row for row in rows if row.role in MAIN_ROLES), key=_order)
    if not any(row.role != "command" for row in main):
        main += sorted((row for row in rows if row.role not in MAIN_ROLES), key=lambda row: (row.started, row.pid))
    shown = main[:MAX_ROWS]
    pids = {row.pid for row in shown}
    return shown, [row for row in rows if row.pid not in pids]


def _order(row: ProcessRow) -> tuple[int, int, int]:
    return MAIN_ROLES.index(row.role), -1 if row.rank is None else row.rank, row.pid


@dataclass(frozen=True, slots=True)
class Column:
    """One column of numbers: its title, its cells, and the text for some processes together."""

    title: str
    width: int
    text: Callable[[Sequence[ProcessRow]], str]


CPU = Column("CPU %", 8, lambda rows: f"{sum(row.cpu_percent for row in rows):.0f}")
MEMORY = Column("memory", 8, lambda rows: size(sum(row.rss_bytes for row in rows)))
THREADS = Column("threads", 9, lambda rows: f"{sum(row.thread_count for row in rows)}")
READ = Column("read", 9, lambda rows: size(sum(row.read_bytes for row in rows)))
WRITTEN = Column("written", 9, lambda rows: size(sum(row.written_bytes for row in rows)))


def columns(width: int) -> tuple[int, list[Column]]:
    """(cells for the name, the columns of numbers that there is room for)."""
    figures = [CPU, MEMORY, *([THREADS, READ, WRITTEN] if width >= WIDE else [])]
    used = len(INDENT) + PID_WIDTH + STATE_WIDTH + sum(column.width for column in figures)
    return max(12, min(40, width - used)), figures


def heading(width: int) -> Content:
    name_width, figures = columns(width)
    return Content.assemble(
        INDENT,
        cell("name", name_width),
        cell("pid", PID_WIDTH, right=True),
        cell("  state", STATE_WIDTH),
        *(cell(column.title, column.width, right=True) for column in figures),
    ).stylize("dim")


def table_row(row: ProcessRow, width: int) -> Content:
    name_width, figures = columns(width)
    stuck = "bold $text-warning" if row.state[:1] in STUCK_STATES else ""
    busy = "bold" if row.cpu_percent >= BUSY_PERCENT else ""
    name = printable(row.process) + (" *" if row.foreign else "")
    return Content.assemble(
        INDENT,
        cell(name, name_width - 1, stuck or "bold"),
        " ",
        cell(str(row.pid), PID_WIDTH, "dim", right=True),
        cell(f"  {process_state(row.state[:1])}", STATE_WIDTH, stuck or "dim"),
        *(cell(column.text([row]), column.width, busy if column is CPU else "", right=True) for column in figures),
    )


def folded_row(rows: Sequence[ProcessRow], width: int) -> Content:
    """`+ 4 others, 3 of them compilers`, with their sums."""
    name_width, figures = columns(width)
    compilers = sum(row.role == "compiler" for row in rows)
    text = f"+ {plural(len(rows), 'other')}{f', {compilers} of them compilers' if compilers else ''}"
    return Content.assemble(
        INDENT,
        cell(text, name_width + PID_WIDTH + STATE_WIDTH),
        *(cell(column.text(rows), column.width, right=True) for column in figures),
    ).stylize("dim")


def groups(rows: Sequence[ProcessRow]) -> list[list[ProcessRow]]:
    """Workers together unless one of them stands out by its state; everything else alone."""
    workers = [row for row in rows if row.role == "worker" and row.state[:1] not in STUCK_STATES]
    alone = [row for row in rows if row not in workers]
    return [*([row] for row in alone), workers] if workers else [[row] for row in alone]


def summary(rows: Sequence[ProcessRow]) -> Content:
    """`EngineCore 99 %`, or `8 workers 98-100 %`, or `Worker_TP3 stopped`."""
    first = rows[0]
    if first.state[:1] in STUCK_STATES:
        return Content.styled(f"{printable(first.process)} {process_state(first.state[:1])}", "bold $text-warning")
    name = printable(first.process) if len(rows) == 1 else f"{len(rows)} workers"
    low, high = (f"{bound(row.cpu_percent for row in rows):.0f}" for bound in (min, max))
    use = f"{low} %" if low == high else f"{low}-{high} %"
    return Content.assemble((name, "bold"), f" {use}")
