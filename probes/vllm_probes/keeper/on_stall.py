"""What is done when a run is stalled and nobody looks: the evidence saved, commands run, the tree stopped."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from vllm_probes.events import StallAnswered, VerdictChanged, encode
from vllm_probes.keeper import bundle
from vllm_probes.keeper.folder import Launch, SessionFolder
from vllm_probes.keeper.priority import as_the_user
from vllm_probes.keeper.stream import Stream
from vllm_probes.model import AttemptModel

COMMAND_LIMIT_S = 120.0
Start = Callable[[Coroutine[Any, Any, Any]], object]


class OnStall:
    """Looked at once a second. A stall lasts until the run moves again, whoever is named meanwhile."""

    def __init__(
        self, stream: Stream, folder: SessionFolder, launch: Launch, start: Start, stop: Callable[[], object]
    ) -> None:
        self._stream, self._folder, self._launch = stream, folder, launch
        self._start, self._stop = start, stop
        attempt = stream.model.attempt
        verdict = attempt.verdict if attempt else None
        by_earlier_keeper = verdict and attempt and any(one.mono >= verdict.mono for one in attempt.stall_answers)
        self._answered = attempt.number if attempt and by_earlier_keeper else 0
        """The attempt whose present stall has been answered."""

    def look(self, vllm_version: str | None) -> None:
        """Begin to answer a stall that has just been told."""
        attempt = self._stream.model.attempt
        verdict = attempt.verdict if attempt else None
        if attempt is None or verdict is None or verdict.health == "ok":
            self._answered = 0
        elif verdict.health == "stalled" and self._answered != attempt.number and not (attempt.stop or attempt.ended):
            self._answered = attempt.number
            self._start(self._answer(attempt, verdict, vllm_version))

    async def _answer(self, attempt: AttemptModel, verdict: VerdictChanged, vllm_version: str | None) -> None:
        wanted = self._launch.on_stall
        if wanted.bundle or wanted.commands:
            folder = self._new_folder()
            if wanted.bundle:
                await self._save(folder, attempt, verdict, vllm_version)
            for number, argv in enumerate(wanted.commands, 1):
                await self._run(argv, folder / f"exec-{number}.txt", verdict)
        if wanted.exit:
            self._exit(attempt)

    def _new_folder(self) -> Path:
        """`stall-1` in the session folder, or the next number."""
        taken = {path.name for path in self._folder.path.glob("stall-*")}
        number = next(number for number in range(1, len(taken) + 2) if f"stall-{number}" not in taken)
        return self._folder.path / f"stall-{number}"

    async def _save(
        self, folder: Path, attempt: AttemptModel, verdict: VerdictChanged, vllm_version: str | None
    ) -> None:
        parts = bundle.tables(self._stream.model, verdict, vllm_version)
        try:
            await asyncio.to_thread(bundle.write, folder, self._folder, parts, verdict, attempt.launch.log)
        except OSError as error:
            self._fail("bundle", f"The evidence of the stall could not be saved: {error}.")
        else:
            self._tell("bundle", f"The evidence of the stall is in {folder}.", folder.name)

    async def _run(self, argv: Sequence[str], output: Path, verdict: VerdictChanged) -> None:
        """One command: the event on its standard input, the session folder as its own, both outputs into a file."""
        try:
            code = await self._execute(argv, output, encode(verdict))
        except TimeoutError:
            self._fail("exec", f"{argv[0]} of --on-stall did not end within {COMMAND_LIMIT_S:g} s and was killed.")
        except OSError as error:
            self._fail("exec", f"{argv[0]} of --on-stall could not be run: {error.strerror}.")
        else:
            path = str(output.relative_to(self._folder.path))
            if code:
                self._fail("exec", f"{argv[0]} of --on-stall ended with code {code}; what it wrote is in {output}.")
            else:
                self._tell("exec", f"{argv[0]} has been run; what it wrote is in {output}.", path)

    async def _execute(self, argv: Sequence[str], output: Path, line: bytes) -> int:
        """Its exit code.

        Raises:
            TimeoutError: it was killed, with everything of its process group.
            OSError: it cannot be started, or the file cannot be made.
        """
        output.parent.mkdir(mode=0o700, exist_ok=True)
        with output.open("wb") as file, as_the_user():
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=file,
                stderr=file,
                cwd=self._folder.path,
                env=self._launch.spec.env,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(COMMAND_LIMIT_S):
                await process.communicate(line)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return process.returncode or 0

    def _exit(self, attempt: AttemptModel) -> None:
        """Unless it moves again by now, or somebody else has ended it."""
        if attempt.verdict is None or attempt.verdict.health == "ok":
            self._tell("exit", "It is not stopped: it moves again.")
        elif attempt.stop is None and attempt.ended is None:
            self._tell("exit", "It is stopped because it is stalled.")
            self._stop()

    def _tell(self, action: Literal["bundle", "exec", "exit"], said: str, path: str | None = None) -> None:
        self._stream.publish(StallAnswered(**self._stream.stamp(), action=action, said=said, path=path))

    def _fail(self, action: Literal["bundle", "exec"], what: str) -> None:
        self._stream.publish(StallAnswered(**self._stream.stamp(), action=action, ok=False, said=what))
        self._stream.trouble(what, "Everything else that was asked for on a stall is done all the same.")
