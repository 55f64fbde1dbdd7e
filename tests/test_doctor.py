"""`vllm-tui doctor`: real looks at this host, and the command from end to end.

No look leaves this host: the hub is a local server, or is not to be asked.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.conftest import WaitFor
from tests.doctor_host import quieten, write_program
from vllm_probes.doctor import examine
from vllm_probes.doctor.check import TITLES, Check
from vllm_probes.sensors import tree
from vllm_tui.doctor import as_json, as_lines, works

PROGRAM = [sys.executable, "-m", "vllm_tui", "doctor"]


@pytest.fixture(autouse=True)
def _quiet(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quieten(monkeypatch)


def run(**environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(PROGRAM, env=os.environ | environ, capture_output=True, text=True, timeout=60)


def run_json(**environ: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and the checks by their ids."""
    done = subprocess.run([*PROGRAM, "--json"], env=os.environ | environ, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["works"] else 1)
    return done.returncode, {check["id"]: check for check in found["checks"]}


# --- the command ----------------------------------------------------------------------------------------------------


def test_json_tells_every_check_once() -> None:
    _, checks = run_json()
    assert list(checks) == list(TITLES)
    assert checks["hub"]["outcome"] == "note"
    assert {check["outcome"] for check in checks.values()} <= {"ok", "note", "warning", "problem", "unknown"}


def test_an_address_of_another_host_is_a_problem() -> None:
    code, checks = run_json(VLLM_HOST_IP="203.0.113.1")
    assert code == 1
    assert checks["host-ip"]["outcome"] == "problem"
    assert "203.0.113.1" in checks["host-ip"]["what"]


def test_text_begins_with_the_worst() -> None:
    done = run(NCCL_SOCKET_IFNAME="=none", COLUMNS="100")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert lines[0].startswith("✖ PROBLEM")
    assert "✖ PROBLEM  NCCL_SOCKET_IFNAME" in lines
    assert any(line.startswith("✔ ok       MASTER_ADDR: ") for line in lines)
    assert lines[-1].startswith("Something will not work on this host: ")
    assert "\x1b" not in done.stdout


def test_colours_only_where_they_are_wanted() -> None:
    def shown(**environ: str) -> str:
        child = pexpect.spawn(PROGRAM[0], PROGRAM[1:], env=os.environ | {"TERM": "xterm"} | environ, encoding="utf-8")
        child.expect(pexpect.EOF, timeout=60)
        child.close()
        return str(child.before)

    assert "\x1b[36m• NOTE" in shown()
    assert "\x1b" not in shown(NO_COLOR="1")


@pytest.mark.parametrize("environ", [{"PYTHONIOENCODING": "latin-1"}, {"VLLM_HOST_IP": os.fsdecode(b"\xff\xfe")}])
def test_what_cannot_be_written_does_no_harm(environ: dict[str, str]) -> None:
    done = subprocess.run(PROGRAM, env=os.environ | environ, capture_output=True, timeout=60)
    assert b"Traceback" not in done.stderr
    assert b"MASTER_ADDR" in done.stdout
    run_json(**environ)


def test_nothing_behind_it_is_launched(tmp_path: Path) -> None:
    done = subprocess.run([*PROGRAM, "--", "touch", str(tmp_path / "x")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert not (tmp_path / "x").exists()


def test_lowered_limits_are_seen() -> None:
    def check(files: int) -> Any:
        script = f"ulimit -n {files}; exec {sys.executable} -m vllm_tui doctor --json"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
        return next(one for one in json.loads(done.stdout)["checks"] if one["id"] == "open-files")

    assert check(256)["outcome"] == "warning"
    low = check(100)
    assert low["outcome"] == "problem"
    assert low["what"].startswith("100 open files")


# --- what does not answer -------------------------------------------------------------------------------------------


def test_a_look_that_hangs_is_unknown_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: WaitFor
) -> None:
    pids = tmp_path / "pids"
    python = write_program(tmp_path / "bin" / "python-slow", f"#!/bin/sh\necho $$ >> {pids}\nexec sleep 600\n")
    write_program(tmp_path / "bin" / "vllm", f"#!{python}\n")
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    checks = {check.id: check for check in examine(3.0)}
    for check_id in ("vllm", "cuda", "py-spy", "ptrace"):
        assert checks[check_id].outcome == "unknown"
        assert checks[check_id].what == "It did not answer within 3 s."
        assert checks[check_id].means
        assert checks[check_id].fix
    assert pids.read_text().split()
    wait_for(lambda: not any(tree.is_running(int(pid)) for pid in pids.read_text().split()))


def test_a_look_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert {check.what for check in examine() if check.id != "debug-variables"} == {
        "The look at it failed: it does not say why."
    }
    monkeypatch.setattr(sys, "executable", "/not/there")
    assert "could not be started: No such file" in examine()[0].what


def test_what_is_printed_beside_the_facts_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello', end='')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert not [check.what for check in examine() if check.what.startswith("The look at it ")]


def test_a_hub_that_accepts_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        _, checks = run_json(HF_ENDPOINT=url, HF_HUB_OFFLINE="0")
    assert checks["hub"]["outcome"] in ("warning", "unknown")
    assert checks["hub"]["means"].startswith("Models ")


# --- text -----------------------------------------------------------------------------------------------------------


def checks() -> list[Check]:
    long = "a sentence of many words " * 12
    return [
        Check(id="a", title="A", outcome="ok", what=f"fine \x1b[31m {long}"),
        Check(id="b", title="B", outcome="note", what=long, means=long, fix=f"`do` {long}"),
        Check(id="c", title="C", outcome="problem", what="bad", means="worse", fix="fix " * 50),
    ]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_lines_fit_but_for_commands(width: int) -> None:
    lines = [line for line, _ in as_lines(checks(), width)]
    assert lines[0] == "✖ PROBLEM  C"
    assert [line for line in lines if len(line) > width] == ["  → " + "fix " * 50]
    assert "\x1b" not in "".join(lines)
    assert " ".join(lines).endswith(" Something will not work on this host: 1 problem, 1 note, 1 ok.")


def test_only_a_problem_does_not_work() -> None:
    assert not works(checks())
    assert works(checks()[:2])
    assert json.loads(as_json(checks()[:2]))["works"] is True
