"""The processes of the tree: vLLM's own one a row, their helpers folded into one."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from textual.content import Content

from vllm_probes.rows import ProcessDoing, ProcessRow, Role
from vllm_tui.format import duration, plural, printable, process_state, size
from vllm_tui.situation import Situation
from vllm_tui.widgets.doing import culprit_looks, doing_s, doings_now
from vllm_tui.widgets.rows import Panel, cell, joined, rule

MAIN_ROLES: tuple[Role, ...] = ("command", "api_server", "coordinator", "engine_core", "worker")
MAX_ROWS = 24
STUCK_STATES = "DTtZ"
BUSY_PERCENT = 50.0
INDENT = "   "
PID_WIDTH, STATE_WIDTH, FOR_WIDTH = 8, 10, 8
LEAST_DOING_WIDTH = 18
"""`  waits for workers`, but for its blanks: figures give way where there is no room for it."""
WIDE = 90


class ProcessTable(Panel):
    """A table as wide as the panel; no rows while nothing runs. Whoever holds the others up comes first."""

    counts = True

    def rows(self, width: int) -> list[Content]:
        named = culprit_looks(self._situation.attempt)
        shown, folded = split(list(self._situation.model.processes.values()), named)
        if not shown:
            return []
        title = Content.assemble(("Processes", "bold"), (f" · {len(shown) + len(folded)}", "dim"))
        table = layout(shown, width, has_doings=bool(doings_now(self._situation)))
        cells = list(seen_rows(self._situation, shown, named))
        rows = [rule(title, width), heading(table), *(table_row(seen, table) for seen in cells)]
        if folded:
            rows.append(folded_row(folded, table))
        if any(row.foreign for row in shown):
            rows.append(Content.styled(f"{INDENT}* not started by us: shown, never signalled", "dim"))
        return rows


class ProcessSummary(Panel):
    """The same in one row, for a screen that has no room for a table."""

    counts = True

    def rows(self, width: int) -> list[Content]:
        named = culprit_looks(self._situation.attempt)
        shown, folded = split(list(self._situation.model.processes.values()), named)
        if not shown:
            return []
        cells = list(seen_rows(self._situation, shown, named))
        parts = [summary(group) for group in groups(cells)]
        if folded:
            parts.append(Content.styled(f"+{len(folded)}", "dim"))
        return [Content.assemble(" ", joined(parts, "  ")).truncate(width, ellipsis=True)]


@dataclass(frozen=True, slots=True)
class Seen:
    """A process, what it does and for how long, and how the verdict that names it looks."""

    row: ProcessRow
    doing: ProcessDoing | None = None
    doing_s: float = 0.0
    look: tuple[str, str] | None = None
    """Symbol and style."""

    @property
    def stuck(self) -> bool:
        """By its state alone."""
        return self.row.state[:1] in STUCK_STATES

    @property
    def what(self) -> str:
        return printable(self.doing.what) if self.doing else process_state(self.row.state[:1])


def seen_rows(situation: Situation, rows: Sequence[ProcessRow], named: Mapping[int, tuple[str, str]]) -> Iterator[Seen]:
    doings = doings_now(situation)
    for row in rows:
        doing = doings.get(row.pid)
        yield Seen(row, doing, doing_s(situation, doing) if doing else 0.0, named.get(row.pid))


def split(rows: Sequence[ProcessRow], named: Collection[int] = ()) -> tuple[list[ProcessRow], list[ProcessRow]]:
    """(the processes that matter in their order, the others); where vLLM is not recognised, by use of the CPU.

    `named`: pids that come first.
    """
    main = sorted((row for row in rows if row.role in MAIN_ROLES), key=_order)
    if not any(row.role != "command" for row in main):
        main += sorted((row for row in rows if row.role not in MAIN_ROLES), key=lambda row: (row.started, row.pid))
    main.sort(key=lambda row: row.pid not in named)
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


@dataclass(frozen=True, slots=True)
class Layout:
    """Cells for the name, the columns of numbers that there is room for, and cells for what a process does.

    Without looks at stacks (`doing_width` is 0) the state of the process stands in their place.
    """

    name_width: int
    figures: Sequence[Column]
    doing_width: int = 0


def layout(rows: Sequence[ProcessRow], width: int, *, has_doings: bool) -> Layout:
    wide = [THREADS, READ, WRITTEN] if width >= WIDE else []
    figures = [CPU, MEMORY, *wide]
    fixed = len(INDENT) + PID_WIDTH
    if not has_doings:
        used = fixed + STATE_WIDTH + sum(column.width for column in figures)
        return Layout(max(12, min(40, width - used)), figures)
    name_width = min(24, max(len(_name(row)) for row in rows) + 1)
    room = width - fixed - name_width - FOR_WIDTH
    while figures and room - sum(column.width for column in figures) < LEAST_DOING_WIDTH:
        figures.pop()
    return Layout(name_width, figures, max(LEAST_DOING_WIDTH, room - sum(column.width for column in figures)))


def _name(row: ProcessRow) -> str:
    return printable(row.process) + (" *" if row.foreign else "")


def heading(table: Layout) -> Content:
    state = [cell("  state", STATE_WIDTH)]
    does = [cell("  does", table.doing_width), cell("for", FOR_WIDTH, right=True)]
    return Content.assemble(
        INDENT,
        cell("name", table.name_width),
        cell("pid", PID_WIDTH, right=True),
        *([] if table.doing_width else state),
        *(cell(column.title, column.width, right=True) for column in table.figures),
        *(does if table.doing_width else []),
    ).stylize("dim")


def table_row(seen: Seen, table: Layout) -> Content:
    row = seen.row
    symbol, loud = seen.look or ("", "$text-warning" if seen.stuck else "")
    busy = "bold" if row.cpu_percent >= BUSY_PERCENT else ""
    state = cell(f"  {process_state(row.state[:1])}", STATE_WIDTH, f"bold {loud}" if seen.stuck else "dim")
    return Content.assemble(
        cell(f" {symbol}", len(INDENT), f"bold {loud}" if symbol else ""),
        cell(_name(row), table.name_width - 1, f"bold {loud}".rstrip()),
        " ",
        cell(str(row.pid), PID_WIDTH, "dim", right=True),
        *([] if table.doing_width else [state]),
        *(
            cell(column.text([row]), column.width, busy if column is CPU else "", right=True)
            for column in table.figures
        ),
        *(doing_cells(seen, table.doing_width, loud) if table.doing_width else []),
    )


def doing_cells(seen: Seen, width: int, loud: str) -> list[Content]:
    """What it does and for how long; of a process without stacks its state."""
    style = f"bold {loud}" if loud else "" if seen.doing else "dim"
    lasted = duration(seen.doing_s) if seen.doing else ""
    return [cell(f"  {seen.what}", width, style), cell(lasted, FOR_WIDTH, style or "dim", right=True)]


def folded_row(rows: Sequence[ProcessRow], table: Layout) -> Content:
    """`+ 4 others, 3 of them compilers`, with their sums."""
    compilers = sum(row.role == "compiler" for row in rows)
    text = f"+ {plural(len(rows), 'other')}{f', {compilers} of them compilers' if compilers else ''}"
    return Content.assemble(
        INDENT,
        cell(text, table.name_width + PID_WIDTH + (0 if table.doing_width else STATE_WIDTH)),
        *(cell(column.text(rows), column.width, right=True) for column in table.figures),
    ).stylize("dim")


def groups(seen: Sequence[Seen]) -> list[list[Seen]]:
    """Those that do the same together, whoever stands out among the workers first; without looks all other workers."""
    found: dict[object, list[Seen]] = {}
    for one in seen:
        alone = one.row.pid if one.row.role != "worker" or one.stuck or one.look else "worker"
        key = (one.look, one.what, one.row.role) if one.doing else alone
        found.setdefault(key, []).append(one)
    workers = [group for group in found.values() if group[0].row.role == "worker"]
    workers.sort(key=lambda group: (group[0].look is None, not group[0].stuck))
    others = [group for group in found.values() if group[0].row.role != "worker"]
    return [*workers, *others] if workers and workers[0][0].look else [*others, *workers]


def summary(group: Sequence[Seen]) -> Content:
    """`EngineCore 99 %`, or `8 workers 98-100 %`, or `✖ Worker_TP3 waits for a lock 14 s`."""
    first = group[0]
    name = printable(first.row.process) if len(group) == 1 else f"{len(group)} workers"
    if first.doing:
        return doing_summary(group, name)
    if first.stuck:
        return Content.styled(f"{name} {first.what}", "bold $text-warning")
    low, high = (f"{bound(one.row.cpu_percent for one in group):.0f}" for bound in (min, max))
    use = f"{low} %" if low == high else f"{low}-{high} %"
    symbol, style = first.look or ("", "")
    return Content.assemble((f"{symbol} {name}".strip(), f"bold {style}".rstrip()), f" {use}")


def doing_summary(group: Sequence[Seen], name: str) -> Content:
    """For how long all of them do it only of those that the verdict names; the table has the others' times."""
    first = group[0]
    if first.look is None:
        return Content.assemble((name, "bold"), f" {first.what}")
    symbol, style = first.look
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    lasted = duration(min(one.doing_s for one in group))
    return Content.styled(f"{symbol} {printable(first.row.process)}{more} {first.what} {lasted}", f"bold {style}")
