"""The program without a terminal, what it tells of a run, and one real vLLM on two ranks that it has started."""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tests.benchmarks.measure import PROGRAM

END_S = 60.0


class Told:
    """The program, started with these words; `events` grow while it runs."""

    def __init__(self, words: list[str], environment: Mapping[str, str], *, before: Sequence[str] = ()) -> None:
        """`before`: what starts it, such as a change of user."""
        self.began = time.time()
        self.process = subprocess.Popen(
            [*before, *PROGRAM, *words], env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.events: list[dict[str, Any]] = []
        self.rows: dict[int, dict[str, Any]] = {}
        self._told = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            event = json.loads(line)
            with self._told:
                self.rows |= {row["pid"]: row for row in event.get("rows", []) if "process" in row}
                self.events.append(event)
                self._told.notify_all()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def until(
        self, kind: str, wait_s: float, wanted: Callable[[dict[str, Any]], bool] = lambda event: True
    ) -> dict[str, Any] | None:
        """The first such event, also one that was told before; None: none came in time."""

        def find() -> dict[str, Any] | None:
            return next((event for event in self.of(kind) if wanted(event)), None)

        with self._told:
            return self._told.wait_for(find, wait_s)

    def pid_of(self, process: str) -> int:
        """Of the latest process of that name. Raises StopIteration where there is none."""
        return next(pid for pid, row in reversed(self.rows.items()) if row["process"] == process)

    def end(self) -> None:
        """End all of it, also what is stopped or hangs."""
        self.process.send_signal(signal.SIGTERM)
        for pid in [pid for pid, row in self.rows.items() if row["process"] not in ("vllm", "APIServer")]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
            return
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(END_S)


class Server(Told):
    """A server that the program has started."""

    def __init__(self, argv: list[str], environment: Mapping[str, str], port: int, model: str) -> None:
        self.port, self.model = port, model
        super().__init__(["run", "--headless", "--", *argv], environment)

    def is_ready(self, wait_s: float) -> bool:
        return self.until("state_changed", wait_s, lambda event: event["state"] == "idle") is not None

    def request(self, tokens: int = 200, prompt: str = "hello", timeout_s: float = 120) -> bool:
        """One request; whether it was answered."""
        return complete(self.port, self.model, tokens, prompt, timeout_s)

    def send(self, count: int = 1, **options: Any) -> list[threading.Thread]:
        """Requests in flight, whatever becomes of them."""
        threads = [threading.Thread(target=self.request, kwargs=options, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        return threads


def complete(port: int, model: str, tokens: int = 200, prompt: str = "hello", timeout_s: float = 120) -> bool:
    """One request to a server on this host; whether it was answered."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    url = f"http://127.0.0.1:{port}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with suppress(OSError):
        urllib.request.urlopen(request, timeout=timeout_s).read()
        return True
    return False
