"""What the app asks before it does something that cannot be taken back; None where there is nothing to ask."""

from collections.abc import Iterator, Sequence

from textual.content import Content

from vllm_probes.launch.levers import blocked, load_levers, plan
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.model import SessionModel
from vllm_tui.format import number, plural, printable
from vllm_tui.screens.dialog import Choice, Question
from vllm_tui.situation import Situation
from vllm_tui.widgets.engine import total
from vllm_tui.widgets.rows import entry

BODY_WIDTH = 72

Body = list[Content]


def stop(situation: Situation) -> Question | None:
    """Stop, or kill where it is being stopped; leftovers of a dead command are ended without a question."""
    if situation.leftovers and not situation.stopping:
        return None
    if situation.stopping:
        body = [Content("It has been asked to stop and still runs. SIGKILL ends it at once; nothing is cleaned up.")]
        return Question("Kill vLLM?", body, [Choice("enter,y", "kill", "kill")])
    return Question("Stop vLLM?", [*what_runs(situation)], [Choice("enter,y", "stop", "stop")])


def leave(situation: Situation) -> Question:
    """Stop it, or leave it running."""
    body = [*what_runs(situation), Content("Left running, vllm-tui attach shows it again.")]
    if situation.stopping:
        return Question("vLLM is stopping", body, [Choice("l", "leave it", "leave"), Choice("k", "kill it", "kill")])
    choices = [Choice("s", "stop it and quit", "stop"), Choice("l", "leave it running", "leave")]
    if situation.readonly:
        choices = choices[1:]
    return Question("vLLM still runs", body, choices)


def what_runs(situation: Situation) -> Body:
    """What a stop would end."""
    attempt = situation.attempt
    if attempt is None:
        return []
    if situation.leftovers:
        names = ", ".join(f"{ref.process} ({ref.pid})" for ref in situation.leftovers)
        return [
            Content(
                f"{plural(len(situation.leftovers), 'process')} of it left: {names}.".replace("processs", "processes")
            )
        ]
    engines = situation.model.endpoint.engines if situation.model.endpoint else []
    running, waiting = total(engines, "running"), total(engines, "waiting")
    if running or waiting:
        return [Content(f"A stop would end {number(running)} running and {number(waiting)} waiting requests.")]
    return [Content(f"It is {attempt.state.replace('_', ' ')}; no request runs.")]


def relaunch(situation: Situation, levers: Sequence[str], *, clean: bool) -> Question | None:
    """What a relaunch changes and costs; nothing is asked where the command is dead and no lever wants company."""
    wanted = [] if clean else [load_levers()[lever] for lever in levers if lever not in situation.levers]
    company = [name for lever in wanted for name in lever.offers if name not in levers]
    company = [name for name in company if not situation.blocked_levers.get(name)]
    if not situation.command_runs and not company:
        return None
    body = [*(what_runs(situation) if situation.command_runs else []), Content("")]
    body += change_rows(situation, levers, clean=clean)
    for lever in wanted:
        body.append(Content(""))
        for label, text in (("gives", lever.gives), ("costs", lever.cost), ("caution", lever.caution)):
            body += entry(label, text, BODY_WIDTH)
    return Question(relaunch_title(situation, levers, clean=clean), body, relaunch_choices(company))


def relaunch_title(situation: Situation, levers: Sequence[str], *, clean: bool) -> str:
    """`Relaunch with eager and coredump?`."""
    if clean:
        return "Relaunch as typed, without any debug setting of ours or of the shell?"
    if list(levers) == situation.levers:
        return "Relaunch the same again?"
    return f"Relaunch with {' and '.join(levers)}?" if levers else "Relaunch without levers?"


def relaunch_choices(company: Sequence[str]) -> list[Choice]:
    if not company:
        return [Choice("enter,y", "relaunch", "relaunch")]
    return [Choice("enter,y", f"with {company[0]}", f"relaunch+{company[0]}"), Choice("o", "without", "relaunch")]


def change_rows(situation: Situation, levers: Sequence[str], *, clean: bool) -> Body:
    """The difference of the new launch from the present one: what comes in, what goes out."""
    now = set(changes_of(situation, situation.levers, clean=False))
    then = set(changes_of(situation, levers, clean=clean))
    rows = [Content.styled(f"  - {printable(text)}", "$text-warning") for text in sorted(now - then)]
    rows += [Content.styled(f"  + {printable(text)}", "$text-success") for text in sorted(then - now)]
    return rows or [Content.styled("  the same command and environment", "dim")]


def changes_of(situation: Situation, levers: Sequence[str], *, clean: bool) -> Iterator[str]:
    """What a launch changes of what was typed, as one would type it."""
    draft = plan(
        base_spec(situation.model), levers, bare=False, clean=clean, coredumps=f"{situation.model.session}/coredumps"
    )
    for change in draft.changes:
        if change.after is None:
            yield f"unset {change.name}"
        else:
            yield f"{change.name}{'' if change.name.startswith('-') else '='}{change.after}".rstrip()


def base_spec(model: SessionModel) -> LaunchSpec:
    """What was typed, as far as a view knows it: of the environment only the debug variables."""
    inherited = (setting.setting for setting in model.debug_settings if setting.origin == "inherited")
    env = {name: value for name, _, value in (setting.partition("=") for setting in inherited)}
    return LaunchSpec(argv=model.command, env=env, cwd=model.cwd)


def blocked_levers(model: SessionModel) -> dict[str, str]:
    """Why levers would change nothing on this command, by lever id."""
    spec = base_spec(model)
    return {lever: reason for lever in load_levers() if (reason := blocked(lever, spec))}
