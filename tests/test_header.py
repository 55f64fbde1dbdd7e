"""The row at the top of the screen: what is said there of how stacks can be had."""

from pathlib import Path

import pytest

from tests.ui_source import Script, running, screen_text, serving, shows, started
from vllm_probes.events import RungsChecked

COMMAND = ["vllm", "serve", "my-model", "-tp", "2"]
LONG_COMMAND = ["vllm", "serve", "meta-llama/Llama-3.1-70B-Instruct", "--tensor-parallel-size", "8", "--port", "8000"]
WAYS = [
    (True, True, "stacks: py-spy or signal", "py-spy reads them, else processes tell them when they get SIGUSR2"),
    (True, False, "stacks: py-spy", "py-spy reads them"),
    (False, True, "stacks: signal only", "py-spy cannot read them; processes tell them when they get SIGUSR2"),
    (False, False, "stacks: kernel only", "nobody can read them: only what the kernel says"),
]


@pytest.mark.parametrize(("py_spy", "hook", "mark", "said"), WAYS)
async def test_how_stacks_can_be_had(py_spy: bool, hook: bool, mark: str, said: str, tmp_path: Path) -> None:
    script = Script(command=COMMAND)
    source = serving(script, tmp_path)
    source.play(RungsChecked(**script.stamp(45), py_spy=py_spy, hook=hook))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "● SERVING  vllm serve my-model -tp 2 ", f"attempt 1 · {mark}   up 0:01:00")
        await pilot.press("D")
        await shows(app, pilot, "Details", said)


async def test_nothing_gives_way_to_it(tmp_path: Path) -> None:
    script = Script(command=COMMAND)
    source = serving(script, tmp_path)
    source.play(RungsChecked(**script.stamp(45), py_spy=True, hook=True))
    async with running(source, tmp_path, size=(80, 24)) as (app, pilot):
        await shows(app, pilot, "● SERVING  vllm serve my-model -tp 2 ", "attempt 1   up 0:01:00")
        await pilot.resize_terminal(120, 36)
        await shows(app, pilot, "● SERVING  vllm serve my-model -tp 2 ", "attempt 1 · stacks: py-spy or signal   up")


@pytest.mark.parametrize(("size", "mark"), [((80, 24), ""), ((120, 36), "stacks: signal only")])
async def test_while_it_starts_it_stands_below(size: tuple[int, int], mark: str, tmp_path: Path) -> None:
    script = Script(command=LONG_COMMAND)
    source = started(script, tmp_path)
    source.play(script.state("loading"), script.phase("Loading the weights"), script.progress(5, 8, eta="0:41"))
    source.play(RungsChecked(**script.stamp(5), py_spy=False, hook=True))
    async with running(source, tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "LOADING  vllm serve Llama-3.1-70B-Instruct", "attempt 1   up", "5 of 8")
        row = next(line for line in screen_text(app).splitlines() if "Loading the weights" in line)
        assert row.endswith(mark or "for 59 s")


async def test_an_old_recording_says_nothing_of_it(tmp_path: Path) -> None:
    async with running(serving(Script(), tmp_path), tmp_path) as (app, pilot):
        await shows(app, pilot, "attempt 1   up 0:01:00")
        await pilot.press("D")
        await shows(app, pilot, "Details")
        assert "stacks" not in screen_text(app)
