"""The API server's end of the engine."""

import multiprocessing
import os
import sys
from typing import Any

from vllm_probes.demo.log_format import log_at
from vllm_probes.demo.options import Options
from vllm_probes.demo.vllm.v1.engine.core import EngineCoreProc

SHUTDOWN_GRACE_S = 8.0


class EngineDeadError(Exception):
    """The engine process ended unasked."""

    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")


class MPClient:
    """Starts the engine process, talks to it, ends it."""

    def __init__(self, options: Options) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, engine_connection = context.Pipe()
        self._engine = context.Process(
            target=EngineCoreProc.run_engine_core, name="EngineCore", args=(options, engine_connection, os.getpid())
        )
        sys.stderr.flush()
        self._engine.start()
        engine_connection.close()

    def wait_for_engine_startup(self) -> None:
        """Until the engine is ready. Raises EngineDeadError when it ends instead."""
        self.get_output()

    def fileno(self) -> int:
        """A descriptor that is readable when an output waits."""
        return self._connection.fileno()

    def add_request(self, request_id: str, prompt_tokens: int, max_tokens: int) -> None:
        self._connection.send((request_id, prompt_tokens, max_tokens))

    def get_output(self) -> Any:
        """One message of the engine. Raises EngineDeadError when it is gone."""
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise EngineDeadError from None

    def shutdown(self) -> None:
        """SIGTERM for the engine, which ends its workers; SIGKILL if it does not. The kernel ends the workers then."""
        log_at("core_client.py:770", "[shutdown] MPClient: start timeout=0s")
        log_at("core_client.py:772", "[shutdown] MPClient: stopping engine manager")
        log_at("utils.py:628", "[shutdown] Process manager: send sigterm to process EngineCore")
        self._engine.terminate()
        self._engine.join(SHUTDOWN_GRACE_S)
        if self._engine.is_alive():
            killed = f"EngineCore pid {self._engine.pid}"
            log_at("utils.py:653", f"[shutdown] Process manager: force killing remaining process {killed}", "WARNING")
            self._engine.kill()
            self._engine.join()
        log_at("core_client.py:774", "[shutdown] MPClient: engine manager stopped")
        log_at("core_client.py:777", "[shutdown] MPClient: complete")
