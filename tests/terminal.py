"""A real terminal for tests: a program on a pseudo-terminal, its screen kept by a terminal emulator."""

import contextlib
import signal
import time
from collections.abc import Callable, Mapping

import pexpect
import pyte


class Terminal:
    """Start a program, type, look at the screen as a person sees it."""

    def __init__(
        self, argv: list[str], env: Mapping[str, str], *, columns: int = 120, rows: int = 36, cwd: str | None = None
    ) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.byte_count = 0
        # pytest-xdist sets these, and Textual believes them more than the terminal
        without_size = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
        self.child = pexpect.spawn(
            argv[0],
            argv[1:],
            env={**without_size, "TERM": "xterm-256color", "COLORTERM": "truecolor"},  # type: ignore[arg-type]
            dimensions=(rows, columns),
            cwd=cwd,
            timeout=None,
        )
        self.child.delaybeforesend = None

    @property
    def text(self) -> str:
        """The screen, one line a row."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def pump(self, seconds: float) -> None:
        """Let the program draw for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(min(left, 0.05))

    def wait(self, wanted: str | Callable[[str], bool], timeout_s: float = 20.0) -> None:
        """Until the screen shows a text, or fulfils a condition; the screen stands in the error."""
        fulfilled = wanted if callable(wanted) else (lambda text: wanted in text)
        deadline = time.monotonic() + timeout_s
        while not fulfilled(self.text):
            if time.monotonic() > deadline or not (self._read(0.05) or self.child.isalive()):
                raise AssertionError(f"never saw {wanted!r}; the screen is:\n{self.text}")

    def wait_end(self, timeout_s: float = 20.0) -> int:
        """Until the program has ended; its exit code, 128+n for a signal."""
        deadline = time.monotonic() + timeout_s
        while self.child.isalive():
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not end; the screen is:\n{self.text}")
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.child.exitstatus if self.child.exitstatus is not None else 128 + (self.child.signalstatus or 0)

    def signal(self, number: signal.Signals) -> None:
        self.child.kill(number)

    def close(self) -> None:
        with contextlib.suppress(OSError, pexpect.ExceptionPexpect):
            self.child.close(force=True)

    def _read(self, timeout_s: float) -> bool:
        try:
            data = self.child.read_nonblocking(1 << 16, timeout=timeout_s)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return False
        self.byte_count += len(data)
        self._stream.feed(data)
        return bool(data)
