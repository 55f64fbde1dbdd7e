"""`serve`: the life of the API server process."""

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
from types import FrameType

from vllm_probes.demo.devices import devices_file
from vllm_probes.demo.log_format import configure, uvicorn_line
from vllm_probes.demo.options import Options, parse
from vllm_probes.demo.startup import play
from vllm_probes.demo.vllm.entrypoints.api_server import ApiServer
from vllm_probes.demo.vllm.v1.engine.core_client import EngineDeadError, MPClient


def main() -> None:
    """Start the engine, serve until somebody ends it, end the engine; the exit code is 0, as vLLM's is."""
    options = parse(sys.argv[1:])
    multiprocessing.current_process().name = "APIServer"
    configure()
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.signal(signal.SIGINT, _exit_on_signal)
    listener = _bind(options.port)
    play("api_server", options)
    engine = MPClient(options)
    try:
        engine.wait_for_engine_startup()
        play("api_server_ready", options)
        asyncio.run(_serve(options, engine, listener))
    except EngineDeadError:
        raise SystemExit("RuntimeError: Engine core initialization failed. See root cause above.") from None
    finally:
        engine.shutdown()
        devices_file(options.port).unlink(missing_ok=True)
        for line in ("Shutting down", "Waiting for application shutdown.", "Application shutdown complete."):
            uvicorn_line(line)


async def _serve(options: Options, engine: MPClient, listener: socket.socket) -> None:
    server = ApiServer(options, engine)
    uvicorn_line(f"Started server process [{os.getpid()}]")
    uvicorn_line("Waiting for application startup.")
    uvicorn_line("Application startup complete.")
    await server.run(listener)


def _bind(port: int) -> socket.socket:
    """Bound but not listening until the engine is ready: clients are refused meanwhile, as by vLLM 0.32."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


def _exit_on_signal(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
