"""The command `vllm-tui diagnose`."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAILED = "(EngineCore pid=2) ERROR 11-21 09:01:5{} [core.py:1512] ValueError: No available memory for the cache blocks."


def run(*arguments: str, given: bytes = b"", home: Path | None = None) -> "subprocess.CompletedProcess[bytes]":
    env = {**os.environ, "XDG_CONFIG_HOME": str(home or "/nowhere"), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "vllm_tui", "diagnose", *arguments]
    return subprocess.run(command, input=given, capture_output=True, env=env, timeout=60)


def findings(ended: "subprocess.CompletedProcess[bytes]") -> list[dict[str, object]]:
    assert ended.stderr == b""
    assert ended.returncode == 0
    found: list[dict[str, object]] = json.loads(ended.stdout)["findings"]
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "a.log"
    path.write_text(FAILED.format(5) + "\n")
    return path


def test_findings_as_json_have_every_field(log: Path) -> None:
    (found,) = findings(run(str(log), "--json"))
    assert list(found) == ["rule", "class", "role", "severity", "file", "line_number", "line", "why", "fix"]
    assert (found["rule"], found["class"], found["line_number"]) == ("kv-cache-none", "kv_cache_too_small", 1)
    assert (found["file"], found["line"]) == (str(log), FAILED.format(5))


def test_standard_input_and_gzip(log: Path) -> None:
    packed = log.with_name("a.log.gz")
    packed.write_bytes(gzip.compress(log.read_bytes()))
    wanted = findings(run(str(log), "--json"))[0]["line"]
    assert findings(run(str(packed), "--json"))[0]["line"] == wanted
    assert findings(run("-", "--json", given=log.read_bytes()))[0]["line"] == wanted
    assert findings(run("-", "--json", given=packed.read_bytes()))[0]["line"] == wanted
    assert findings(run("-", "--json")) == []


def test_of_several_logs_the_earliest_cause_comes_first(log: Path) -> None:
    other = log.with_name("b.log")
    other.write_text("healthy\n" + FAILED.format(1) + "\n")
    assert [(one["file"], one["line_number"]) for one in findings(run(str(log), str(other), "--json"))] == [
        (str(other), 2),
        (str(log), 1),
    ]


def test_text_for_people(log: Path) -> None:
    told = run(str(log)).stdout.decode()
    assert "FATAL  cause  kv_cache_too_small" in told
    assert "look for it: repo:vllm-project/vllm ValueError: No available memory for the cache blocks" in told
    assert "No failure" in run("-", given=b"all is well\n").stdout.decode()


def test_nothing_of_a_log_reaches_the_terminal_as_code(log: Path) -> None:
    log.write_bytes(b"OSError: [Errno 98] Address \x1b]0;owned\x07already in use \x9b31m\n")
    told = run(str(log)).stdout
    assert b"\x1b" not in told
    assert b"\x9b" not in told.replace("\x9b".encode(), b"")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Name the logs to read"),
        (("-", "--explain", "port-in-use"), "Name the logs to read"),
        (("/no/such.log",), "/no/such.log cannot be read: No such file or directory."),
        (("/tmp",), "/tmp cannot be read: Is a directory."),
        (("--explain", "port-in-us"), "There is no rule 'port-in-us'. Did you mean port-in-use"),
    ],
)
def test_bad_input_is_answered_by_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    ended = run(*arguments)
    assert ended.returncode in (1, 2)
    assert ended.stderr.decode().startswith(f"vllm-tui: {sentence}")


def test_a_torn_archive_is_answered_by_a_sentence(log: Path) -> None:
    log.write_bytes(gzip.compress(os.urandom(10_000))[:5_000])
    assert b"is no whole gzip file" in run(str(log)).stderr


def test_a_rule_is_explained() -> None:
    told = run("--explain", "kv-cache-none").stdout.decode()
    assert told.startswith("kv-cache-none: kv_cache_too_small, cause, fatal")
    assert "What to do: " in told
    assert "https://docs.vllm.ai/" in told


def test_rules_of_the_users_own(tmp_path: Path, log: Path) -> None:
    folder = tmp_path / "vllm-tui" / "rules"
    folder.mkdir(parents=True)
    rule = (
        '[[rule]]\nid = "mine"\nclass = "other"\nrole = "cause"\nseverity = "error"\nmatch = \'site gateway refused\'\n'
    )
    (folder / "a.toml").write_text(rule + 'why = "w"\nfix = "f"\nsamples = ["site gateway refused"]\n')
    (folder / "b.toml").write_text('[[rule]]\nid = "broken"\nmatch = "x"\nrole = "noise"\nsamples = ["x"]\n')
    log.write_text("the site gateway refused us\n")
    ended = run(str(log), "--json", home=tmp_path)
    assert [one["rule"] for one in json.loads(ended.stdout)["findings"]] == ["mine"]
    assert "b.toml: rule 'broken': every alternative of `match` needs" in ended.stderr.decode()
