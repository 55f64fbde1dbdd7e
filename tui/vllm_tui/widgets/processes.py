"""The processes of the tree: vLLM's own one a row, their helpers folded into one."""

from collections.abc import Sequence

from textual.content import Content

from vllm_probes.rows import ProcessRow, Role
from vllm_tui.format import plural, printable, process_state, size
from vllm_tui.widgets.rows import Panel, cell, joined, rule

MAIN_ROLES: tuple[Role, ...] = ("command", "api_server", "coordinator", "engine_core", "worker")
MAX_ROWS = 24
STUCK_STATES = "DTtZ"
BUSY_PERCENT = 50.0


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
            rows.append(Content.styled("  * not started by us: shown, never signalled", "dim"))
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


def columns(width: int) -> dict[str, int]:
    """Cells of each column."""
    fixed = {"pid": 8, "state": 10, "cpu": 8, "rss": 8}
    return {"name": max(12, min(40, width - 2 - sum(fixed.values()))), **fixed}


def heading(width: int) -> Content:
    cells = columns(width)
    return Content.assemble(
        "  ",
        cell("name", cells["name"]),
        cell("pid", cells["pid"], right=True),
        "  ",
        cell("state", cells["state"] - 2),
        cell("CPU %", cells["cpu"], right=True),
        cell("memory", cells["rss"], right=True),
    ).stylize("dim")


def table_row(row: ProcessRow, width: int) -> Content:
    cells = columns(width)
    stuck = row.state[:1] in STUCK_STATES
    name = printable(row.process) + (" *" if row.foreign else "")
    return Content.assemble(
        "  ",
        cell(name, cells["name"] - 1, "bold $text-warning" if stuck else "bold"),
        " ",
        cell(str(row.pid), cells["pid"], "dim", right=True),
        "  ",
        cell(process_state(row.state[:1]), cells["state"] - 2, "bold $text-warning" if stuck else "dim"),
        cell(f"{row.cpu_percent:.0f}", cells["cpu"], "bold" if row.cpu_percent >= BUSY_PERCENT else "", right=True),
        cell(size(row.rss_bytes), cells["rss"], right=True),
    )


def folded_row(rows: Sequence[ProcessRow], width: int) -> Content:
    """`+ 4 others, 3 of them compilers`, with their sums."""
    cells = columns(width)
    compilers = sum(row.role == "compiler" for row in rows)
    text = f"+ {plural(len(rows), 'other')}{f', {compilers} of them compilers' if compilers else ''}"
    return Content.assemble(
        "  ",
        cell(text, cells["name"] + cells["pid"] + cells["state"]),
        cell(f"{sum(row.cpu_percent for row in rows):.0f}", cells["cpu"], right=True),
        cell(size(sum(row.rss_bytes for row in rows)), cells["rss"], right=True),
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
