"""What is done about a stall when nobody looks: the words of `--on-stall`, and the demo that hangs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Spawn, WaitFor
from tests.test_headless import Run
from vllm_probes.demo import demo_command
from vllm_probes.keeper import bundle
from vllm_probes.launch.on_stall import OnStall, OnStallError, parse
from vllm_probes.sensors import tree

SAVES_ITS_INPUT = "import os, sys; open('told.json', 'w').write(sys.stdin.read()); print(os.getcwd()); sys.exit({code})"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], OnStall()),
        (["bundle", "bundle"], OnStall(bundle=True)),
        (["exit", "exec=sh -c 'a; b'"], OnStall(commands=[["sh", "-c", "a; b"]], exit=True)),
        (["exec=true", "exec=false"], OnStall(commands=[["true"], ["false"]])),
    ],
)
def test_words(words: list[str], wanted: OnStall) -> None:
    assert parse(words) == wanted


def test_a_program_with_a_path_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notify").write_text("#!/bin/sh\n")
    (tmp_path / "notify").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert parse(["exec=./notify now"]).commands == [[str(tmp_path / "notify"), "now"]]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("bundles", "takes bundle, exit or exec=CMD, not 'bundles'"),
        ("", "takes bundle, exit or exec=CMD, not ''"),
        ("exec", "not 'exec'"),
        ("exec=", "lacks a command"),
        ("exec=  ", "lacks a command"),
        ("exec=sh 'x", "cannot be split into words: No closing quotation"),
        ("exec=no-such-program x", "no-such-program was not found"),
        ("exec=/dev/null", "/dev/null was not found or is not executable"),
    ],
)
def test_other_words_are_refused(word: str, said: str, state_home: Path) -> None:
    with pytest.raises(OnStallError, match=r"^--on-stall "):
        parse([word])
    run = Run("run", "--headless", "--on-stall", word, "--", "true", state=state_home)
    assert run.process.wait(30) == 2
    assert said in run.errors()
    assert not any(state_home.iterdir())


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\xff\n" % number for number in range(5000)))
    lines = bundle.tail(log).splitlines()
    assert (len(lines), lines[0], lines[-1]) == (2000, "line 3000�", "line 4999�")
    log.write_bytes(b"x" * (bundle.TAIL_BYTES + 5))
    assert len(bundle.tail(log)) == bundle.TAIL_BYTES


@pytest.fixture
def hung(state_home: Path, spawned: Spawn, tmp_path: Path) -> Any:
    """A demo in a hurry, with a secret on its command line; what it starts is ended with the test (by `spawned`)."""

    def start(*words: str) -> Run:
        command = [*demo_command(), "--pace", "20", "--api-key", "sesame-4711"]
        options = [option for word in words for option in ("--on-stall", word)]
        return Run("run", "--headless", *options, "--", *command, state=state_home)

    return start


def test_evidence_is_saved_then_told_to_a_command_then_the_tree_is_stopped(hung: Any, wait_for: WaitFor) -> None:
    code = SAVES_ITS_INPUT.format(code=0)
    run = hung("exit", f'exec={sys.executable} -c "{code}"', "bundle")
    assert run.end() == 3
    session = Path(run.lines[0]["session"])
    (verdict,) = [line for line in run.of("verdict_changed") if line["health"] == "stalled"]
    answers = run.of("stall_answered")
    assert [(one["action"], one["ok"], one["path"]) for one in answers] == [
        ("bundle", True, "stall-1"), ("exec", True, "stall-1/exec-1.txt"), ("exit", True, None),
    ]  # fmt: skip
    assert run.of("stop_requested")[0]["by"] == "stall"
    saved = session / "stall-1"
    assert json.loads((saved / "verdict.json").read_text()) == verdict
    assert json.loads((session / "told.json").read_text()) == verdict
    assert (saved / "exec-1.txt").read_text() == f"{session}\n"
    named = {one["file"] for one in verdict["evidence"] if "file" in one}
    assert named
    assert all((saved / name).read_bytes() == (session / name).read_bytes() for name in named)
    tables = json.loads((saved / "processes.json").read_text())
    assert verdict["culprits"][0]["pid"] in [row["pid"] for row in tables["processes"]]
    assert verdict["culprits"][0]["pid"] in [one["pid"] for one in tables["doing"]]
    assert json.loads((saved / "versions.json").read_text())["vllm"] == "0.32.0"
    assert "gpus.json" in {file.name for file in saved.iterdir()}
    log = (saved / "log-tail.txt").read_text()
    assert "Application startup complete." in log
    assert "sesame-4711" not in "".join(file.read_text() for file in saved.rglob("*") if file.is_file())
    wait_for(lambda: not any(tree.is_running(row["pid"]) for row in tables["processes"]))


def test_a_command_that_fails_is_told_and_the_rest_is_done(hung: Any) -> None:
    run = hung(f'exec={sys.executable} -c "{SAVES_ITS_INPUT.format(code=7)}"', "exec=cat /nowhere", "exit")
    assert run.end() == 3
    assert [(one["action"], one["ok"]) for one in run.of("stall_answered")] == [
        ("exec", False), ("exec", False), ("exit", True),
    ]  # fmt: skip
    assert [line["what"] for line in run.of("trouble_noted") if "ended with code 7" in line["what"]]
