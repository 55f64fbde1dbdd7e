"""Once for each stall, also where the keeper was replaced, and not where it moves again."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.test_stream import stream
from vllm_probes.events import AttemptStarted, StallAnswered, StopRequested, VerdictChanged
from vllm_probes.keeper import on_stall
from vllm_probes.keeper.folder import Launch, SessionFolder
from vllm_probes.keeper.on_stall import OnStall
from vllm_probes.keeper.stream import Stream
from vllm_probes.launch import on_stall as words
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.sensors import tree


class Kept:
    """A stream, and what answers its stalls."""

    def __init__(self, folder: Path, **wanted: Any) -> None:
        spec = LaunchSpec(argv=["x"], env={"PATH": "/usr/bin:/bin"}, cwd="/")
        self.stream: Stream = stream(folder)
        self.stopped = 0
        launch = Launch(spec=spec, on_stall=words.OnStall(**wanted))
        self._on_stall = OnStall(self.stream, SessionFolder(folder), launch, self._start, self._stop)
        self._tasks: list[asyncio.Future[None]] = []

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    def _stop(self) -> None:
        self.stopped += 1

    def begin(self) -> None:
        stamp = {**self.stream.stamp(), "attempt": self.stream.begin_attempt()}
        self.stream.publish(AttemptStarted(**stamp, command=["x"], levers=[], log="attempt-1.log", shim_pid=1))

    def say(self, health: Literal["ok", "suspect", "stalled"]) -> None:
        self.stream.publish(VerdictChanged(**self.stream.stamp(), health=health))

    async def look(self) -> list[StallAnswered]:
        """What has been answered up to now."""
        self._on_stall.look(None)
        await asyncio.gather(*self._tasks)
        attempt = self.stream.model.attempt
        return attempt.stall_answers if attempt else []


async def test_each_stall_is_answered_once(tmp_path: Path) -> None:
    kept = Kept(tmp_path, exit=True)
    kept.begin()
    for health, stopped in (("suspect", 0), ("stalled", 1), ("suspect", 1), ("stalled", 1), ("ok", 1), ("stalled", 2)):
        kept.say(health)  # type: ignore[arg-type]
        await kept.look()
        await kept.look()
        assert kept.stopped == stopped, health
    kept.begin()
    kept.say("stalled")
    await kept.look()
    assert kept.stopped == 3


async def test_another_keeper_does_not_answer_it_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, exit=True)
    kept.begin()
    kept.say("stalled")
    assert len(await kept.look()) == 1
    kept.stream.close()
    later = Kept(tmp_path, exit=True)
    assert (len(await later.look()), later.stopped) == (1, 0)
    kept = Kept(tmp_path, exit=True)
    kept.say("ok")
    await kept.look()
    kept.say("stalled")
    await kept.look()
    assert kept.stopped == 1


async def test_what_is_being_stopped_is_left_alone(tmp_path: Path) -> None:
    kept = Kept(tmp_path, exit=True)
    kept.begin()
    kept.stream.publish(StopRequested(**kept.stream.stamp(), by="key"))
    kept.say("stalled")
    assert (await kept.look(), kept.stopped) == ([], 0)


async def test_what_moves_again_meanwhile_is_not_stopped(tmp_path: Path) -> None:
    kept = Kept(tmp_path, commands=[["true"]], exit=True)
    kept.begin()
    kept.say("stalled")
    looking = asyncio.ensure_future(kept.look())
    await asyncio.sleep(0)
    kept.say("ok")
    answers = await looking
    assert [(one.action, one.said) for one in answers][1:] == [("exit", "It is not stopped: it moves again.")]
    assert kept.stopped == 0


async def test_a_command_that_never_ends_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, async_wait_for: Any
) -> None:
    monkeypatch.setattr(on_stall, "COMMAND_LIMIT_S", 0.5)
    kept = Kept(tmp_path, commands=[["sh", "-c", "sleep 100 & echo $!; wait"]])
    kept.begin()
    kept.say("stalled")
    (answer,) = await kept.look()
    assert (answer.ok, "did not end within 0.5 s" in answer.said) == (False, True)
    child = int((tmp_path / "stall-1" / "exec-1.txt").read_text())
    await async_wait_for(lambda: not tree.is_running(child))


async def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    kept = Kept(tmp_path, bundle=True)
    kept.begin()
    kept.say("stalled")
    (answer,) = await kept.look()
    assert (answer.action, answer.ok) == ("bundle", False)
    assert "attempt-1.log" in answer.said
    assert kept.stream.model.troubles[-1].what == answer.said
