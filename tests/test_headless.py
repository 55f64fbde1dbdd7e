"""`run --headless` on real commands: the lines, the exit codes, the signals, the leftovers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.conftest import Spawn, WaitFor
from vllm_probes.commands import Command, Relaunch, Stop
from vllm_probes.events import CommandAnswered
from vllm_probes.keeper.client import Client, connect
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.keeper.keeper import LINGER_S
from vllm_probes.keeper.priority import URGENT_NICE

Line = dict[str, Any]

STUBBORN = """
import signal, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(100)
"""


class Run:
    """One `vllm-tui` as a child, its lines read as they come."""

    def __init__(self, *arguments: str, state: Path, **popen: Any) -> None:
        env = {**os.environ, "XDG_STATE_HOME": str(state), **popen.pop("env", {})}
        self.lines: list[Line] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm_tui", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            **popen,
        )

    def until(self, event: str, **fields: Any) -> Line:
        """The next line of this kind; what came before is kept in `lines`."""
        for line in self:
            if line["event"] == event and all(line.get(key) == value for key, value in fields.items()):
                return line
        raise AssertionError(f"no {event} {fields} in {self.lines}\n{self.errors()}")

    def __iter__(self) -> Iterator[Line]:
        assert self.process.stdout
        for text in self.process.stdout:
            self.lines.append(json.loads(text))
            yield self.lines[-1]

    def end(self) -> int:
        """Read to the end; the exit code."""
        for _ in self:
            pass
        return self.process.wait(30)

    def errors(self) -> str:
        assert self.process.stderr
        return self.process.stderr.read()

    def states(self) -> list[str]:
        return [line["state"] for line in self.lines if line["event"] == "state_changed"]

    def of(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]


@pytest.fixture
def start(tmp_path: Path, spawned: Spawn) -> Iterator[Any]:
    """Starts a `vllm-tui`; what it starts carries the mark of `spawned`, which ends it after the test."""
    runs: list[Run] = []

    def run(*arguments: str, **popen: Any) -> Run:
        runs.append(Run(*arguments, state=tmp_path / "state", **popen))
        return runs[-1]

    yield run
    for started in runs:
        with started.process as process:
            process.kill()


@pytest.mark.parametrize(
    ("script", "code", "state"),
    [
        ("exit 0", 0, "exited"),
        ("exit 3", 3, "crashed"),
        ("kill -SEGV $$", 128 + signal.SIGSEGV, "crashed"),
        ("kill -TERM $$", 128 + signal.SIGTERM, "crashed"),
    ],
)
def test_the_exit_code_is_that_of_the_command(start: Any, script: str, code: int, state: str) -> None:
    run = start("run", "--headless", "--", "sh", "-c", script)
    assert run.end() == code
    assert run.states() == ["running", state]
    exited = run.of("exited")
    assert len(exited) == 1
    assert (exited[0]["code"], exited[0]["signal"]) == ((code, None) if code < 128 else (None, code - 128))


def test_every_line_has_the_common_fields_and_the_session_comes_first(start: Any) -> None:
    run = start("--headless", "--", "sh", "-c", "echo hello")
    assert run.end() == 0
    first = run.lines[0]
    assert first["event"] == "session_started"
    assert first["schema"] == 1
    assert Path(first["session"], "events.jsonl").is_file()
    for line in run.lines:
        assert isinstance(line["time"], float)
        assert isinstance(line["mono"], float)
        assert isinstance(line["node"], str)
        assert isinstance(line["attempt"], int)
    attempt = run.of("attempt_started")[0]
    assert attempt["command"] == ["sh", "-c", "echo hello"]
    assert attempt["levers"] == []
    assert Path(first["session"], attempt["log"]).read_bytes() == b"hello\n"


def test_the_lines_are_those_of_the_recording(start: Any) -> None:
    run = start("--headless", "--", "sh", "-c", "echo a; sleep 0.3; echo b")
    run.end()
    recording = Path(run.lines[0]["session"], "events.jsonl").read_text().splitlines()
    assert run.lines == [json.loads(line) for line in recording]


def test_options_behind_the_dashes_are_the_commands(start: Any) -> None:
    run = start("--headless", "--", "echo", "--headless", "--", "--name", "x")
    assert run.end() == 0
    log = Path(run.lines[0]["session"], run.of("attempt_started")[0]["log"])
    assert log.read_text() == "--headless -- --name x\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_tree(start: Any, number: signal.Signals) -> None:
    run = start("--headless", "--", "sh", "-c", "sleep 100 & sleep 100; wait")
    run.until("state_changed", state="running")
    run.process.send_signal(number)
    run.end()
    assert run.states() == ["running", "stopping", "exited"]
    assert run.of("stop_requested")[0]["by"] == "signal"


def test_a_second_signal_kills(start: Any) -> None:
    run = start("--headless", "--", sys.executable, "-c", STUBBORN)
    run.until("log_sampled")
    run.process.send_signal(signal.SIGINT)
    run.until("signal_sent", signal="SIGINT")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 128 + signal.SIGKILL
    assert [line["signal"] for line in run.of("signal_sent")] == ["SIGINT", "SIGKILL"]


def test_hanging_up_ends_only_the_view(start: Any) -> None:
    run = start("--headless", "--name", "survivor", "--", "sleep", "100")
    shim_pid = run.until("attempt_started")["shim_pid"]
    run.process.send_signal(signal.SIGHUP)
    assert run.end() == 0
    os.kill(shim_pid, 0)
    state = Path(run.lines[0]["session"]).parents[1]
    listed = subprocess.run(
        [sys.executable, "-m", "vllm_tui", "ls", "--json"],
        env={**os.environ, "XDG_STATE_HOME": str(state.parent)},
        capture_output=True,
        check=True,
    )
    row = next(row for row in json.loads(listed.stdout) if row["kind"] == "session")
    assert (row["name"], row["state"], row["kept"], row["alive"]) == ("survivor", "running", True, True)


def test_what_a_dead_command_leaves_behind_is_named_and_ended(start: Any) -> None:
    run = start("--headless", "--", "sh", "-c", "sleep 100 & sleep 101 & exit 0")
    ended = run.until("command_ended")
    assert [left["process"] for left in ended["leftovers"]] == ["sleep", "sleep"]
    run.end()
    assert run.of("stop_requested")[0]["by"] == "leftovers"
    for left in ended["leftovers"]:
        assert not Path(f"/proc/{left['pid']}").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--headless", "--", "no-such-program"], 127, "was not found"),
        (["--headless", "--", __file__], 126, "is not executable"),
        (["--headless", "--", "./missing/program"], 127, "was not found"),
        (["--headless"], 2, "No command"),
        (["run", "--headless", "--"], 2, "No command"),
        (["--", "sleep", "1"], 2, "--headless"),
        (["vllm", "serve", "m"], 2, "vllm-tui -- vllm serve m"),
        (["attach", "--", "x"], 2, "Only `run`"),
        (["attach", "nothing"], 2, "--headless"),
        (["--headless", "--levers", "warp", "--", "sleep", "1"], 2, "no lever 'warp'"),
        (["--headless", "--name", "a/b", "--", "sleep", "1"], 1, "is no name"),
        (["--nonsense", "--", "sleep", "1"], 2, "--nonsense"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(start: Any, arguments: list[str], code: int, sentence: str) -> None:
    run = start(*arguments)
    assert run.end() == code
    errors = run.errors()
    assert sentence in errors
    assert "Traceback" not in errors
    assert run.lines == []


def test_a_keeper_that_was_suspended_goes_on(start: Any) -> None:
    run = start("--headless", "--", "sh", "-c", "while :; do sleep 0.2; done")
    keeper = run.until("keeper_started")["pid"]
    run.until("processes_sampled")
    os.kill(keeper, signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):  # longer than a keeper lingers that nobody needs
        run.process.wait(LINGER_S + 1)
    os.kill(keeper, signal.SIGCONT)
    run.process.send_signal(signal.SIGINT)
    run.end()
    assert run.states()[-1] == "exited"


def test_a_lost_keeper_is_told_by_the_exit_code(start: Any) -> None:
    run = start("--headless", "--", "sleep", "100")
    keeper = run.until("keeper_started")["pid"]
    shim_pid = run.until("attempt_started")["shim_pid"]
    os.kill(keeper, signal.SIGKILL)
    assert run.end() == 70
    assert "keeper" in run.errors()
    os.kill(shim_pid, 0)


@pytest.mark.parametrize("delay_s", [0.15, 0.3, 0.5])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_first_moments_leaves_nothing_alone(
    start: Any, number: signal.Signals, delay_s: float, tmp_path: Path
) -> None:
    run = start("--headless", "--", "sleep", "100")
    with pytest.raises(subprocess.TimeoutExpired):  # the moment is the case: before the launch, during it, after it
        run.process.wait(delay_s)
    run.process.send_signal(number)
    run.end()
    for pids in tmp_path.glob("state/vllm-tui/sessions/*/attempt-1.pid"):
        assert not Path(f"/proc/{json.loads(pids.read_text())['command']}").exists()


def test_bytes_that_are_no_utf8_reach_the_command_and_do_no_harm(start: Any, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xff")
    folder.mkdir()
    script = 'printf "%s %s" "$0" "$FOO" | od -An -tx1; exec -a "$0" sleep 3'
    run = start(
        "--headless", "--", "bash", "-c", script, os.fsdecode(b"a\xfe"), cwd=folder, env={"FOO": os.fsdecode(b"\xfd")}
    )
    assert run.end() == 0, run.errors()
    session = Path(run.lines[0]["session"])
    assert (session / "attempt-1.log").read_text().split() == ["61", "fe", "20", "fd"]
    assert run.lines[0]["cwd"].endswith("/d?")
    names = {row["process"] for line in run.of("processes_sampled") for row in line["rows"]}
    assert any("a?" in name for name in names)
    assert run.of("trouble_noted") == []


def test_a_command_that_is_gone_before_the_keeper_comes_leaves_a_tree_that_is_seen(start: Any) -> None:
    run = start("--headless", "--", "sh", "-c", "setsid sleep 100 & exit 3")
    assert run.end() == 3
    assert run.of("attempt_started")[0]["shim_pid"] is not None
    assert [left["process"] for left in run.of("command_ended")[0]["leftovers"]] == ["sleep"]
    assert {row["process"] for line in run.of("processes_sampled") for row in line["rows"]} == {"sleep"}


def test_an_output_that_takes_nothing_more_is_told(start: Any) -> None:
    run = start("--headless", "--name", "full", "--", "sleep", "100")
    run.until("attempt_started")
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m vllm_tui --headless -- sleep 1 > /dev/full"],
        env={**os.environ, "XDG_STATE_HOME": str(Path(run.lines[0]["session"]).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Standard output cannot be written: No space left on device. The command runs on" in done.stderr
    assert "Traceback" not in done.stderr
    run.process.send_signal(signal.SIGTERM)
    run.end()


LONG_LOG = """
import sys
for _ in range(120):
    sys.stdout.write(("x" * 59 + "\\n") * 16_000)
print("(EngineCore pid=1) ERROR 11-21 10:00:00 [core.py:1] the end", flush=True)
sys.exit(9)
"""


def test_a_crash_before_the_stop_stays_a_crash_however_long_the_log(start: Any, wait_for: WaitFor) -> None:
    run = start("--headless", "--", sys.executable, "-c", LONG_LOG)
    session = Path(run.until("session_started")["session"])
    wait_for((session / "attempt-1.exit").exists, 30, "the command did not end")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 9
    assert run.states()[-1] == "crashed"
    assert run.of("command_ended")[0]["ended_mono"] < run.of("command_ended")[0]["mono"]


def test_a_stop_during_a_relaunch_is_a_stop(start: Any) -> None:
    stubborn = "import signal, time; signal.signal(2, signal.SIG_IGN); print('up', flush=True); time.sleep(100)"
    run = start("--headless", "--", sys.executable, "-c", stubborn)
    run.until("log_sampled")
    answers = asyncio.run(_ask(SessionFolder(Path(run.lines[0]["session"])), Relaunch(), Stop()))
    assert [answer.message for answer in answers] == ["Starting again.", "Stopping; it will not be started again."]
    assert run.end() == 128 + signal.SIGTERM
    assert [line["attempt"] for line in run.of("attempt_started")] == [1]


def test_the_exit_code_is_that_of_the_last_attempt(start: Any, wait_for: WaitFor, tmp_path: Path) -> None:
    script = f"test -e {tmp_path}/again && exit 4; touch {tmp_path}/again; exec sleep 100"
    run = start("--headless", "--", "sh", "-c", script)
    wait_for((tmp_path / "again").exists, message="the command did not start")
    run.until("processes_sampled")
    asyncio.run(_ask(SessionFolder(Path(run.lines[0]["session"])), Relaunch()))
    assert run.end() == 4
    assert [line["attempt"] for line in run.of("attempt_started")] == [1, 2]


def test_the_command_competes_as_it_would_alone_whoever_starts_it(start: Any, wait_for: WaitFor) -> None:
    """The keeper goes ahead of others where it may, and starts the second attempt itself."""
    run = start("--headless", "--", "sh", "-c", "nice; exec sleep 100")
    folder = SessionFolder(Path(run.until("processes_sampled") and run.lines[0]["session"]))
    asyncio.run(_ask(folder, Relaunch()))
    wait_for(lambda: folder.attempt(2).with_suffix(".log").exists() and _log(folder, 2), message="no second attempt")
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert (_log(folder, 1), _log(folder, 2)) == (f"{ours}\n", f"{ours}\n")
    allowed = subprocess.run(["nice", "-n", str(URGENT_NICE - ours), "nice"], capture_output=True, check=True).stdout
    assert os.getpriority(os.PRIO_PROCESS, run.of("keeper_started")[0]["pid"]) == int(allowed)


def _log(folder: SessionFolder, attempt: int) -> str:
    return folder.attempt(attempt).with_suffix(".log").read_text()


async def _ask(folder: SessionFolder, *wishes: Command) -> list[CommandAnswered]:
    client = await connect(folder)
    reading = asyncio.ensure_future(_read_all(client))
    answers = [await client.ask(structs.replace(wish, id=client.next_id())) for wish in wishes]
    reading.cancel()
    await client.close()
    return answers


async def _read_all(client: Client) -> None:
    async for _ in client.lines():
        pass


FULL_DISK = """
import ctypes, os, subprocess, sys
libc, state = ctypes.CDLL(None), sys.argv[1]
if libc.unshare(0x20000):  # CLONE_NEWNS
    sys.exit("no mount namespace")
libc.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
if libc.mount(b"tmpfs", state.encode(), b"tmpfs", 0, b"size=70m"):
    sys.exit("no tmpfs")
command = ["sh", "-c", "head -c 100000000 /dev/zero; sleep 1; exit 5"]
sys.exit(subprocess.call([sys.executable, "-m", "vllm_tui", "--headless", "--", *command]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_log_that_fills_the_disk_costs_neither_the_recording_nor_the_exit_code(
    tmp_path: Path, spawned: Spawn
) -> None:
    (tmp_path / "state").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "state")],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "no mount" in done.stderr or "no tmpfs" in done.stderr:
        pytest.skip(done.stderr.strip())
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 5, done.stderr
    assert [line["event"] for line in lines[-1:]] == ["tree_ended"]
    assert any(line["event"] == "disk_sampled" and line["free_bytes"] == 0 for line in lines)
    assert [line["code"] for line in lines if line["event"] == "exited"] == [5]
