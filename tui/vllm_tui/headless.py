"""`run --headless`: the lines of the recording on standard output, for programs and for terminals that are none."""

import asyncio
import contextlib
import signal
import sys

from vllm_probes import commands
from vllm_probes.events import CommandEnded, TreeEnded, decode
from vllm_probes.keeper.client import Client, connect
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.model import SessionModel

LEFTOVER_GRACE_S = 5.0
"""What a dead command leaves behind gets this long to end by itself; nobody is there to be asked."""


class HeadlessView:
    """Copies lines, and turns signals into wishes."""

    def __init__(self, client: Client) -> None:
        self.model = SessionModel()
        self.hung_up = False
        self._client = client
        self._signals = 0

    async def follow(self) -> bool:
        """Print every line until the attempt and its tree are over; False when the keeper went before."""
        loop = asyncio.get_running_loop()
        copying = asyncio.ensure_future(self._copy())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._ask_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up, copying)
        with contextlib.suppress(asyncio.CancelledError):
            await copying
        return self._over or self.hung_up

    @property
    def _over(self) -> bool:
        attempt = self.model.attempt
        return attempt is not None and attempt.over and attempt.exited is not None

    async def _copy(self) -> None:
        out = sys.stdout.buffer
        try:
            async for line in self._client.lines():
                out.write(line)
                out.flush()
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
            asyncio.get_running_loop().call_later(LEFTOVER_GRACE_S, self._send, commands.Stop(by="leftovers"))
        if isinstance(event, TreeEnded):
            self._signals = 0

    def _ask_to_stop(self) -> None:
        self._signals += 1
        self._send(commands.Stop(by="signal", kill=self._signals > 1))

    def _hang_up(self, copying: "asyncio.Future[None]") -> None:
        self.hung_up = True
        copying.cancel()

    def _send(self, command: commands.Command) -> None:
        self._sending = asyncio.ensure_future(self._client.send(command))


async def follow(folder: SessionFolder) -> tuple[SessionModel, bool]:
    """Follow a session to its end; the model, and whether that end was seen (or the view was hung up).

    Raises:
        KeeperError: there is no keeper and none can be started.
    """
    client = await connect(folder, headless=True)
    view = HeadlessView(client)
    try:
        seen = await view.follow()
    finally:
        await client.close()
    return view.model, seen
