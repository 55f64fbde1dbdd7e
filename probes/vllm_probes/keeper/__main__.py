"""`python -m vllm_probes.keeper FOLDER LOCK`: keep one session. Started by the command line, never by people.

LOCK is an inherited descriptor that holds the session's lock; it stays open as long as this process lives.
"""

import os
import signal
import sys
from pathlib import Path

from vllm_probes.keeper import priority


def main() -> None:
    priority.hurry()  # before the imports: where every core spins they take 20 s and more else
    import asyncio

    from vllm_probes.keeper.folder import SessionFolder
    from vllm_probes.keeper.keeper import Keeper

    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the command line launches with its signals held back
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    os.set_inheritable(int(sys.argv[2]), False)

    async def keep(folder: SessionFolder) -> None:
        await Keeper(folder, os.getpid()).run()

    asyncio.run(keep(SessionFolder(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
