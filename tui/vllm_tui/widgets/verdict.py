"""The verdict on a hang, below the header: who holds everybody up, and how we know."""

from textual.content import Content

from vllm_probes.events import VerdictChanged
from vllm_tui.format import duration, printable
from vllm_tui.situation import Situation
from vllm_tui.widgets.rows import Panel, hanging, joined, rule

MAX_EVIDENCE = 4


class VerdictBanner(Panel):
    """No rows while the run gets on. It stays when the run has ended: the verdict outlives it."""

    def rows(self, width: int) -> list[Content]:
        attempt = self._situation.attempt
        verdict = attempt.verdict if attempt else None
        if verdict is None or verdict.health == "ok":
            return []
        style = "$text-error" if verdict.health == "stalled" else "$text-warning"
        symbol = "✖" if verdict.health == "stalled" else "▲"
        title = Content.styled(f"{symbol} {verdict.health.upper()} {since(self._situation, verdict)}", f"bold {style}")
        kind = Content.styled((verdict.kind or "").replace("_", " "), style)
        head = hanging(Content("   "), Content.styled(printable(verdict.summary), f"bold {style}"), width)
        return [
            rule(joined([title, kind]), width),
            *head,
            *evidence_rows(verdict, width),
            *deadline_rows(self._situation),
        ]


def since(situation: Situation, verdict: VerdictChanged) -> str:
    """`14 s`: from the last progress to now, or to the end of the run."""
    if verdict.since is None:
        return ""
    attempt = situation.attempt
    ended = attempt.ended if attempt else None
    now_mono = situation.now if ended is None else ended.mono
    return duration(now_mono - verdict.mono + verdict.time - verdict.since)


def deadline_rows(situation: Situation) -> list[Content]:
    """`vLLM gives up in 4:46`, while a time-out of its own runs."""
    deadline = situation.attempt.deadline if situation.attempt else None
    if deadline is None or deadline.gives_up_mono is None or deadline.gives_up_mono <= situation.now:
        return []
    left = duration(deadline.gives_up_mono - situation.now)
    return [Content.assemble("   vLLM gives up in ", (left, "bold"), (f" ({deadline.name})", "dim"))]


def evidence_rows(verdict: VerdictChanged, width: int) -> list[Content]:
    """What says so beside the culprits' own stacks, which the summary has."""
    names = {culprit.process for culprit in verdict.culprits}
    shown = [one for one in verdict.evidence if one.signal not in names and not one.signal.startswith("no tokens")]
    rows = [
        Content.assemble("   ", (f"{printable(one.signal)}: ", "dim"), printable(one.value))
        for one in shown[:MAX_EVIDENCE]
    ]
    return [row.truncate(width, ellipsis=True) for row in rows]
