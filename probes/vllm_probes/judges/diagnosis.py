"""What a log says went wrong, from its bytes alone."""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import accumulate, islice

from msgspec.structs import replace

from vllm_probes.judges.matching import Match, RecordStream, telling_lines
from vllm_probes.judges.rules import Rule, RuleSet
from vllm_probes.judges.survival import Survival
from vllm_probes.judges.triage import MAX_RECORDS, Clue, find_causes
from vllm_probes.log.heads import COLOUR
from vllm_probes.log.line import clean
from vllm_probes.rows import ALARMING_LEVELS, Finding

LINE_LIMIT_BYTES = 64 << 10
BLOCK_LINES = 200
_WORK = re.compile(
    rb'"%(c)sPOST \S{1,200} HTTP/[\d.]{1,3}%(c)s" %(c)s(?:20\d|400|422)(?: |$)' % {b"c": COLOUR}
    + rb"|Application startup complete|throughput: (?:[1-9]|0\.[1-9])|Processed prompts: 100%",
    re.M,
)
"""What a run writes only while it does its work; a server that finds fault with a request lives as well. Who asks for
/metrics is answered without an engine, too."""
_QUIET = re.compile(
    rb"No available (?:shared memory broadcast )?block|Still waiting|Waiting for |Trying to resume"
    rb"|/(?:health|metrics|ping|load|version)\b|generation throughput: 0\.0 "
    rb"|ERROR|CRITICAL|Error\b|Traceback|Interrupt\b|^(?:\([^()]{1,60}\) |\[rank\d{1,4}\]: ?){0,3}(?:\s|$)"
)
"""What may come after a notice of waiting though nothing moves."""
TAIL_LINES = 200
STARTUP_NOTICES = 3
"""So many notices of waiting are normal while a start compiles or captures (about a minute each)."""
SLOW_PHASES = ("weights", "weights_done", "compile", "compile_done", "profile", "warmup", "cudagraph", "kv_cache")


def diagnose(rules: RuleSet, raws: Iterable[bytes], log: str) -> list[Finding]:
    """The findings of one log, the root cause first.

    Args:
        rules: what is known.
        raws: its lines without newlines; of one that is longer than the limit the beginning counts.
        log: names the file.
    """
    diagnosis, lines = _Diagnosis(rules, log), iter(raws)
    while block := [raw[:LINE_LIMIT_BYTES] for raw in islice(lines, BLOCK_LINES)]:
        diagnosis.take(block)
    return diagnosis.findings()


class _Diagnosis:
    """Takes the lines of one log, in their order, and tells what they explain."""

    def __init__(self, rules: RuleSet, log: str) -> None:
        self._rules, self._log = rules, log
        self._stream = RecordStream(rules)
        self._survival = Survival()
        self._line_count = 0
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._clues: list[Clue] = []
        self._facts: dict[str, str] = {}
        self._waits: list[tuple[int, Rule]] = []
        self._phase: str | None = None
        self._has_begin = False

    def take(self, raws: list[bytes]) -> None:
        telling, taken = telling_lines(self._rules, raws), [-1]
        if telling or self._stream.awaits(self._line_count + 1):
            for at, raw in enumerate(raws):
                number = self._line_count + at + 1
                if at in telling or self._stream.awaits(number):
                    self._note(self._stream.feed(number, clean(raw)))
                    taken.append(at)
        self._find_work(raws, taken)
        self._line_count += len(raws)
        self._tail.extend(raws)

    def _find_work(self, raws: list[bytes], taken: list[int]) -> None:
        """The first work after each line that was taken, and the first of all: nobody asks for more."""
        data, position = b"\n".join(raws), -1
        starts = list(accumulate((len(raw) + 1 for raw in raws), initial=0))
        for start in (starts[at + 1] for at in taken):
            if position < start:
                if (found := _WORK.search(data, start)) is None:
                    return
                position = found.start()
                self._survival.work(self._line_count + bisect_right(starts, position))

    def findings(self) -> list[Finding]:
        self._note(self._stream.flush())
        self._survival.close()
        clues = [replace(clue, went_on=self._went_on(clue)) for clue in self._clues]
        if waits := self._waits_at_end():
            clues = [_as_error(clue) if clue.rule == waits else clue for clue in clues]
        return find_causes(self._disorderly(clues), self._facts, self._log, begin_is_missing=not self._has_begin)

    def _went_on(self, clue: Clue) -> bool:
        stepped = clue.rule is not None and self._survival.stepped_after(clue.line_number, clue.writer)
        return stepped or self._survival.worked_after(clue.line_number)

    def _waits_at_end(self) -> Rule | None:
        """What the log waits for where it ends."""
        number, rule = self._waits[-1] if self._waits else (0, None)
        notices = sum(one == rule for _, one in self._waits)
        if self._phase in SLOW_PHASES and notices < STARTUP_NOTICES:
            return None
        after = self._line_count - number
        is_last = after < TAIL_LINES and all(map(_QUIET.search, [*self._tail][-after:] if after else []))
        return rule if is_last else None

    def _note(self, matches: Iterable[Match]) -> None:
        for match in matches:
            self._facts.update(match.fields)
            if match.rule:
                self._follow(match.rule, match.number)
                self._survival.follow(match.rule, match.number, match.record.head.process)
            if len(self._clues) < MAX_RECORDS and (clue := _clue(match)):
                self._clues.append(clue)

    def _follow(self, rule: Rule, number: int) -> None:
        self._has_begin = self._has_begin or rule.phase in ("banner", "args")
        self._phase = rule.phase or self._phase
        if rule.waits:
            self._waits.append((number, rule))

    def _disorderly(self, clues: list[Clue]) -> list[Clue]:
        """Without what an engine that is told to stop says: that is no failure, if none came before."""
        kept: list[Clue] = []
        for clue in sorted(clues, key=lambda one: one.line_number):
            orderly = clue.tier != "cause" and self._survival.ended_before(clue.line_number)
            if not orderly or any(one.tier != "notice" for one in kept):
                kept.append(clue)
        return kept


def _as_error(clue: Clue) -> Clue:
    return replace(clue, rule=clue.rule and replace(clue.rule, severity="error"))


def _clue(match: Match) -> Clue | None:
    if match.rule is None and match.record.level not in ALARMING_LEVELS:
        return None
    if match.rule and not match.rule.explains:
        return None
    return Clue(
        line_number=match.number,
        line=match.line,
        rule=match.rule,
        fields=match.fields,
        writer=match.record.head.process,
        is_exception=match.statement.is_exception,
    )
