"""The keeper of one session: runs the looks, obeys the views, and ends when nobody needs it any more."""

import asyncio
import os
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from vllm_probes import __version__, commands
from vllm_probes.events import SCHEMA, CommandAnswered, KeeperStarted, ModelRestored, SessionStarted
from vllm_probes.judges.frames import load_frames
from vllm_probes.judges.judging import Knowledge
from vllm_probes.keeper.control import ControlServer
from vllm_probes.keeper.course import Course
from vllm_probes.keeper.folder import Attached, SessionFolder
from vllm_probes.keeper.on_stall import OnStall
from vllm_probes.keeper.rulebook import load_rulebook
from vllm_probes.keeper.stream import Stream
from vllm_probes.keeper.surroundings import Surroundings
from vllm_probes.launch.levers import blocked, load_levers
from vllm_probes.launch.takeover import refusal

LOG_INTERVAL_S = 0.1
LOOK_INTERVAL_S = 1.0
DISK_INTERVAL_S = 10.0
LOOK_OUT_S = 3.0
"""What a process may take to show its stacks while a hang is looked for: one that takes longer keeps a look waiting."""
LINGER_S = 5.0
"""How long a keeper without a tree and without views waits for somebody."""


class Keeper:
    """Everything that happens to one session, in one event loop."""

    def __init__(self, folder: SessionFolder, pid: int) -> None:
        self._folder, self._pid = folder, pid
        self._server = ControlServer(folder.socket, folder.events, self)
        rules, self._rule_faults = load_rulebook()
        self._stream = Stream(
            folder, Knowledge(rules.by_id, load_frames(machine=os.uname().machine)), self._server.broadcast
        )
        launch = folder.launch()
        self._spec = launch.spec
        self._unwatched = False
        self._tasks = asyncio.TaskGroup()
        self._surroundings = Surroundings(self._stream, launch)
        self._course = Course(self._stream, folder, launch, rules, self._start, self._surroundings.look_at_host)
        self._on_stall = OnStall(self._stream, folder, launch, self._start, partial(self._course.stop, "stall"))
        self._busy_until_mono = time.monotonic() + LINGER_S
        self._failures: set[str] = set()

    async def run(self) -> None:
        """Keep the session until nothing of it runs and nobody looks at it."""
        self._introduce()
        await self._course.begin()
        server = await self._server.start()
        try:
            async with self._tasks:
                looks = [
                    self._tasks.create_task(self._every(LOG_INTERVAL_S, self._look_at_log)),
                    self._tasks.create_task(self._every(LOOK_INTERVAL_S, self._look)),
                    self._tasks.create_task(self._every(LOOK_INTERVAL_S, self._look_out)),
                    self._tasks.create_task(self._every(DISK_INTERVAL_S, self._look_at_disk)),
                ]
                await self._until_unneeded()
                for look in looks:
                    look.cancel()
        finally:
            server.close()
            self._folder.socket.unlink(missing_ok=True)
            self._course.close()
            self._surroundings.close()
            self._stream.close()

    def _introduce(self) -> None:
        if self._stream.is_new:
            meta = self._folder.meta()
            self._stream.publish(
                SessionStarted(
                    **self._stream.stamp(),
                    schema=SCHEMA,
                    session=str(self._folder.path),
                    version=__version__,
                    name=meta.name,
                    command=meta.command,
                    cwd=meta.cwd,
                    boot_id=meta.boot_id,
                )
            )
        for fault in self._rule_faults:
            self._stream.trouble(f"A rule of yours is left out: {fault}", "Mend it; the other rules work.")
        replaced = self._course.tree_runs
        self._stream.publish(KeeperStarted(**self._stream.stamp(), pid=self._pid, replaced=replaced))

    async def _until_unneeded(self) -> None:
        """Looks before it judges the time: a keeper that was suspended for long is still needed."""
        while not self._unwatched:
            if self._course.busy or self._server.connection_count:
                self._busy_until_mono = time.monotonic() + LINGER_S
            elif time.monotonic() >= self._busy_until_mono:
                return
            await asyncio.sleep(0.2)

    # --- looks ------------------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[None]":
        return self._tasks.create_task(self._guarded(work))

    async def _every(self, interval_s: float, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._guarded(look())
            await asyncio.sleep(interval_s)

    async def _guarded(self, work: Awaitable[Any]) -> None:
        """What fails is told, and everything else goes on."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - the one place that stands between a fault of ours and the session
            self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        what = f"Part of the keeper failed: {type(error).__name__}: {error}."
        if what in self._failures:
            return
        self._failures.add(what)
        traceback.print_exception(error)
        self._stream.trouble(what, f"The details are in {self._folder.keeper_log}; vLLM is not affected.")

    async def _look_at_log(self) -> None:
        if watch := self._course.watch:
            watch.log()
            await self._course.look_for_end()
        self._stream.retry()
        await self._server.recorded()

    async def _look(self) -> None:
        self._surroundings.look()
        if watch := self._course.watch:
            watch.look_at_processes()
            watch.check_levers()
            await watch.look_at_endpoint()

    async def _look_out(self) -> None:
        """Beside the other looks: a server that hangs makes the one at its endpoint wait."""
        self._course.try_rungs()
        if watch := self._course.watch:
            if reason := watch.wants_stacks():
                self._start(watch.capture_stacks(reason, timeout_s=LOOK_OUT_S))
            self._on_stall.look(watch.vllm_version)

    async def _look_at_disk(self) -> None:
        if watch := self._course.watch:
            watch.look_at_disk()

    # --- commands ---------------------------------------------------------------------------------------------------

    def restored(self) -> ModelRestored:
        return self._stream.restored()

    def answered(self, command: commands.Command, ok: bool, message: str) -> CommandAnswered:
        return CommandAnswered(**self._stream.stamp(), id=command.id, ok=ok, message=message)

    async def obey(self, command: commands.AnyCommand) -> tuple[bool, str]:
        attached = self._course.attached
        if attached is not None and not isinstance(command, commands.CaptureStacks | commands.Probe):
            return self._obey_of_watched(command, attached)
        match command:
            case commands.Stop():
                return self._obey_stop(command)
            case commands.Relaunch():
                return self._obey_relaunch(command)
            case commands.StartNow():
                waits = self._course.start_now()
                return waits, "It waits no longer." if waits else "Nothing waits to be started."
            case commands.EndHolders():
                ends = self._course.end_holders()
                return ends, "Ending them." if ends else "No session of yours holds it up."
            case commands.CaptureStacks():
                return await self._obey_capture()
            case commands.Probe():
                return self._obey_probe()
            case _:
                return False, "That was said before."

    def _obey_of_watched(self, command: commands.AnyCommand, attached: Attached) -> tuple[bool, str]:
        """What was not started here is not changed from here."""
        if not isinstance(command, commands.StopWatching):
            return False, refusal(attached.pid, attached.user)
        if self._server.connection_count > 1:
            return False, "Somebody else looks at it, too: it is watched on."
        self._unwatched = True
        return True, "It is watched no more, and runs on."

    def _obey_stop(self, command: commands.Stop) -> tuple[bool, str]:
        if not self._course.busy:
            return False, "Nothing runs that could be stopped."
        return True, self._course.stop(command.by, kill=command.kill)

    def _obey_relaunch(self, command: commands.Relaunch) -> tuple[bool, str]:
        known = load_levers()
        for lever in command.levers:
            if lever not in known:
                return False, f"There is no lever {lever!r}; there are {', '.join(known)}."
            if reason := blocked(lever, self._spec):
                return False, reason
        if not self._course.relaunch(command.levers, clean=command.clean):
            return False, "It is being stopped or started already; ask again when that is over."
        return True, "Starting again."

    def _obey_probe(self) -> tuple[bool, str]:
        """It takes up to ten seconds, in which this view may want something else: nobody waits for it here."""
        watch = self._course.watch
        if watch is None or not watch.can_probe():
            return False, "Nothing that could be asked listens: it does not serve yet, or it is no server."
        self._start(watch.probe())
        return True, "Asking."

    async def _obey_capture(self) -> tuple[bool, str]:
        if self._course.watch is None:
            return False, "Nothing runs whose stacks could be taken."
        captured = await self._course.watch.capture_stacks("key")
        missing = sum(1 for stack in captured.stacks if stack.error)
        taken = len(captured.stacks) - missing
        return True, f"Stacks of {taken} processes taken" + (f", {missing} could not be read." if missing else ".")
