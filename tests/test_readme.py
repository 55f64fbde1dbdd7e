"""What the README says is what the program does."""

from pathlib import Path

import click

from vllm_tui.actions import markdown_table
from vllm_tui.cli import cli

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_table_of_keys_is_that_of_the_program() -> None:
    assert f"<!-- keys -->\n{markdown_table()}<!-- /keys -->" in README


def test_every_command_and_option_is_named() -> None:
    for name, command in cli.commands.items():
        assert f"vllm-tui {name}" in README or f"vllm-tui [{name}]" in README
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in README


def test_every_picture_is_there() -> None:
    pictures = [part.split(")")[0] for part in README.split("](")[1:] if part.startswith("screenshots/")]
    assert len(pictures) >= 4
    for picture in pictures:
        assert (Path(__file__).parents[1] / picture).is_file()
