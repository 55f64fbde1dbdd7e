"""The keeper of one session: runs the looks, obeys the views, and ends when nobody needs it any more."""

import asyncio
import subprocess
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

from vllm_probes import __version__, commands
from vllm_probes.events import (
    SCHEMA,
    CommandAnswered,
    CommandEnded,
    KeeperStarted,
    ModelRestored,
    SessionStarted,
    SignalSent,
    StopRequested,
    TreeEnded,
    TroubleNoted,
)
from vllm_probes.judges.rules import load_rules
from vllm_probes.keeper import child
from vllm_probes.keeper.attempts import Attempt, first_attempt, next_attempt
from vllm_probes.keeper.control import ControlServer
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.keeper.stream import Stream
from vllm_probes.keeper.watch import Watch
from vllm_probes.launch.attempt import Ending, read_exit
from vllm_probes.launch.levers import LeverError, blocked, load_levers
from vllm_probes.rows import ProcessRef
from vllm_probes.sensors import files
from vllm_probes.sensors.shims import shim_alive

LOG_INTERVAL_S = 0.1
LOOK_INTERVAL_S = 1.0
DISK_INTERVAL_S = 10.0
LINGER_S = 5.0
"""How long a keeper without a tree and without views waits for somebody."""


class Keeper:
    """Everything that happens to one session, in one event loop."""

    def __init__(self, folder: SessionFolder, pid: int) -> None:
        self._folder, self._pid = folder, pid
        self._launch = folder.launch()
        self._rules = load_rules()
        self._server = ControlServer(folder.socket, folder.events, self)
        self._stream = Stream(folder, self._rules.by_id, self._server.broadcast)
        self._watch: Watch | None = None
        self._shim: subprocess.Popen[bytes] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._kill = asyncio.Event()
        self._starts_again = False
        self._ending = asyncio.Lock()
        self._busy_until_mono = time.monotonic() + LINGER_S
        self._coredumps = files.FolderWatch(folder.coredumps)
        self._tasks = asyncio.TaskGroup()
        self._failures: set[str] = set()

    async def run(self) -> None:
        """Keep the session until nothing of it runs and nobody looks at it."""
        await self._begin()
        server = await self._server.start()
        try:
            async with self._tasks:
                looks = [
                    self._tasks.create_task(self._every(LOG_INTERVAL_S, self._look_at_log)),
                    self._tasks.create_task(self._every(LOOK_INTERVAL_S, self._look)),
                    self._tasks.create_task(self._every(DISK_INTERVAL_S, self._look_at_disk)),
                ]
                await self._until_unneeded()
                for look in looks:
                    look.cancel()
        finally:
            server.close()
            self._folder.socket.unlink(missing_ok=True)
            self._coredumps.stop()
            self._stream.close()

    # --- begin and end ----------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        is_new = self._stream.is_new
        if is_new:
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
        attempt = self._stream.model.attempt
        replaced = self._tree_runs
        self._stream.publish(KeeperStarted(**self._stream.stamp(), pid=self._pid, replaced=replaced))
        if attempt is None:
            shim_pid = await child.launched_shim(self._folder.attempt(1))
            self._stream.begin_attempt()
            self._follow(first_attempt(self._folder, self._launch), shim_pid)
        elif replaced:
            self._watch_attempt()

    def _follow(self, attempt: Attempt, shim_pid: int | None) -> None:
        self._stream.publish(attempt.started(shim_pid, self._stream.stamp()))
        self._kill.clear()
        self._watch_attempt()
        self._note_outsider()

    def _watch_attempt(self) -> None:
        watch = self._watch = Watch(self._stream, self._folder, self._launch, self._rules)
        if not self._folder.coredumps.is_dir():
            return
        loop = asyncio.get_running_loop()

        def on_file(path: Path, size_bytes: int) -> None:
            loop.call_soon_threadsafe(watch.file_appeared, path, size_bytes)

        self._coredumps.start(on_file)

    def _note_outsider(self) -> None:
        attempt = self._stream.model.attempt
        if attempt and (launcher := attempt.launch.not_descendants):
            self._trouble(
                f"What {launcher} starts are not our descendants: its processes are found by their titles.",
                f"They are shown, but never signalled; stop them the way {launcher} does.",
                "info",
            )

    async def _until_unneeded(self) -> None:
        """Looks before it judges the time: a keeper that was suspended for long is still needed."""
        while True:
            if self._tree_runs or self._server.connection_count or self._stopping:
                self._busy_until_mono = time.monotonic() + LINGER_S
            elif time.monotonic() >= self._busy_until_mono:
                return
            await asyncio.sleep(0.2)

    @property
    def _tree_runs(self) -> bool:
        attempt = self._stream.model.attempt
        return attempt is not None and not attempt.over

    # --- looks ------------------------------------------------------------------------------------------------------

    async def _every(self, interval_s: float, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._guarded(look())
            await asyncio.sleep(interval_s)

    async def _guarded(self, work: Awaitable[None]) -> None:
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
        self._trouble(what, f"The details are in {self._folder.keeper_log}; vLLM is not affected.")

    def _trouble(self, what: str, hint: str, severity: Literal["info", "warning", "error"] = "warning") -> None:
        self._stream.publish(TroubleNoted(**self._stream.stamp(), what=what, hint=hint, severity=severity))

    async def _look_at_log(self) -> None:
        if self._watch and self._tree_runs:
            self._watch.log()
            await self._look_for_end(self._watch)
        self._stream.retry()
        await self._server.recorded()

    async def _look(self) -> None:
        if self._watch and self._tree_runs:
            self._watch.look_at_processes()
            self._watch.check_levers()
            await self._watch.look_at_endpoint()

    async def _look_at_disk(self) -> None:
        if self._watch and self._tree_runs:
            self._watch.look_at_disk()

    async def _look_for_end(self, watch: Watch) -> None:
        async with self._ending:
            await self._look_for_end_once(watch)

    async def _look_for_end_once(self, watch: Watch) -> None:
        attempt = self._stream.model.attempt
        if attempt is None:
            return
        prefix = self._folder.attempt(attempt.number)
        shim_pid = self._shim_pid()
        ending = read_exit(prefix)
        if attempt.ended is None and (ending or shim_pid is None):
            await watch.drain_log()
            self._command_ended(ending or Ending(error="Its shim was killed: the exit code is not known."))
        if shim_pid is None and self._stopping is None:
            await self._tree_ended()

    def _command_ended(self, ending: Ending) -> None:
        self._stream.publish(
            CommandEnded(
                **self._stream.stamp(),
                code=ending.code,
                signal=ending.signal,
                error=ending.error,
                ended_mono=ending.mono,
                leftovers=child.leftovers(self._shim_pid()),
            )
        )

    def _shim_pid(self) -> int | None:
        """The pid of the attempt's shim while it runs; one that we started ourselves is reaped here."""
        if self._shim is not None:
            return self._shim.pid if self._shim.poll() is None else None
        return shim_alive(self._folder.attempt(self._stream.attempt))

    async def _tree_ended(self, result: child.StopResult | None = None) -> None:
        watch, self._watch = self._watch, None
        if watch:
            await watch.drain_log()
            watch.look_at_processes()
            await watch.close()
        attempt = self._stream.model.attempt
        if attempt is None or attempt.over:
            return
        if attempt.ended is None:
            self._command_ended(Ending(error="Its exit code is not known: it does not end, or the disk is full."))
        left_shm, survivors = (result.left_shm, result.survivors) if result else ([], [])
        self._stream.publish(TreeEnded(**self._stream.stamp(), left_shm=left_shm, survivors=survivors))
        self._shim = None

    # --- commands ---------------------------------------------------------------------------------------------------

    def restored(self) -> ModelRestored:
        return self._stream.restored()

    def answered(self, command: commands.Command, ok: bool, message: str) -> CommandAnswered:
        return CommandAnswered(**self._stream.stamp(), id=command.id, ok=ok, message=message)

    async def obey(self, command: commands.AnyCommand) -> tuple[bool, str]:
        match command:
            case commands.Stop():
                return self._obey_stop(command)
            case commands.Relaunch():
                return self._obey_relaunch(command)
            case commands.CaptureStacks():
                return await self._obey_capture()
            case _:
                return False, "That was said before."

    def _obey_stop(self, command: commands.Stop) -> tuple[bool, str]:
        if not self._tree_runs:
            return False, "Nothing runs that could be stopped."
        if self._stopping is not None:
            return True, self._stop_harder(command)
        if command.kill:
            self._kill.set()
        self._start(self._stop(command.by))
        return True, "Stopping."

    def _stop_harder(self, command: commands.Stop) -> str:
        """Somebody asks for the end while it comes: of a relaunch only the first half is left."""
        if command.kill:
            self._kill.set()
        if self._starts_again:
            self._starts_again = False
            self._stream.publish(StopRequested(**self._stream.stamp(), by=command.by, kill=command.kill))
            return "Stopping; it will not be started again."
        return "Killing what is left." if command.kill else "It is being stopped already."

    def _obey_relaunch(self, command: commands.Relaunch) -> tuple[bool, str]:
        if self._stopping is not None:
            return False, "It is being stopped; ask again when it is over."
        known = load_levers()
        for lever in command.levers:
            if lever not in known:
                return False, f"There is no lever {lever!r}; there are {', '.join(known)}."
            if reason := blocked(lever, self._launch.spec):
                return False, reason
        self._starts_again = True
        self._start(self._relaunch(command))
        return True, "Starting again."

    async def _obey_capture(self) -> tuple[bool, str]:
        if self._watch is None:
            return False, "Nothing runs whose stacks could be taken."
        captured = await self._watch.capture_stacks("key")
        missing = sum(1 for stack in captured.stacks if stack.error)
        taken = len(captured.stacks) - missing
        return True, f"Stacks of {taken} processes taken" + (f", {missing} could not be read." if missing else ".")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._stopping = self._tasks.create_task(self._finish(work))

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        await self._guarded(work)
        self._stopping = None
        self._starts_again = False

    async def _stop(self, by: Any) -> None:
        attempt = self._stream.model.attempt
        if attempt is None or attempt.over:
            return
        self._stream.publish(StopRequested(**self._stream.stamp(), by=by, kill=self._kill.is_set()))
        shim_pid = self._shim_pid()
        result = None
        if shim_pid is not None:
            result = await child.stop_tree(shim_pid, kill=self._kill.is_set, on_signal=self._signalled)
        if self._watch:
            await self._look_for_end(self._watch)
        await self._tree_ended(result)

    def _signalled(self, signal: str, processes: list[ProcessRef]) -> None:
        self._stream.publish(SignalSent(**self._stream.stamp(), signal=signal, processes=processes))

    async def _relaunch(self, command: commands.Relaunch) -> None:
        self._kill.clear()
        await self._stop("relaunch")
        if not self._starts_again:
            return
        number = self._stream.attempt + 1
        try:
            attempt = next_attempt(self._folder, self._launch, number, command.levers, clean=command.clean)
            self._shim = attempt.start()
            self._stream.begin_attempt()
            self._follow(attempt, self._shim.pid)
        except (LeverError, OSError) as error:
            what = f"It could not be started again: {str(error).rstrip('.')}."
            self._trouble(what, "Nothing runs now; mend that and press R.", "error")
