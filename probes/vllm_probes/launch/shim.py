"""Spawns the command, reaps its every descendant, writes down how it ended; outlives any keeper.

`python -I -S shim.py PREFIX -- COMMAND…` in the environment and folder of the launch. It never signals or judges.
"""

import ctypes
import json
import os
import signal
import sys
import time


def spawn(prefix: str, argv: list[str]) -> int:
    log = os.open(prefix + ".log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with open("/proc/self/environ", "rb") as block:  # in the C locale Python has added LC_CTYPE to os.environ
        env = dict(entry.split(b"=", 1) for entry in block.read().split(b"\0") if b"=" in entry)
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), *((os.POSIX_SPAWN_DUP2, log, fd) for fd in (1, 2))]
    return os.posix_spawnp(argv[0], argv, env, file_actions=files, setpgroup=0, setsigmask=(), setsigdef=range(1, 32))


def reserve(path: str) -> None:
    """Room for the record to come: the disk may be full by then."""
    try:
        with open(path + ".tmp", "w") as file:
            file.write(" " * 4096)
    except OSError:
        pass


def save(path: str, **record: int | str | None) -> None:
    text = json.dumps(record | {"time": time.time(), "mono": time.monotonic()})
    while os.path.isdir(os.path.dirname(path) or "."):  # a full disk may get room again, a removed folder never
        try:
            with open(os.open(path + ".tmp", os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
                file.write(text)
                file.truncate()
            os.replace(path + ".tmp", path)
            break
        except OSError:
            time.sleep(0.5)


def main(prefix: str, argv: list[str]) -> None:
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would swallow every exit status
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if os.getpgrp() != os.getpid():
        os.setsid()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    try:
        command = spawn(prefix, argv)
    except (OSError, ValueError) as error:
        code = 127 if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)) else 126
        return save(prefix + ".exit", code=code, signal=None, error=f"'{argv[0]}' cannot be started: {error.args[-1]}.")
    save(prefix + ".pid", shim=os.getpid(), command=command)
    reserve(prefix + ".exit")
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return None
        if pid == command:
            code = os.waitstatus_to_exitcode(status)
            save(prefix + ".exit", code=code if code >= 0 else None, signal=-code if code < 0 else None, error=None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3:])
