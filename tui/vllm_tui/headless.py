"""`--headless`: the lines of the recording on standard output, for programs and for terminals that are none."""

import asyncio
import contextlib
import os
import signal
import sys
from functools import partial
from typing import Literal

from vllm_probes import commands
from vllm_probes.events import CommandEnded, StopRequested, TreeEnded, decode
from vllm_probes.keeper.client import Client, connect
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.model import SessionModel

LEFTOVER_GRACE_S = 5.0
"""What a dead command leaves behind gets this long to end by itself; nobody is there to be asked."""


class OutputError(Exception):
    """Standard output takes no more; the text says why."""


class HeadlessView:
    """Copies lines, and turns signals into wishes."""

    def __init__(self, client: Client, *, only_watches: bool) -> None:
        """`only_watches`: a signal ends the view, and whatever runs goes on."""
        self._only_watches = only_watches
        self.model = SessionModel()
        self.hung_up = False
        self._client = client
        self._signals = 0
        self._grace: asyncio.TimerHandle | None = None

    async def follow(self) -> bool:
        """Print every line until the attempt and its tree are over; False when the keeper went before."""
        loop = asyncio.get_running_loop()
        copying = self._copying = asyncio.ensure_future(self._copy())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._leave if self._only_watches else self._ask_to_stop)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup stays nohup
            loop.add_signal_handler(signal.SIGHUP, self._hang_up, copying)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        with contextlib.suppress(asyncio.CancelledError):
            await copying
        return self._over or self.hung_up

    @property
    def _over(self) -> bool:
        """The last attempt is over, and no other one is on its way."""
        attempt = self.model.attempt
        if attempt is None or attempt.tree_ended is None or attempt.exited is None:
            return False
        if attempt.stop is None or attempt.stop.by != "relaunch":
            return True
        last = self.model.troubles[-1] if self.model.troubles else None
        return last is not None and last.severity == "error" and last.mono >= attempt.tree_ended.mono

    async def _copy(self) -> None:
        try:
            async for line in self._client.lines():
                write(line)
                self._take_in(line)
                if self._over:
                    return
        except BrokenPipeError:
            self.hung_up = True

    def _take_in(self, line: bytes) -> None:
        event = decode(line)
        if event is None:
            return
        self.model.apply(event)
        if isinstance(event, CommandEnded) and event.leftovers:
            end = self._leave if self._only_watches else partial(self._stop, "leftovers")
            self._grace = asyncio.get_running_loop().call_later(LEFTOVER_GRACE_S, end)
        if isinstance(event, StopRequested | TreeEnded) and self._grace:
            self._grace.cancel()
        if isinstance(event, TreeEnded):
            self._signals = 0

    def _ask_to_stop(self) -> None:
        self._signals += 1
        self._stop("signal", kill=self._signals > 1)

    def _leave(self) -> None:
        """Whoever only watched a run of others leaves no keeper behind, either; for one of ours that means nothing."""
        self._sending = asyncio.ensure_future(self._client.send(commands.StopWatching(id=self._client.next_id())))
        self._sending.add_done_callback(lambda _: self._hang_up(self._copying))

    def _hang_up(self, copying: "asyncio.Future[None]") -> None:
        self.hung_up = True
        copying.cancel()

    def _stop(self, by: Literal["signal", "leftovers"], *, kill: bool = False) -> None:
        self._sending = asyncio.ensure_future(
            self._client.send(commands.Stop(id=self._client.next_id(), by=by, kill=kill))
        )


def write(line: bytes) -> None:
    """Put a line on standard output.

    Raises:
        BrokenPipeError: nobody reads it any more.
        OutputError: it cannot be written, on a full disk for one.
    """
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:  # what is still in the buffer must not fail again at the exit
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"Standard output cannot be written: {error.strerror}.") from None


async def follow(folder: SessionFolder, *, only_watches: bool = False) -> tuple[SessionModel, bool]:
    """Follow a session to its end; the model, and whether that end was seen (or the view was hung up).

    `only_watches`: SIGINT and SIGTERM end the view alone.

    Raises:
        KeeperError: there is no keeper and none can be started.
        OutputError: standard output takes no more.
    """
    client = await connect(folder, headless=True)
    view = HeadlessView(client, only_watches=only_watches)
    try:
        seen = await view.follow()
    finally:
        await client.close()
    return view.model, seen
