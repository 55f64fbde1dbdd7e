"""The keeper's reader of the log: what was appended since the last look, told as events.

Nearly all lines are cheap: only those that contain a word of a rule, of a level from warning up, or a traceback are
taken apart. A sample is bounded however much a child writes at once.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_probes.events import Event, LogRecorded, LogSampled, Stamp
from vllm_probes.judges.matching import Match, RecordStream, telling_lines
from vllm_probes.log.index import LogIndex
from vllm_probes.log.line import LEVEL_RANKS, clean, parse_line
from vllm_probes.rows import ALARMING_LEVELS, Level

if TYPE_CHECKING:
    from vllm_probes.judges.rules import RuleSet

MESSAGE_CHARACTERS = 500
LINE_CHARACTERS = 4000
KNOWN_PER_SAMPLE = 200
UNKNOWN_PER_SAMPLE = 50
REPEAT_S = 10.0
BACKLOG_BYTES = 64 << 20
"""With more than this to read, lines are indexed and not examined: what vLLM does now matters more."""
SKIPPED_BYTES = 4 << 20
_REMEMBERED = 1000
_HEARTBEAT = re.compile(
    rb'"(?:GET|HEAD) /(?:metrics|health|ping|load|version)\b'
    rb"|[?]vllm-tui-probe\b"
    rb"|No available shared memory broadcast block|Avg prompt throughput: |Waiting for \d+ local, \d+ remote"
)
"""What vLLM 0.6-0.32 prints from time to time though nothing moves (shm_broadcast.py, loggers.py, engine/utils.py), and
the answers to our own probes."""
_PROCESS_NAME = re.compile(rb"\(([A-Za-z][\w.-]*)(?: rank=\d+)? pid=(\d+)[,)]")


class LogSensor:
    """Reads the log at `path`, which need not exist yet."""

    def __init__(self, path: Path, rules: "RuleSet", redact: Callable[[str], str]) -> None:
        """`redact` takes secrets out of every text that leaves the sensor."""
        self.index = LogIndex(path)
        self.process_names: dict[int, str] = {}
        """pid -> the name that it logged under last: `APIServer`, `Worker_TP0`."""
        self._rules = rules
        self._redact = redact
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._generation = self.index.generation
        self._next_line = self._heartbeats = 0
        self._stream = RecordStream(self._rules)
        self._repeats = _Repeats()
        self._bar: tuple[str, dict[str, str]] | None = None

    def close(self) -> None:
        self.index.close()

    @property
    def behind(self) -> bool:
        """The last sample ended at its budget: there is more to read at once."""
        return self.index.pending_bytes > 0

    def sample(self, stamp: Stamp, budget_bytes: int = 4 << 20) -> list[Event]:
        """What was appended, at most `budget_bytes`: `log_recorded` events, then one `log_sampled` if the size changed.

        A traceback is told a sample after it stopped growing: after the last process of an attempt has ended, sample
        until nothing comes.

        Raises:
            OSError: the log is there and cannot be read.
        """
        before = self.index.generation, self.index.size_bytes
        self.index.refresh(budget_bytes=budget_bytes)
        changed = before != (self.index.generation, self.index.size_bytes)
        if self._generation != self.index.generation:
            self._begin_anew()
        matches = [*self._read_new(), *(self._stream.settle() if changed else self._stream.flush())]
        events: list[Event] = [*self._tell(matches, stamp), *self._unfinished_bar(stamp), *self._skip_backlog(stamp)]
        if changed:
            events.append(
                LogSampled(
                    **stamp,
                    size_bytes=self.index.size_bytes,
                    line_count=self.index.total_lines,
                    error_count=self.index.error_count,
                    warning_count=self.index.warning_count,
                    heartbeat_count=self._heartbeats,
                )
            )
        return events

    def _skip_backlog(self, stamp: Stamp) -> Iterator[LogRecorded]:
        if self.index.pending_bytes <= BACKLOG_BYTES:
            return
        self.index.refresh(budget_bytes=SKIPPED_BYTES)
        self._next_line = self.index.finished_lines
        if self._repeats.admit("backlog", stamp["mono"]):
            message = "the log grows faster than it is read: not every line from here on is examined"
            yield LogRecorded(**stamp, line_number=self._next_line, level="warning", message=message)

    # --- reading --------------------------------------------------------------------------------------------------

    def _read_new(self) -> Iterator[Match]:
        while self._next_line < self.index.finished_lines:
            block = self.index.block(self.index.block_of(self._next_line))
            end = min(self.index.finished_lines, block.first_line + len(block.raws))
            data = b"\n".join(block.raws[self._next_line - block.first_line :])
            self._heartbeats += len(_HEARTBEAT.findall(data))
            self.process_names.update((int(pid), name.decode()) for name, pid in _PROCESS_NAME.findall(data))
            telling = telling_lines(self._rules, block.raws)
            if telling or self._stream.awaits(self._next_line + 1):
                for line in range(self._next_line, end):
                    at = line - block.first_line
                    if at in telling or self._stream.awaits(line + 1):
                        yield from self._stream.feed(line + 1, clean(block.raws[at]))
            self._next_line = end if end == self.index.finished_lines else block.next_line

    # --- telling --------------------------------------------------------------------------------------------------

    def _tell(self, matches: Iterable[Match], stamp: Stamp) -> Iterator[LogRecorded]:
        known = unknown = 0
        for match in _without_passed_progress(matches):
            if match.rule is None and not _alarms(match.record.level):
                continue
            key = (match.rule and match.rule.id, match.record.head.process, match.record.head.pid, match.statement.text)
            count = self._repeats.admit(key, stamp["mono"])
            if count is None:
                continue
            known, unknown = known + (match.rule is not None), unknown + (match.rule is None)
            if known <= KNOWN_PER_SAMPLE and unknown <= UNKNOWN_PER_SAMPLE:
                yield self._recorded(match, count, stamp)
            else:
                left_out = match
        if known > KNOWN_PER_SAMPLE or unknown > UNKNOWN_PER_SAMPLE:
            yield self._note(left_out, max(known - KNOWN_PER_SAMPLE, 0) + max(unknown - UNKNOWN_PER_SAMPLE, 0), stamp)

    def _recorded(self, match: Match, count: int, stamp: Stamp) -> LogRecorded:
        record, statement = match.record, match.statement
        telling = statement.is_exception or record.level in ALARMING_LEVELS or (match.rule and match.rule.explains)
        return LogRecorded(
            **stamp,
            line_number=record.line_number if statement.is_exception else match.number,
            level=record.level,
            process=record.head.process,
            pid=record.head.pid,
            rank=record.head.rank,
            rule=match.rule.id if match.rule else None,
            fields={name: self._short(text) for name, text in match.fields.items()},
            message=self._short(statement.text) + (f" (×{count})" if count > 1 else ""),
            exception_line_number=match.number if statement.is_exception else None,
            line=self._redact(match.line)[:LINE_CHARACTERS] if telling else None,
        )

    def _note(self, last: Match, count: int, stamp: Stamp) -> LogRecorded:
        message = f"{count:,} more records until here that are not listed; the log has them"
        return LogRecorded(**stamp, line_number=last.statement.number, level="warning", message=message)

    def _unfinished_bar(self, stamp: Stamp) -> Iterator[LogRecorded]:
        """Most bars of tqdm have no newline until they are done."""
        if self.index.total_lines == self.index.finished_lines:
            return
        line = self.index.read(self.index.line_count - 1, 1)[0]
        parsed = parse_line(line.text)
        found = self._rules.match(parsed.message)
        if found is None or "done" not in found[1] or self._bar == (found[0].id, found[1]):
            return
        self._bar = found[0].id, found[1]
        yield LogRecorded(
            **stamp,
            line_number=line.number,
            process=parsed.process,
            pid=parsed.pid,
            rank=parsed.rank,
            rule=found[0].id,
            fields={name: self._short(text) for name, text in found[1].items()},
            message=self._short(parsed.message),
        )

    def _short(self, text: str) -> str:
        return self._redact(text)[:MESSAGE_CHARACTERS]


class _Repeats:
    """Lets one message through only once in REPEAT_S and counts the others."""

    def __init__(self) -> None:
        self._told: dict[object, tuple[float, int]] = {}

    def admit(self, key: object, mono: float) -> int | None:
        """How often it came since it was told last, this time included; None: not to be told now."""
        told = self._told.pop(key, None)
        due = told is None or mono - told[0] >= REPEAT_S
        count = told[1] + 1 if told else 1
        self._told[key] = (mono, 0) if due or told is None else (told[0], count)
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        return count if due else None


def _alarms(level: Level | None) -> bool:
    return level is not None and LEVEL_RANKS[level] >= LEVEL_RANKS["warning"]


def _without_passed_progress(matches: Iterable[Match]) -> list[Match]:
    """Of a bar that moved on within the sample only where it stands now."""
    kept: list[Match] = []
    seen: set[tuple[str, int | None]] = set()
    for match in reversed(list(matches)):
        if match.rule and "done" in match.fields:
            bar = (match.rule.id, match.record.head.pid)
            if bar in seen:
                continue
            seen.add(bar)
        kept.append(match)
    kept.reverse()
    return kept
