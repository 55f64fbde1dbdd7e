"""Takes the pictures of `screenshots/` from real runs: `python -m tests.screenshots`.

The demo's processes and a real vLLM are started by the program itself; the app is shown in memory at the size of the
picture, and its own export writes the SVG.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx

from tests.benchmarks.measure import PROGRAM, own_state, sessions, stop_run
from tests.hang_plugin import Order
from tests.real_vllm import provision
from vllm_probes.keeper.folder import SessionFolder
from vllm_tui.app import VllmTui
from vllm_tui.live import LiveSource

PICTURES = Path(__file__).parents[1] / "screenshots"


def session(command: list[str], environment: dict[str, str]) -> tuple[SessionFolder, "subprocess.Popen[bytes]"]:
    """Start a run without a view of its own."""
    run = subprocess.Popen([*PROGRAM, *command], env=environment, stdout=subprocess.DEVNULL)
    root = Path(environment["XDG_STATE_HOME"], "vllm-tui", "sessions")
    while not list(root.glob("*/events.jsonl")):
        time.sleep(0.05)
    return SessionFolder(sessions(environment)[-1]), run


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1500):
        if condition():
            return
        await asyncio.sleep(0.2)
    raise SystemExit("The run never came to what the picture should show.")


async def picture(
    folder: SessionFolder, name: str, size: tuple[int, int], keys: list[str], ready: Callable[[VllmTui], bool]
) -> None:
    """Show the session, press keys, and save what is seen."""
    app = VllmTui(LiveSource(folder), folder=folder.path)
    async with app.run_test(size=size) as pilot:
        await until(lambda: ready(app))
        for key in keys:
            await pilot.press(key)
            await asyncio.sleep(2.0)
        await asyncio.sleep(5.0)
        await pilot.pause()
        (PICTURES / f"{name}-{size[0]}x{size[1]}.svg").write_text(app.export_screenshot(title="vllm-tui"))


def in_state(*states: str) -> Callable[[VllmTui], bool]:
    return lambda app: app.situation.model.state in states


def stalled(app: VllmTui) -> bool:
    attempt = app.situation.attempt
    return attempt is not None and attempt.verdict is not None and attempt.verdict.health == "stalled"


async def demo_pictures() -> None:
    with own_state() as environment:
        folder, run = session(["demo", "--headless"], environment)
        await picture(folder, "starting", (120, 36), [], in_state("loading", "compiling", "warming_up"))
        for size in ((80, 24), (120, 36), (200, 50)):
            await picture(folder, "demo", size, [], in_state("serving"))
        for size in ((80, 24), (120, 36), (200, 50)):
            await picture(folder, "hang", size, [], stalled)
            await picture(folder, "stacks", size, ["s"], stalled)
        await picture(folder, "help", (120, 36), ["question_mark"], in_state("serving"))
        stop_run(folder.path)
        run.wait()


async def vllm_pictures() -> None:
    real = provision()
    with own_state() as environment:
        argv = ["--headless", "--", *real.serve_argv(real.free_port(), eager=False)]
        folder, run = session(argv, {**real.env, **environment})
        await picture(folder, "vllm", (80, 24), [], in_state("idle"))
        await picture(folder, "relaunch", (120, 36), ["e"], in_state("idle"))
        stop_run(folder.path)
        run.wait()


async def real_hang_pictures() -> None:
    """A rank of real vLLM takes a lock twice, as a plugin makes it do, when the first request comes."""
    real = provision()
    with own_state() as environment, tempfile.TemporaryDirectory() as plugin:
        order = Order(Path(plugin))
        port = real.free_port()
        folder, run = session(
            ["--headless", "--", *real.serve_argv(port)], {**real.env, **environment, **order.environment}
        )
        await picture(folder, "vllm", (120, 36), [], in_state("idle"))
        order.give("collective 1 lock")
        body = {"model": str(real.model), "prompt": "hello", "max_tokens": 20}
        asking = asyncio.ensure_future(ask(f"http://127.0.0.1:{port}/v1/completions", body))
        for size in ((80, 24), (120, 36)):
            await picture(folder, "vllm-hang", size, [], stalled)
        await picture(folder, "vllm-stacks", (120, 36), ["s"], stalled)
        asking.cancel()
        stop_run(folder.path)
        run.wait()


async def crash_pictures() -> None:
    """The weights of a model were cut off, as by a download that broke."""
    real = provision()
    with own_state() as environment, tempfile.TemporaryDirectory() as models:
        model = shutil.copytree(real.model, Path(models, real.model.name))
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:300_000])
        argv = ["--headless", "--", *real.serve_argv(real.free_port(), model=str(model))]
        folder, run = session(argv, {**real.env, **environment})
        run.wait()
        await until(lambda: not folder.socket.exists())
        tell_no_paths(folder, {str(real.python.parents[1]): "/opt/venv", sys.base_prefix: "/usr", models: "/models"})
        for size in ((80, 24), (120, 36)):
            await picture(folder, "crash", size, [], in_state("crashed"))
        await picture(folder, "findings", (120, 36), ["W"], in_state("crashed"))
        await picture(folder, "folded", (120, 36), ["z"], in_state("crashed"))


def tell_no_paths(folder: SessionFolder, places: dict[str, str]) -> None:
    """Where the run's files lay is nobody's business: a session that has ended is told as if they lay elsewhere."""
    for file in (folder.events, *folder.path.glob("attempt-*.log")):
        text = file.read_bytes()
        for place, instead in places.items():
            text = text.replace(place.encode(), instead.encode())
        file.write_bytes(text)


async def ask(url: str, body: dict[str, object]) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=300) as client:
        with suppress(httpx.HTTPError):
            await client.post(url, json=body)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    os.environ["TEXTUAL_ANIMATIONS"] = "none"
    asyncio.run(demo_pictures())
    asyncio.run(vllm_pictures())
    asyncio.run(real_hang_pictures())
    asyncio.run(crash_pictures())


if __name__ == "__main__":
    sys.exit(main())
