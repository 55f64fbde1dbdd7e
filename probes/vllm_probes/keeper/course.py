"""The launches of one session, one after the other: followed to their ends, stopped, started again."""

import asyncio
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

from vllm_probes.events import CommandEnded, SignalSent, StopRequested, TreeEnded
from vllm_probes.judges.rules import RuleSet
from vllm_probes.keeper import child
from vllm_probes.keeper.attached import GONE, is_there, started
from vllm_probes.keeper.attempts import Attempt, first_attempt, next_attempt
from vllm_probes.keeper.folder import Attached, Launch, SessionFolder
from vllm_probes.keeper.gate import Gate
from vllm_probes.keeper.rungs import tell_rungs
from vllm_probes.keeper.stream import Stream
from vllm_probes.keeper.watch import Watch
from vllm_probes.launch.attempt import Ending, read_exit
from vllm_probes.launch.levers import LeverError
from vllm_probes.model import AttemptModel
from vllm_probes.rows import ProcessRef
from vllm_probes.sensors import files, interfaces
from vllm_probes.sensors.shims import KnownShim, find_shim

Asked = Literal["key", "signal", "leftovers", "relaunch", "stall"]
LAST_LOOK_S = 2.0
"""How long the first signal of a stop waits for stacks: what it ends cannot be asked afterwards."""
PY_SPY_S = 0.45 * LAST_LOOK_S
"""For each process; a look ends after twice that, and tells of those that did not answer as well."""
Start = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[None]"]
"""Lets work run beside everything else; what it fails with is told, and goes no further."""


class Course:
    """The current attempt and its watch, and at most one stop or relaunch under way."""

    def __init__(
        self,
        stream: Stream,
        folder: SessionFolder,
        launch: Launch,
        rules: RuleSet,
        start: Start,
        look_at_host: Callable[[], None],
    ) -> None:
        self._stream, self._folder, self._launch, self._rules, self._start = stream, folder, launch, rules, start
        self._look_at_host = look_at_host
        self.watch: Watch | None = None
        self._shim: subprocess.Popen[bytes] | None = None
        self._adopted: KnownShim | None = None
        """The shim of an attempt that somebody else has started."""
        self._under_way: asyncio.Task[None] | None = None
        self._kill = asyncio.Event()
        self._hurry = asyncio.Event()
        """The kill was asked for while it was being stopped already."""
        self._starts_again = False
        self.attached = folder.meta().attached
        """The run of somebody else that is watched here; None: the session launches its own."""
        self._is_untried = False
        self._gate = Gate(stream, self._launch)
        self._ending = asyncio.Lock()
        self._coredumps = files.FolderWatch(folder.coredumps)

    @property
    def tree_runs(self) -> bool:
        attempt = self._stream.model.attempt
        return attempt is not None and not attempt.over

    @property
    def busy(self) -> bool:
        """Something runs, or is being stopped or started."""
        return self.tree_runs or self._under_way is not None

    # --- begin and end ----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Take up the attempt that somebody has started: the first one, or that of an earlier keeper."""
        self._gate.forget()
        if self._stream.model.attempt is None and self.attached is not None:
            self._begin_to_watch(self.attached)
        elif self._stream.model.attempt is None:
            shim_pid = await child.launched_shim(self._folder.attempt(1))
            self._stream.begin_attempt()
            self._follow(first_attempt(self._folder, self._launch), shim_pid)
        elif self.tree_runs:
            self._watch_attempt()

    def close(self) -> None:
        self._coredumps.stop()

    def _begin_to_watch(self, attached: Attached) -> None:
        self._stream.begin_attempt()
        self._stream.publish(started(attached, self._launch, self._stream.stamp(), interfaces.addresses()))
        if attached.log_reason:
            hint = "Phases, errors and exceptions are not seen; state and verdict come from the server and from stacks."
            self._stream.trouble(attached.log_reason, hint)
        self._watch_attempt()
        self._is_untried = True

    def _follow(self, attempt: Attempt, shim_pid: int | None) -> None:
        self._stream.publish(attempt.started(shim_pid, self._stream.stamp(), interfaces.addresses()))
        self._kill.clear()
        self._hurry.clear()
        self._watch_attempt()
        self._note_outsider()
        self._is_untried = True

    def _watch_attempt(self) -> None:
        watch = self.watch = Watch(self._stream, self._folder, self._launch, self._rules, self.attached)
        if not self._folder.coredumps.is_dir():
            return
        loop = asyncio.get_running_loop()

        def on_file(path: Path, size_bytes: int) -> None:
            loop.call_soon_threadsafe(watch.file_appeared, path, size_bytes)

        self._coredumps.start(on_file)

    def try_rungs(self) -> None:
        """Begin to see how the stacks of an attempt that has just begun can be had; of each attempt once."""
        if self._is_untried:
            self._is_untried = False
            self._start(tell_rungs(self._stream, bare=self._launch.bare))

    def _note_outsider(self) -> None:
        attempt = self._stream.model.attempt
        if attempt and (launcher := attempt.launch.not_descendants):
            self._stream.trouble(
                f"What {launcher} starts are not our descendants: its processes are found by their titles.",
                f"They are shown, but never signalled; stop them the way {launcher} does.",
                "info",
            )

    async def look_for_end(self) -> None:
        """Tell that the command has ended, and when nothing of its tree is left."""
        async with self._ending:
            if self.watch and self.tree_runs:
                await self._look_for_end(self.watch)

    async def _look_for_end(self, watch: Watch) -> None:
        attempt = self._stream.model.attempt
        if attempt is None:
            return
        if self.attached is not None:
            await self._look_for_end_of(self.attached, attempt, watch)
            return
        shim_pid = self._shim_pid()
        ending = read_exit(self._folder.attempt(attempt.number))
        if attempt.ended is None and (ending or shim_pid is None):
            await watch.drain_log()
            self._look_at_host()
            self._command_ended(ending or Ending(error="Its shim was killed: the exit code is not known."))
        if shim_pid is None and self._under_way is None:
            await self._tree_ended()

    async def _look_for_end_of(self, attached: Attached, attempt: AttemptModel, watch: Watch) -> None:
        """The end of a run that we did not start: the root is gone, then whatever it left."""
        if is_there(attached):
            return
        left = watch.running()
        if attempt.ended is None:
            await watch.drain_log()
            self._look_at_host()
            self._stream.publish(
                CommandEnded(**self._stream.stamp(), code=None, signal=None, error=GONE, leftovers=left)
            )
        if not left:
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
        if self._adopted is None or not self._adopted.runs:
            self._adopted = find_shim(self._folder.attempt(self._stream.attempt))
        return self._adopted.pid if self._adopted else None

    async def _tree_ended(self, result: child.StopResult | None = None) -> None:
        watch, self.watch = self.watch, None
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

    # --- stop and start again ---------------------------------------------------------------------------------------

    def stop(self, by: Asked, *, kill: bool = False) -> str:
        """Begin to stop, or stop harder what is being stopped; what to tell the user."""
        if kill:
            self._kill.set()
        if self._under_way is None:
            self._begin(self._stop(by))
            return "Stopping."
        if kill:
            self._hurry.set()
        if self._starts_again:
            return self._call_off(by, kill)
        return "Killing what is left." if kill else "It is being stopped already."

    def relaunch(self, levers: Sequence[str], *, clean: bool) -> bool:
        """Begin to stop what runs and to start again; False while something else is under way."""
        if self._under_way is not None:
            return False
        self._kill.clear()
        self._hurry.clear()
        self._starts_again = True
        self._begin(self._relaunch(levers, clean))
        return True

    def start_now(self) -> bool:
        """Do not wait any longer for what holds the relaunch up; False: nothing waits."""
        return self._gate.open()

    def end_holders(self) -> bool:
        """Begin to end what other sessions of this user hold the relaunch up with; False: nothing of theirs does."""
        shim_pids = self._gate.foreign_shims()
        for shim_pid in shim_pids:
            self._start(self._end_tree(shim_pid))
        return bool(shim_pids)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._under_way = self._start(self._to_its_end(work))

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._under_way = None
            self._starts_again = False

    def _call_off(self, by: Asked, kill: bool) -> str:
        """Of a relaunch only the first half is left."""
        self._starts_again = False
        self._gate.open()
        self._stream.publish(StopRequested(**self._stream.stamp(), by=by, kill=kill))
        return "Stopping; it will not be started again." if self.tree_runs else "It will not be started again."

    async def _stop(self, by: Asked) -> None:
        if not self.tree_runs:
            return
        self._stream.publish(StopRequested(**self._stream.stamp(), by=by, kill=self._kill.is_set()))
        await self._look_once_more()
        shim_pid = self._shim_pid()
        result = await self._end_tree(shim_pid) if shim_pid is not None else None
        await self.look_for_end()
        await self._tree_ended(result)

    async def _look_once_more(self) -> None:
        """Stacks of what is about to be ended; nobody waits for them who wants it killed at once."""
        if self.watch is None or not self.watch.rows:
            return
        looking = self._start(self.watch.capture_stacks("stop", timeout_s=PY_SPY_S))
        hurried = self._start(self._hurry.wait())
        try:
            await asyncio.wait((looking, hurried), timeout=LAST_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            looking.cancel()
            hurried.cancel()

    async def _end_tree(self, shim_pid: int) -> child.StopResult:
        return await child.stop_tree(shim_pid, kill=self._kill.is_set, on_signal=self._signalled)

    def _signalled(self, signal: str, processes: list[ProcessRef]) -> None:
        self._stream.publish(SignalSent(**self._stream.stamp(), signal=signal, processes=processes))

    async def _relaunch(self, levers: Sequence[str], clean: bool) -> None:
        await self._stop("relaunch")
        if self._starts_again:
            await self._gate.wait()
        if self._starts_again:
            self._start_again(levers, clean)

    def _start_again(self, levers: Sequence[str], clean: bool) -> None:
        number = self._stream.attempt + 1
        try:
            attempt = next_attempt(self._folder, self._launch, number, levers, clean=clean)
            self._shim = attempt.start()
        except (LeverError, OSError) as error:
            what = f"It could not be started again: {str(error).rstrip('.')}."
            self._stream.trouble(what, "Nothing runs now; mend that and press R.", "error")
            return
        self._stream.begin_attempt()
        self._follow(attempt, self._shim.pid)
