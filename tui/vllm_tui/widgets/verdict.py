"""The verdict on a hang, below the header: who holds everybody up, how we know, and afterwards how it went."""

import os
import time
from collections.abc import Iterator

from textual.content import Content

from vllm_probes.events import VerdictChanged
from vllm_probes.model import AttemptModel
from vllm_tui.format import duration, ending, printable
from vllm_tui.situation import Situation, end_mono, from_unix_s
from vllm_tui.widgets.doing import verdict_look
from vllm_tui.widgets.rows import Panel, hanging, joined, rule

MAX_EVIDENCE = 4
NO_TOKENS = "no tokens"


class VerdictBanner(Panel):
    """No rows while the run gets on. It stays when the run has ended: the verdict outlives it."""

    counts = True

    def rows(self, width: int) -> list[Content]:
        attempt = self._situation.attempt
        verdict = attempt.verdict if attempt else None
        if attempt is None or verdict is None or verdict.health == "ok":
            return []
        if verdict.health == "dead" and not verdict.culprits:
            return []  # nobody to name: the notices tell how it ended
        symbol, style = verdict_look(verdict)
        lasted = since(self._situation, verdict)
        title = Content.styled(f"{symbol} {verdict.health.upper()} {lasted}".rstrip(), f"bold {style}")
        kind = Content.styled("" if verdict.kind in (None, "unknown") else verdict.kind.replace("_", " "), style)
        head = hanging(Content("   "), Content.styled(printable(verdict.summary), f"bold {style}"), width)
        steps = list(timeline(attempt))
        course = hanging(Content("   "), joined(steps, " → "), width) if steps else []
        patience = [row.truncate(width, ellipsis=True) for row in deadline_rows(self._situation)]
        evidence = [*evidence_rows(verdict, width), *saved_rows(verdict, width)]
        return [rule(joined([title, kind]), width), *head, *course, *evidence, *patience]


def since(situation: Situation, verdict: VerdictChanged) -> str:
    """`14 s`: from the last progress to now, or to the end of the run."""
    if verdict.since is None:
        return ""
    ended = situation.attempt.ended if situation.attempt else None
    return duration(from_unix_s(verdict.since, end_mono(ended) if ended else situation.now, verdict))


def timeline(attempt: AttemptModel) -> Iterator[Content]:
    """`20:34:11 last progress`, `suspect +8.2 s`, `stalled +11 s`, `killed (SIGKILL) +4:46`, counted from the first."""
    if not attempt.hang or attempt.ended is None:
        return
    first = attempt.hang[0]
    begun = first.time if first.since is None else first.since
    at = time.strftime("%H:%M:%S", time.localtime(begun))
    yield Content.assemble((at, "bold"), " first suspicion" if first.since is None else " last progress")
    for verdict in attempt.hang:
        lasted_s = from_unix_s(begun, verdict.mono, verdict)
        yield Content.assemble((verdict.health, verdict_look(verdict)[1]), f" +{duration(lasted_s)}")
    how = "stopped" if attempt.stop else ending(attempt.ended.code, attempt.ended.signal).removeprefix("was ")
    yield Content.assemble((how, "bold"), f" +{duration(from_unix_s(begun, end_mono(attempt.ended), first))}")


def deadline_rows(situation: Situation) -> list[Content]:
    """`vLLM gives up in 4:46`, while a time-out of its own runs."""
    deadline = situation.attempt.deadline if situation.attempt else None
    if deadline is None or deadline.gives_up_mono is None or deadline.gives_up_mono <= situation.now:
        return []
    left = duration(deadline.gives_up_mono - situation.now)
    return [Content.assemble("   vLLM gives up in ", (left, "bold"), (f": {deadline.what} ({deadline.name})", "dim"))]


def evidence_rows(verdict: VerdictChanged, width: int) -> list[Content]:
    """What says so beside the culprits' own stacks, which the summary has."""
    names = {culprit.process for culprit in verdict.culprits}
    shown = [one for one in verdict.evidence if one.signal not in names and not one.signal.startswith(NO_TOKENS)]
    rows = [
        Content.assemble("   ", (f"{printable(one.signal)}: ", "dim"), printable(one.value))
        for one in shown[:MAX_EVIDENCE]
    ]
    return [row.truncate(width, ellipsis=True) for row in rows]


def saved_rows(verdict: VerdictChanged, width: int) -> list[Content]:
    """`no tokens since 20:34:11 · evidence: snapshots/1-1763700055000-quiet`, of the session folder."""
    quiet = [one for one in verdict.evidence if one.signal.startswith(NO_TOKENS) and one.since is not None]
    parts = [f"{printable(one.signal)} since {time.strftime('%H:%M:%S', time.localtime(one.since))}" for one in quiet]
    files = [one.file for one in verdict.evidence if one.file and one.file.startswith("snapshots/")]
    parts += [f"evidence: {printable(os.path.dirname(file))}" for file in files[:1]]
    row = Content.styled(f"   {' · '.join(parts)}", "dim")
    return [row.truncate(width, ellipsis=True)] if parts else []
