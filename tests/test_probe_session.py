"""A probe through a real keeper and from the command line.

The server is a small stand-in of `vllm serve`: what matters here is that one request gets no answer while /health and
/metrics do, which of real vLLM only a hang shows.
"""

import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import PROGRAM, Spawn, WaitFor
from tests.kept import View, started
from vllm_probes import commands
from vllm_probes.events import ActivitySampled, ModelRestored, ProbeFinished, StacksCaptured, StateChanged
from vllm_probes.judges.probing import meaning
from vllm_probes.keeper.client import connect
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.sensors import ports

SERVER = """#!{python}
import http.server, json, pathlib, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        path = self.path.partition("?")[0]
        metrics, models = 'vllm:num_requests_running{{engine="0"}} 0', '{{"data":[{{"id":"m"}}]}}'
        pages = {{"/health": "", "/metrics": metrics, "/v1/models": models}}
        allowed = not path.startswith("/v1/") or self.headers["Authorization"] == "Bearer sesame-4711"
        self.answer(200 if allowed else 401, pages[path])
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if pathlib.Path({hang!r}).exists():
            threading.Event().wait()
        self.answer(200, "{{}}")
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[4])), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def _own_state(state_home: Path, spawned: Spawn) -> None:
    """None of the user's sessions, and no keeper that outlives the test."""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def hang(tmp_path: Path) -> Path:
    """While this file is there, no request is answered; it is."""
    (tmp_path / "hang").touch()
    return tmp_path / "hang"


@pytest.fixture
def argv(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("VLLM_API_KEY", "sesame-4711")
    program = tmp_path / "vllm"
    program.write_text(SERVER.format(python=sys.executable, hang=str(tmp_path / "hang")))
    program.chmod(0o755)
    return [str(program), "serve", "m", "--port", str(port)]


@pytest.fixture
def session(argv: list[str]) -> SessionFolder:
    return started(argv, "night")[0]


@pytest.fixture
async def view(session: SessionFolder) -> AsyncIterator[View]:
    view = View(await connect(session))
    await view.until(StateChanged, lambda event: event.state == "idle")
    yield view
    await view.close()


def answer_again(hang: Path) -> None:
    hang.unlink()


def probe(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*PROGRAM, "probe", *arguments], capture_output=True, text=True, check=False)


async def test_a_server_that_hangs_while_it_is_idle_is_looked_at_from_the_probe_on(view: View, hang: Path) -> None:
    assert await view.ask(commands.Probe(id=1)) == (True, "Asking.")
    assert (await view.ask(commands.Probe(id=2)))[0]
    told = await view.until(ActivitySampled)
    assert (told.probed, told.connections, told.requests) == (True, 0, 0)
    assert (await view.until(StacksCaptured)).reason == "quiet"
    finished = await view.until(ProbeFinished)
    assert meaning(finished.lights) == "The front end answers, the engine does not."
    assert len(finished.own_clients) == 3
    assert (await view.until(ActivitySampled, lambda event: event.mono > finished.mono)).probed
    answer_again(hang)
    assert (await view.ask(commands.Probe(id=3)))[0]
    assert meaning((await view.until(ProbeFinished)).lights) == "It serves."
    over = await view.until(ActivitySampled, lambda event: event.mono > finished.mono and not event.probed)
    assert over.connections == 0


async def test_the_key_of_the_server_is_used_and_nowhere_written(view: View, session: SessionFolder) -> None:
    assert (await view.ask(commands.Probe(id=1)))[0]
    assert (await view.until(ProbeFinished)).lights[2].outcome == "ok"
    assert "sesame" not in session.events.read_text()


async def test_what_is_no_server_cannot_be_asked() -> None:
    view = View(await connect(started(["sleep", "100"], "nap")[0]))
    await view.until(ModelRestored)
    ok, message = await view.ask(commands.Probe(id=1))
    assert not ok
    assert "it is no server" in message
    await view.close()


async def test_a_session_from_the_command_line(view: View, session: SessionFolder) -> None:
    asked = probe("night", "--json")
    told = json.loads(asked.stdout)
    assert (asked.returncode, told["served"], told["summary"]) == (0, True, "It serves.")
    assert [light["name"] for light in told["lights"]] == ["health", "metrics", "probe"]
    lines = probe().stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["health", "ok"], ["metrics", "ok"], ["probe", "ok"]]
    assert lines[3:] == ["It serves."]


def test_a_port_from_the_command_line(argv: list[str], port: int, spawned: Spawn, wait_for: WaitFor) -> None:
    refused = probe("--port", str(port))
    assert (refused.returncode, refused.stdout.splitlines()[-1][:20]) == (1, "Nobody listens there")
    spawned(argv)
    wait_for(lambda: ports.is_taken(port))
    assert probe("--port", str(port)).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["night", "--port", "8000"], 2, "not both"),
        (["--port", "0"], 2, "--port"),
        (["nobody"], 1, "no session called 'nobody'"),
        ([], 1, "No session is running"),
    ],
)
def test_what_cannot_be_asked_for(arguments: list[str], code: int, said: str) -> None:
    refused = probe(*arguments)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
