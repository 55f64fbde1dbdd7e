"""The lines that stop a run of others and start it again: what a shell makes of them is what was there."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.launch.takeover import has_secrets, refusal, stop_command, takeover_command


def test_the_stop_command() -> None:
    assert stop_command(1234, None) == "kill -INT 1234"
    assert stop_command(1234, "alice") == "sudo kill -INT 1234"
    assert refusal(1234, None).startswith("Not started by this program: stop it with `kill -INT 1234`;")


@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1), st.text(min_size=1))
def test_a_shell_gets_every_word_back(argv: list[str], folder: str) -> None:
    line = takeover_command(["vllm", *argv], f"/{folder}", [])
    assert shlex.split(line) == ["cd", f"/{folder}", "&&", "vllm-tui", "--", "vllm", *argv]


def test_the_levers_come_before_the_command() -> None:
    line = takeover_command(["vllm", "serve", "m"], "/srv", ["eager", "launch-blocking"])
    assert line == "cd /srv && vllm-tui --levers eager,launch-blocking -- vllm serve m"


@pytest.mark.parametrize("argv", [[], ["VLLM::EngineCore"]])
def test_a_title_is_no_command(argv: list[str]) -> None:
    assert takeover_command(argv, "/srv", []) == ""


def test_secrets_have_to_be_typed_again() -> None:
    assert has_secrets(["vllm", "--api-key", "***"])
    assert has_secrets(["vllm", "--api-key=***"])
    assert not has_secrets(["vllm", "serve", "m"])
