"""The API server: routes, the engine's outputs, the line of statistics, and the end on a signal."""

import asyncio
import itertools
import json
import signal
import socket
import time
from functools import partial
from http import HTTPStatus

from vllm_probes.demo.log_format import LOGGER, log_at
from vllm_probes.demo.options import Options
from vllm_probes.demo.vllm.entrypoints.http_server import Response, serve_connection
from vllm_probes.demo.vllm.entrypoints.load import send_requests
from vllm_probes.demo.vllm.v1.engine.core_client import EngineDeadError, MPClient
from vllm_probes.demo.vllm.v1.metrics.loggers import EngineStats

STATS_INTERVAL_S = 10.0
"""VLLM_LOG_STATS_INTERVAL of vLLM."""
_NOT_FOUND = Response(HTTPStatus.NOT_FOUND, b'{"detail":"Not Found"}')
_UNPROCESSABLE = Response(HTTPStatus.UNPROCESSABLE_ENTITY, b'{"detail":"a prompt and max_tokens are needed"}')


class ApiServer:
    """Answers HTTP. Like vLLM's, /health does not ask the engine, so it stays 200 while the engine hangs."""

    def __init__(self, options: Options, engine: MPClient) -> None:
        self._options = options
        self._engine = engine
        self._stats = EngineStats(options.model)
        self._request_numbers = itertools.count(1)
        self._pending: dict[str, asyncio.Future[None]] = {}
        self._end = asyncio.Event()

    async def run(self, listener: socket.socket) -> None:
        """Serve until SIGINT, SIGTERM or the engine's end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._shut_down)
        loop.add_reader(self._engine.fileno(), self._take_output)
        server = await asyncio.start_server(partial(serve_connection, self._answer), sock=listener)
        async with server, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._log_stats())]
            tasks += [group.create_task(send_requests(self._options.port, self._options.model))]
            await self._end.wait()
            for task in tasks:
                task.cancel()

    async def _answer(self, method: str, path: str, body: bytes) -> Response:
        match method, path:
            case "GET", "/health":
                return Response()
            case "GET", "/metrics":
                return Response(body=self._stats.page().encode(), content_type="text/plain; version=0.0.4")
            case "GET", "/version":
                return _json({"version": "0.32.0"})
            case "GET", "/v1/models":
                return _json({"object": "list", "data": [{"id": self._options.model, "object": "model"}]})
            case "POST", "/v1/completions":
                return await self._complete(body)
        return _NOT_FOUND

    async def _complete(self, body: bytes) -> Response:
        try:
            request = json.loads(body)
            prompt_tokens, max_tokens = len(request["prompt"].split()), int(request.get("max_tokens", 16))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _UNPROCESSABLE
        request_id = f"cmpl-{next(self._request_numbers)}"
        self._pending[request_id] = asyncio.get_running_loop().create_future()
        self._stats.record_arrival(request_id, time.monotonic())
        self._engine.add_request(request_id, prompt_tokens, max_tokens)
        await self._pending[request_id]
        choice = {"index": 0, "text": " word" * max_tokens, "finish_reason": "length"}
        return _json({"id": request_id, "object": "text_completion", "model": self._options.model, "choices": [choice]})

    def _take_output(self) -> None:
        try:
            output = self._engine.get_output()
        except EngineDeadError:
            LOGGER.exception("AsyncLLM output_handler failed.")
            asyncio.get_running_loop().remove_reader(self._engine.fileno())
            self._end.set()
            return
        self._stats.record_step(output, time.monotonic())
        for request_id in output.finished_ids:
            self._pending.pop(request_id).set_result(None)

    async def _log_stats(self) -> None:
        interval_s = STATS_INTERVAL_S / self._options.pace
        while True:
            await asyncio.sleep(interval_s)
            self._stats.log(interval_s)

    def _shut_down(self) -> None:
        log_at("launcher.py:254", "[shutdown] API server: shutdown triggered")
        log_at("launcher.py:270", "[shutdown] API server: stopping engine client mode=abort timeout=0s")
        self._end.set()


def _json(document: object) -> Response:
    return Response(body=json.dumps(document).encode())
