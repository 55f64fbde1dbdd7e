"""The table of keys."""

import itertools

import pytest

from tests.ui_source import Script
from vllm_probes.model import SessionModel
from vllm_tui import actions
from vllm_tui.app import VllmTui
from vllm_tui.screens.findings import FindingsPage
from vllm_tui.screens.main import MainScreen
from vllm_tui.screens.rules import RulesPage
from vllm_tui.screens.stacks import StacksPage
from vllm_tui.situation import Connection, Pace, Situation
from vllm_tui.widgets.log_view import LogView


def situation(*, ended: bool = False, connection: Connection = "live", **more: object) -> Situation:
    model, script = SessionModel(), Script()
    model.apply(script.attempt_started())
    if ended:
        model.apply(script.state("exited"))
        model.apply(script.command_ended())
        model.apply(script.tree_ended())
    return Situation(model=model, connection=connection, **more)  # type: ignore[arg-type]


def keys_of(*places: actions.Place) -> list[str]:
    return [key for action in actions.ACTIONS if action.place in places for key in action.keys.split(",")]


def test_ids_and_keys_are_unique() -> None:
    keys = keys_of("app", "screen")
    keys += list(itertools.chain.from_iterable(binding.key.split(",") for binding in LogView.BINDINGS))  # type: ignore[union-attr]
    assert len(keys) == len(set(keys))
    assert len(actions.BY_ID) == len(actions.ACTIONS)


@pytest.mark.parametrize(("page", "others"), [("stacks", {"less_than_sign", "greater_than_sign"}), ("findings", set())])
def test_on_a_page_only_keys_of_a_recording_mean_something_else(page: actions.Place, others: set[str]) -> None:
    keys = keys_of(page)
    assert len(keys) == len(set(keys))
    assert set(keys) & set(keys_of("app")) == others


@pytest.mark.parametrize("action", actions.ACTIONS, ids=lambda action: action.id)
def test_every_action_is_there(action: actions.Action) -> None:
    call = action.run.partition(".")[2]
    owners = {"app": VllmTui, "screen": MainScreen, "stacks": StacksPage, "findings": FindingsPage, "rules": RulesPage}
    owner = owners[action.place]
    assert callable(getattr(owner, f"action_{call.partition('(')[0]}"))


@pytest.mark.parametrize("width", [1, 40, 80, 120, 200])
@pytest.mark.parametrize("pace", [None, Pace(paused=False, speed=1.0, over=False)])
def test_key_bar_fits(width: int, pace: Pace | None) -> None:
    shown = actions.key_bar(situation(pace=pace), width)
    text = " " + "  ".join(f"{action.key_label} {action.label}" for action in shown)
    assert len(text) <= max(1, width)


def test_help_and_quit_stay_in_the_narrowest_key_bar() -> None:
    assert [action.id for action in actions.key_bar(situation(), 20)] == ["quit", "help"]


@pytest.mark.parametrize("more", [{"readonly": True}, {"connection": "lost"}, {"connection": "recording"}])
@pytest.mark.parametrize("action_id", ["stacks", "eager", "blocking", "coredump", "again", "clean", "stop"])
def test_nothing_is_changed_without_a_keeper_that_takes_commands(action_id: str, more: dict[str, object]) -> None:
    assert actions.BY_ID[action_id].reason(situation(**more))  # type: ignore[arg-type]
    assert actions.BY_ID[action_id].reason(situation()) is None


def test_what_needs_a_running_vllm_says_so() -> None:
    ended = situation(ended=True)
    general = [action for action in actions.ACTIONS if action.group not in ("Replay", "Findings page")]
    blocked = [action.id for action in general if action.reason(ended)]
    assert blocked == ["stacks", "probe", "stop", "findings", "detach"]


def test_a_blocked_lever_says_why_but_can_be_taken_off() -> None:
    blocked = {"eager": "`run.py` decides itself."}
    assert actions.BY_ID["eager"].reason(situation(blocked_levers=blocked)) == "`run.py` decides itself."
    model = SessionModel()
    model.apply(Script().attempt_started(levers=["eager"]))
    pulled = Situation(model=model, connection="live", blocked_levers=blocked)
    assert actions.BY_ID["eager"].reason(pulled) is None


def test_readme_table_has_every_key() -> None:
    table = actions.markdown_table()
    assert all(f"| `{action.key_label}` | {action.help} |" in table for action in actions.ACTIONS)


def test_the_key_bar_of_a_recording_has_what_works_there() -> None:
    pace = Pace(paused=False, speed=1.0, over=False)
    recording = situation(connection="recording", pace=pace)
    shown = [action.id for action in actions.key_bar(recording, 80)]
    assert shown[-2:] == ["quit", "help"]
    assert {"pause", "step", "slower", "faster", "search"} <= set(shown)
    assert not {"stacks", "eager", "again", "stop", "detach"} & set(shown)
    recording.model.apply(Script().stacks_captured())
    assert "stacks" in [action.id for action in actions.key_bar(recording, 80)]
