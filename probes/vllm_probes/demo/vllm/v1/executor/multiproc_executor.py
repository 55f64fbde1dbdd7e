"""The workers: the engine's side, and their own main loop."""

import multiprocessing
import os
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from vllm_probes.demo.devices import Device, devices_file, make_devices
from vllm_probes.demo.log_format import LOGGER
from vllm_probes.demo.options import Options
from vllm_probes.demo.proctitle import end_with_parent, take_name
from vllm_probes.demo.torch.distributed.distributed_c10d import ProcessGroup
from vllm_probes.demo.vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm_probes.demo.vllm.distributed.parallel_state import GroupCoordinator
from vllm_probes.demo.vllm.v1.worker.gpu_worker import Worker

EXECUTE_MODEL_TIMEOUT_S = 300.0
"""VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS of vLLM."""
SIGTERM_GRACE_S = 2.0
OUTPUT_RANK = 0
_READY = "READY"
_FAILED = "FAILED"


def draw_rank(world_size: int) -> int:
    """The rank that will hang, from the kernel's randomness: no seed could tell it to anybody outside."""
    return random.SystemRandom().randrange(world_size)


class MultiprocExecutor:
    """Starts the workers, calls them, watches them, ends them."""

    def __init__(self, options: Options) -> None:
        world_size = options.tensor_parallel_size
        self._timeout_s = EXECUTE_MODEL_TIMEOUT_S / options.pace
        self._is_ending = False
        self._response_mq = MessageQueue(options.pace)
        self._rpc_broadcast_mqs = [MessageQueue(options.pace) for _ in range(world_size)]
        group = ProcessGroup(world_size)
        devices = make_devices(devices_file(options.port), world_size)
        incident_rank = draw_rank(world_size)
        context = multiprocessing.get_context("fork")
        self._workers = [
            context.Process(
                target=WorkerProc.worker_main,
                name=f"VllmWorker-{rank}",
                args=(
                    options,
                    rank,
                    mq,
                    self._response_mq,
                    group,
                    devices[rank],
                    rank == incident_rank,
                    os.getpid(),
                ),
                daemon=True,
            )
            for rank, mq in enumerate(self._rpc_broadcast_mqs)
        ]
        sys.stderr.flush()
        for worker in self._workers:
            worker.start()

    def wait_for_ready(self) -> None:
        """Until every worker has loaded its part of the model."""
        for _ in self._workers:
            self.get_response(_READY)

    def execute_model(self, scheduled: list[str]) -> int:
        """One step; the number of tokens."""
        return int(self.collective_rpc("execute_model", scheduled))

    def collective_rpc(self, method: str, *arguments: list[str]) -> Any:
        """Call a method on every rank; the result of the output rank."""
        for mq in self._rpc_broadcast_mqs:
            mq.enqueue((method, arguments))
        return self.get_response(method)

    def get_response(self, method: str) -> Any:
        try:
            status, result = self._response_mq.dequeue(self._timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"RPC call to {method} timed out.") from error
        if status == _FAILED:
            raise RuntimeError("Executor failed.")
        return result

    def start_worker_monitor(self, on_failure: Callable[[], None]) -> None:
        """Watch the workers from a thread; when one ends unasked, whoever waits for a response gets a RuntimeError."""

        def monitor_workers() -> None:
            ended = wait([worker.sentinel for worker in self._workers])
            if self._is_ending:
                return
            dead = next(worker for worker in self._workers if worker.sentinel in ended)
            dead.join()
            LOGGER.error(
                "Worker proc %s died unexpectedly (exit code: %s), shutting down executor.", dead.name, dead.exitcode
            )
            self._response_mq.enqueue((_FAILED, None))
            on_failure()

        threading.Thread(target=monitor_workers, name="MultiprocWorkerMonitor", daemon=True).start()

    def shutdown(self) -> None:
        """SIGTERM for every worker, SIGKILL for those that stay."""
        self._is_ending = True
        running = self._running()
        LOGGER.info("[shutdown] Executor: waiting for worker exit count=%d", len(running))
        for worker in running:
            worker.terminate()
        deadline = time.monotonic() + SIGTERM_GRACE_S
        for worker in running:
            worker.join(max(0.0, deadline - time.monotonic()))
        if stuck := self._running():
            LOGGER.warning(
                "[shutdown] Executor: workers still running after SIGTERM; sending SIGKILL count=%d", len(stuck)
            )
        for worker in self._running():
            worker.kill()
            worker.join()

    def _running(self) -> list[multiprocessing.process.BaseProcess]:
        return [worker for worker in self._workers if worker.is_alive()]


class WorkerProc:
    """A worker process: waits for calls, executes them, hands results to a thread that sends them."""

    def __init__(self, worker: Worker, rank: int, rpc_broadcast_mq: MessageQueue, response_mq: MessageQueue) -> None:
        self._worker = worker
        self._rank = rank
        self._rpc_broadcast_mq = rpc_broadcast_mq
        self._response_mq = response_mq
        self._async_output_queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self.async_output_busy_loop, name="WorkerAsyncOutputCopy", daemon=True).start()

    @staticmethod
    def worker_main(
        options: Options,
        rank: int,
        rpc_broadcast_mq: MessageQueue,
        response_mq: MessageQueue,
        group: ProcessGroup,
        device: Device,
        has_incident: bool,
        engine_pid: int,
    ) -> None:
        """The whole life of a worker process."""
        end_with_parent(engine_pid)
        signal.signal(signal.SIGTERM, _exit_on_signal)
        device.take(os.getpid())
        worker = Worker(options, rank, GroupCoordinator(rank, group, device), device, has_incident)
        take_name("Worker")
        worker.start_up("init_device")
        if options.tensor_parallel_size > 1:
            take_name(f"Worker_TP{rank}")
        worker.start_up("load_model")
        response_mq.enqueue((_READY, None))
        WorkerProc(worker, rank, rpc_broadcast_mq, response_mq).worker_busy_loop()

    def worker_busy_loop(self) -> None:
        while True:
            method, arguments = self._rpc_broadcast_mq.dequeue(indefinite=True)
            self._execute_worker_rpc(method, arguments)

    def _execute_worker_rpc(self, method: str, arguments: tuple[list[str], ...]) -> None:
        output = self._worker.call(method, *arguments)
        if self._rank == OUTPUT_RANK:
            self._async_output_queue.put(output)

    def async_output_busy_loop(self) -> None:
        while True:
            self._response_mq.enqueue(("SUCCESS", self._async_output_queue.get()))


def _exit_on_signal(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
