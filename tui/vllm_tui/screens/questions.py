"""What the app asks before it does something that cannot be taken back; None where there is nothing to ask."""

from collections.abc import Iterator, Sequence

from textual.content import Content

from vllm_probes.launch.levers import Lever, blocked, load_levers, plan
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.model import AttemptModel, SessionModel
from vllm_probes.rates import total
from vllm_probes.rows import Change
from vllm_tui.format import printable
from vllm_tui.screens.dialog import Body, Choice, Question
from vllm_tui.situation import Situation
from vllm_tui.widgets.notices import hold_sentence, subject
from vllm_tui.widgets.rows import entry, hanging

COREDUMPS = "…/coredumps"
"""The session's folder of core dumps, as the differences show it."""


def stop(situation: Situation) -> Question | None:
    """Stop, or kill where it is being stopped; nothing is asked where only leftovers run, or a relaunch waits."""
    name = subject(situation)
    if situation.holds or (situation.leftovers and not situation.stopping):
        return None
    if situation.stopping:
        body = sentences("It has been asked to stop and still runs. SIGKILL ends it at once; nothing is cleaned up.")
        return Question(f"Kill {name}?", body, [Choice("enter,y", "kill", "kill")])
    return Question(f"Stop {name}?", sentences(what_runs(situation)), [Choice("enter,y", "stop", "stop")])


def leave(situation: Situation) -> Question:
    """Stop it, or leave it running."""
    name = subject(situation)
    body = sentences(what_runs(situation), "Left running, vllm-tui attach shows it again.")
    if situation.holds:
        body = sentences(
            *map(hold_sentence, situation.holds), "Left alone, it starts as soon as nothing is in its way."
        )
        choices = [Choice("s", "do not start it, and quit", "stop"), Choice("l", "let it wait and start", "leave")]
        return Question(f"{name} waits to be started again", body, choices[1:] if situation.readonly else choices)
    if situation.is_attached:
        choices = [Choice("l", "watch on without a view", "leave"), Choice("s", "stop watching", "unwatch")]
        body = sentences(what_runs(situation), "It was not started by this program and runs on in any case.")
        return Question(f"Watch {name} on?", body, choices)
    if situation.stopping:
        choices = [Choice("l", "leave it", "leave"), Choice("k", "kill it", "kill")]
        return Question(f"{name} is stopping", body, choices[:1] if situation.readonly else choices)
    choices = [Choice("s", "stop it and quit", "stop"), Choice("l", "leave it running", "leave")]
    return Question(f"{name} still runs", body, choices[1:] if situation.readonly else choices)


def start_now(situation: Situation) -> Question:
    """A relaunch waits: start it all the same, or end what this user's other sessions hold it up with."""
    sessions = sorted({hold.session for hold in situation.holds if hold.session})
    rows = [hold_sentence(hold) for hold in situation.holds]
    last = "It starts by itself as soon as nothing of that is left. Started now, it will probably meet it."
    choices = [Choice("enter,y", "start now", "now")]
    if sessions:
        choices.append(Choice("k", f"end what {' and '.join(sessions)} runs there", "end"))
    return Question("Start although not everything is free?", sentences(*rows, last), choices)


def sentences(*paragraphs: str) -> Body:
    """Plain text as the body of a question."""
    rows = [Content(printable(paragraph)) for paragraph in paragraphs if paragraph]
    return lambda width: [line for row in rows for line in row.wrap(max(1, width))]


def what_runs(situation: Situation) -> str:
    """What is there now, as far as it is known."""
    attempt = situation.attempt
    if attempt is None:
        return ""
    if situation.leftovers:
        names = ", ".join(f"{ref.process} ({ref.pid})" for ref in situation.leftovers)
        return f"Processes that it left behind: {names}."
    return f"{state_sentence(attempt)} {requests_sentence(situation)}".rstrip()


def state_sentence(attempt: AttemptModel) -> str:
    if attempt.state == "crashed":
        return "It has crashed, its command still runs."
    return f"It is {attempt.state.replace('_', ' ')}."


def requests_sentence(situation: Situation) -> str:
    """`Requests: 12 running, 3 waiting.`; empty where nothing tells."""
    engines = situation.model.endpoint.engines if situation.model.endpoint else []
    counts = {"running": total(engines, "running"), "waiting": total(engines, "waiting")}
    some = [f"{count:,.0f} {word}" for word, count in counts.items() if count]
    if some:
        return f"Requests: {', '.join(some)}."
    return "No request runs." if None not in counts.values() else ""


def relaunch(situation: Situation, levers: Sequence[str], *, clean: bool) -> Question | None:
    """What a relaunch changes and costs; nothing is asked where the command is dead and no lever wants company."""
    wanted = [] if clean else [load_levers()[lever] for lever in levers if lever not in situation.levers]
    company = [name for lever in wanted for name in lever.offers if name not in levers]
    company = [name for name in company if not situation.blocked_levers.get(name)]
    if not situation.command_runs and not company:
        return None
    everything = [*levers, *company]
    explained = [*wanted, *(load_levers()[name] for name in company)]
    first = f"{what_runs(situation)} {'They are ended' if situation.leftovers else 'It is stopped'} first."

    def body(width: int) -> list[Content]:
        return [
            *([*sentences(first)(width), Content("")] if situation.alive else []),
            *change_rows(situation, everything, width, clean=clean),
            *(row for lever in explained for row in lever_rows(lever, width, named=len(explained) > 1)),
        ]

    return Question(relaunch_title(situation, everything, clean=clean), body, relaunch_choices(company))


def lever_rows(lever: Lever, width: int, *, named: bool) -> list[Content]:
    """What a lever shows, and at what price."""
    texts = (("gives", lever.gives), ("costs", lever.cost), ("caution", lever.caution))
    name = [Content.styled(lever.id, "bold")] if named else []
    return [Content(""), *name, *(row for label, text in texts for row in entry(label, text, width))]


def relaunch_title(situation: Situation, levers: Sequence[str], *, clean: bool) -> str:
    """`Relaunch with eager and coredump?`."""
    if clean:
        return "Relaunch as typed, without any debug setting of ours or of the shell?"
    if list(levers) == situation.levers and not left_out(situation.model):
        return "Relaunch the same again?"
    if levers:
        return f"Relaunch with {' and '.join(levers)}?"
    return (
        "Relaunch with the debug variables of the shell?" if left_out(situation.model) else "Relaunch without levers?"
    )


def relaunch_choices(company: Sequence[str]) -> list[Choice]:
    """With a lever that another one wants beside it, and without."""
    if not company:
        return [Choice("enter,y", "relaunch", "relaunch")]
    return [
        Choice("enter,y", f"with {company[0]} too", f"relaunch+{company[0]}"),
        Choice("o", f"without {company[0]}", "relaunch"),
    ]


def change_rows(situation: Situation, levers: Sequence[str], width: int, *, clean: bool) -> list[Content]:
    """The difference of the new launch from the present one: what comes in, what goes out."""
    now = set(settings_of(situation, situation.levers, clean=bool(left_out(situation.model))))
    then = set(settings_of(situation, levers, clean=clean))
    lines = [("-", text, "$text-warning") for text in sorted(now - then)]
    lines += [("+", text, "$text-success") for text in sorted(then - now)]
    if not lines:
        return [Content.styled("  the same command and environment", "dim")]
    return [
        row
        for sign, text, style in lines
        for row in hanging(Content.styled(f"  {sign} ", style), Content.styled(printable(text), style), width)
    ]


def settings_of(situation: Situation, levers: Sequence[str], *, clean: bool) -> Iterator[str]:
    """Variables and added flags of a launch, as one would type them."""
    draft = plan(base_spec(situation.model), levers, bare=False, clean=clean, coredumps=COREDUMPS)
    yield from (f"{name}={value}" for name, value in draft.spec.env.items())
    yield from (f"{change.name} {change.after or ''}".rstrip() for change in draft.changes if change.name[:1] == "-")


def base_spec(model: SessionModel) -> LaunchSpec:
    """What was typed, as far as a view knows it: of the environment only the debug variables."""
    inherited = (setting.setting for setting in model.debug_settings if setting.origin == "inherited")
    env = {name: value for name, _, value in (setting.partition("=") for setting in inherited)}
    env |= {change.name: change.before or "" for change in left_out(model)}
    return LaunchSpec(argv=model.command, env=env, cwd=model.cwd)


def left_out(model: SessionModel) -> list[Change]:
    """The debug variables of the shell that a clean launch did without."""
    return [change for change in model.attempt.launch.changes if change.after is None] if model.attempt else []


def blocked_levers(model: SessionModel) -> dict[str, str]:
    """Why levers would change nothing on this command, by lever id."""
    spec = base_spec(model)
    return {lever: reason for lever in load_levers() if (reason := blocked(lever, spec))}
