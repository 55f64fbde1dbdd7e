"""The keeper's socket: real keepers of small commands, and peers that do not behave."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import Spawn
from vllm_probes import commands
from vllm_probes.events import CommandAnswered, Event, LogSampled, ModelRestored, decode
from vllm_probes.keeper.attempts import first_attempt, start_keeper
from vllm_probes.keeper.client import Client, connect
from vllm_probes.keeper.control import MAX_BACKLOG_BYTES, ControlServer, short_path
from vllm_probes.keeper.folder import KeeperError, Launch, SessionFolder, create
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.model import SessionModel, restore, snapshot
from vllm_tui.live import LiveSource
from vllm_tui.source import OtherVersionError

STAMP: dict[str, Any] = {"time": 1.0, "mono": 1.0, "node": "n", "attempt": 1}


@pytest.fixture
def session(state_home: Path, spawned: Spawn) -> SessionFolder:
    """A command that runs, and its keeper."""
    argv = ["sh", "-c", "echo ready; exec sleep 100"]
    spec = LaunchSpec(argv=argv, env=dict(os.environ), cwd="/")
    folder = create(Launch(spec=spec), command=argv, name="kept")
    first_attempt(folder, folder.launch()).start()
    start_keeper(folder)
    return folder


async def say(folder: SessionFolder, *lines: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw connection that has said so much."""
    await (await connect(folder)).close()
    with short_path(folder.socket) as address:
        reader, writer = await asyncio.open_unix_connection(address, limit=64 << 20)
    writer.writelines(lines)
    return reader, writer


async def next_answer(reader: asyncio.StreamReader) -> CommandAnswered:
    while line := await reader.readline():
        if isinstance(event := decode(line), CommandAnswered):
            return event
    raise AssertionError("the keeper closed the connection")


HELLO = commands.encode(commands.Hello())


@pytest.mark.parametrize("first", [b'{"command":"hello","protocol":99}\n', b'{"command":"hello","proto\n', b"GET /\n"])
async def test_another_language_is_refused(session: SessionFolder, first: bytes) -> None:
    reader, _ = await say(session, first)
    answer = await next_answer(reader)
    assert (answer.ok, answer.message) == (False, commands.OTHER_VERSION)
    assert await reader.read() == b""


@pytest.mark.parametrize(
    ("line", "id"),
    [(b'{"command":"dance","id":7}\n', 7), (b"{}\n", 0), (b"[1]\n", 0), (b'{"id":"x"}\n', 0), (b"\xff\n", 0)],
)
async def test_an_unknown_command_is_answered(session: SessionFolder, line: bytes, id: int) -> None:
    reader, _ = await say(session, HELLO, line)
    answer = await next_answer(reader)
    assert (answer.id, answer.ok) == (id, False)


async def test_a_line_without_end_ends_only_that_view(session: SessionFolder) -> None:
    reader, writer = await say(session, HELLO, b"x" * (3 << 20))
    assert b'"model_restored"' in await reader.readline()
    with suppress(ConnectionResetError):
        await reader.read()
    writer.close()
    client = await connect(session)
    assert isinstance(await anext(restored_only(client)), ModelRestored)
    await client.close()


async def restored_only(client: Client) -> AsyncIterator[Event]:
    async for batch in client.batches():
        for event in batch:
            if isinstance(event, ModelRestored):
                yield event


async def test_two_views_see_the_same_stop(session: SessionFolder) -> None:
    views = [await connect(session), await connect(session)]
    first, second = (asyncio.ensure_future(until_ended(view)) for view in views)
    answer = await views[0].ask(commands.Stop(id=views[0].next_id()))
    assert answer.ok
    assert [await first, await second] == ["exited", "exited"]
    for view in views:
        await view.close()


async def until_ended(view: Client) -> str:
    """What a view believes the last attempt's end to be."""
    model = SessionModel()
    async for batch in view.batches():
        for event in batch:
            if isinstance(event, ModelRestored):
                model = restore(event)
            else:
                model.apply(event)
        if model.attempt and model.attempt.exited:
            break
    return model.state


async def test_a_view_learns_that_the_keeper_is_of_another_version(session: SessionFolder) -> None:
    source = LiveSource(session)
    await (await connect(session)).close()
    reader, writer = await say(session, b'{"command":"hello","protocol":99}\n')
    source._client = Client(reader, writer)
    with pytest.raises(OtherVersionError, match="another version"):
        [batch async for batch in source.batches()]


class Host:
    """Of a server without a keeper, to look at its views."""

    def restored(self) -> ModelRestored:
        return ModelRestored(**STAMP, model=snapshot(SessionModel(name="x" * 100)))

    def answered(self, command: commands.Command, ok: bool, message: str) -> CommandAnswered:
        return CommandAnswered(**STAMP, id=command.id, ok=ok, message=message)

    async def obey(self, command: commands.AnyCommand) -> tuple[bool, str]:
        return True, ""


async def test_a_view_that_reads_too_slowly_is_told_everything_again(tmp_path: Path) -> None:
    control = ControlServer(tmp_path / "socket", tmp_path / "events.jsonl", Host())
    async with await control.start():
        with short_path(tmp_path / "socket") as address:
            reader, writer = await asyncio.open_unix_connection(address, limit=1 << 20)
        writer.write(HELLO)
        assert isinstance(decode(await reader.readline()), ModelRestored)
        sent = LogSampled(**STAMP, size_bytes=1, line_count=1)
        count = 2 * MAX_BACKLOG_BYTES // len(msgspec.json.encode(sent))
        for _ in range(count):
            control.broadcast(sent)
        got = 0
        while not isinstance(event := decode(await reader.readline()), ModelRestored):
            got += isinstance(event, LogSampled)
            await control.recorded()
        assert 0 < got < count
        writer.close()


def test_another_users_connection_is_closed_without_a_word(session: SessionFolder) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    asyncio.run(say(session))
    session.path.chmod(0o755)
    session.socket.chmod(0o666)
    program = f"""
import os, socket
peer = socket.socket(socket.AF_UNIX)
os.chdir({str(session.socket.parent)!r})
os.setresuid(65534, 65534, 65534)
peer.connect({session.socket.name!r})
peer.settimeout(10)
try:
    peer.sendall({HELLO!r})
    print(peer.recv(100))
except (ConnectionResetError, BrokenPipeError):
    print(b"")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.stdout.strip() == "b''", done.stderr


async def test_a_keeper_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    lost = tmp_path / "nowhere"
    with pytest.raises(KeeperError) as raised:
        await connect(SessionFolder(lost))
    assert str(raised.value) == f"No keeper can be started in {lost}: No such file or directory."
