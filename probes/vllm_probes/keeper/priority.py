"""How soon the keeper gets a core: it needs little of one, but vLLM's busy loops leave nothing on a host without room.

Measured on two cores with two ranks that spin (Linux 6.18): a task of 10 ms waited 0.13 s, and whole looks of the
keeper up to 60 s; with this, a hundredth of that.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

URGENT_NICE = -10
ORDINARY_NICE = os.getpriority(os.PRIO_PROCESS, 0)
"""As the user started us."""


def hurry() -> None:
    """Ahead of others where we may be: root, CAP_SYS_NICE, or a limit (`ulimit -e`) that allows it.

    Linux weighs whole login sessions first (sched(7), "The autogroup feature"): niceness counts within ours alone.
    """
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(URGENT_NICE))
    _be(URGENT_NICE)


@contextmanager
def as_the_user() -> Iterator[None]:
    """What is started in here competes as it would without us; in a session of its own it has another autogroup."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    _be(ORDINARY_NICE)
    try:
        yield
    finally:
        _be(before)


def _be(nice: int) -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
