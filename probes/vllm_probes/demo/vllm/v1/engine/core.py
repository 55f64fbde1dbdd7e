"""The engine process: waits for requests, runs steps, hands out their outputs."""

import queue
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from vllm_probes.demo.log_format import LOGGER
from vllm_probes.demo.options import Options
from vllm_probes.demo.proctitle import end_with_parent, take_name
from vllm_probes.demo.startup import play
from vllm_probes.demo.vllm.v1.core.sched.scheduler import Request, Scheduler
from vllm_probes.demo.vllm.v1.executor.multiproc_executor import MultiprocExecutor

READY = "READY"
_EXECUTOR_FAILED = "EXECUTOR_FAILED"


class EngineCoreProc:
    """The engine's loop and its two socket threads."""

    def __init__(self, options: Options, executor: MultiprocExecutor, connection: Connection) -> None:
        self._connection = connection
        self._scheduler = Scheduler()
        self._model_executor = executor
        self._input_queue: queue.Queue[Any] = queue.Queue()
        self._output_queue: queue.Queue[Any] = queue.Queue()
        executor.wait_for_ready()
        executor.collective_rpc("determine_available_memory")
        play("initialize_kv_caches", options)
        executor.collective_rpc("compile_or_warm_up_model")
        play("engine_core_ready", options)
        executor.start_worker_monitor(lambda: self._input_queue.put(_EXECUTOR_FAILED))
        threading.Thread(target=self.process_input_sockets, daemon=True).start()
        threading.Thread(target=self.process_output_sockets, daemon=True).start()
        self._output_queue.put(READY)

    @staticmethod
    def run_engine_core(options: Options, connection: Connection, api_server_pid: int) -> None:
        """The whole life of the engine process; SIGTERM ends it, workers first."""
        end_with_parent(api_server_pid)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; the API server passes it on
        signal.signal(signal.SIGTERM, _exit_on_signal)
        take_name("EngineCore")
        play("engine_core", options)
        executor = MultiprocExecutor(options)
        try:
            EngineCoreProc(options, executor, connection).run_busy_loop()
        except SystemExit:
            LOGGER.info("[shutdown] EngineCore: trigger received signal=SIGTERM")
            LOGGER.info("[shutdown] EngineCore: start mode=abort timeout=0s")
            LOGGER.info("[shutdown] EngineCore: exiting busy loop")
        except (RuntimeError, TimeoutError):
            LOGGER.exception("EngineCore encountered a fatal error.")
        finally:
            executor.shutdown()

    def run_busy_loop(self) -> None:
        while True:
            self._process_input_queue()
            self._process_engine_step()

    def _process_input_queue(self) -> None:
        while not self._scheduler.has_requests():
            self._handle_client_request(self._input_queue.get())
        while not self._input_queue.empty():
            self._handle_client_request(self._input_queue.get_nowait())

    def _handle_client_request(self, message: Any) -> None:
        if message == _EXECUTOR_FAILED:
            raise RuntimeError("Executor failed.")
        self._scheduler.add_request(Request(*message))

    def _process_engine_step(self) -> None:
        self._output_queue.put(self.step())

    def step(self) -> Any:
        scheduled, output = self._scheduler.schedule()
        self._model_executor.execute_model(scheduled)
        return self._scheduler.update_from_output(output)

    def process_input_sockets(self) -> None:
        with suppress(EOFError):  # the API server is gone, and the kernel is about to end this process
            while True:
                self._input_queue.put(self._connection.recv())

    def process_output_sockets(self) -> None:
        while True:
            self._connection.send(self._output_queue.get())


def _exit_on_signal(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
