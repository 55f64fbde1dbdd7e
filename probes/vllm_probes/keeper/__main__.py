"""`python -m vllm_probes.keeper SESSION_FOLDER`: keep one session. Started by the command line, never by people."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from vllm_probes.keeper.attempts import launch_attempt
from vllm_probes.keeper.folder import SessionFolder


def main() -> None:
    folder = SessionFolder(Path(sys.argv[1]))
    lock = folder.lock()
    if lock is None:
        return
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    first = None
    if not folder.events.exists():
        launch = folder.launch()
        first = launch_attempt(folder, launch, 1, launch.levers, clean=False)
    # Imported after the launch: what the sensors need takes longer to load than vLLM should wait.
    from vllm_probes.keeper.keeper import Keeper

    async def keep() -> None:
        await Keeper(folder, os.getpid()).run(first)

    asyncio.run(keep())


if __name__ == "__main__":
    main()
