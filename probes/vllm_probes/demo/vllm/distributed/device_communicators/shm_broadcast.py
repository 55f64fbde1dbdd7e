"""A message queue between processes. A pipe carries the messages; vLLM has a ring in shared memory there."""

import multiprocessing
from typing import Any

from vllm_probes.demo.log_format import LOGGER

WARNING_INTERVAL_S = 60.0
"""VLLM_RINGBUFFER_WARNING_INTERVAL of vLLM."""


class MessageQueue:
    """Many processes may write, one reads. Messages are small, so that a write is atomic."""

    def __init__(self, pace: float) -> None:
        self._reader, self._writer = multiprocessing.Pipe(duplex=False)
        self._interval_s = WARNING_INTERVAL_S / pace

    def enqueue(self, message: Any) -> None:
        self._writer.send(message)

    def dequeue(self, timeout_s: float | None = None, indefinite: bool = False) -> Any:
        """The next message. Raises TimeoutError; `indefinite` waits without a word."""
        self.acquire_read(timeout_s, indefinite)
        return self._reader.recv()

    def acquire_read(self, timeout_s: float | None, indefinite: bool) -> None:
        waited_s = 0.0
        while not self._reader.poll(None if indefinite else self._interval_s):
            waited_s += self._interval_s
            LOGGER.info(
                "No available shared memory broadcast block found in %d seconds. This typically happens when some "
                "processes are hanging or doing some time-consuming work (e.g. compilation, weight/kv cache "
                "quantization).",
                WARNING_INTERVAL_S,
            )
            if timeout_s is not None and waited_s >= timeout_s:
                raise TimeoutError
