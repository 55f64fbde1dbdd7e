"""A source for the app that plays a script of events and remembers what it was asked to do."""

import asyncio
import html
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from vllm_probes.commands import Command
from vllm_probes.events import (
    AttemptStarted,
    CommandAnswered,
    CommandEnded,
    EndpointSampled,
    Event,
    GpusSampled,
    LogSampled,
    ModelRestored,
    PhaseChanged,
    ProcessesSampled,
    ProgressChanged,
    SessionStarted,
    StacksCaptured,
    StateChanged,
    StopRequested,
    TreeEnded,
)
from vllm_probes.model import SessionModel, snapshot
from vllm_probes.rows import EngineSample, GpuCard, GpuProcess, GpuRow, ProcessRef, ProcessRow, StackFile
from vllm_tui.app import VllmTui
from vllm_tui.screens.dialog import Question

NODE = "gpu-7"
START_TIME = 1_763_700_000.0
START_MONO = 1000.0
SIZES = [(80, 24), (120, 36), (200, 50)]
COMMAND = ["vllm", "serve", "meta-llama/Llama-3.1-70B-Instruct", "-tp", "8", "--port", "8000"]


class ScriptedSource:
    """Gives the batches that the test puts in; the keeper goes when `lose` is called."""

    def __init__(self, *, readonly: bool = False, live: bool = True) -> None:
        self.readonly, self.live = readonly, live
        self.sent: list[Command] = []
        self.refusal = ""
        self.closed = False
        self.back = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self._queue: asyncio.Queue[list[Event] | None] = asyncio.Queue()

    def play(self, *events: Event) -> None:
        self._queue.put_nowait(list(events))

    def lose(self) -> None:
        self._queue.put_nowait(None)

    async def batches(self) -> AsyncIterator[list[Event]]:
        while (batch := await self._queue.get()) is not None:
            yield batch

    async def send(self, command: Command) -> CommandAnswered:
        self.sent.append(command)
        await self.answers.wait()
        stamp = Script().stamp(0)
        return CommandAnswered(**stamp, id=command.id, ok=not self.refusal, message=self.refusal)

    async def reconnect(self) -> bool:
        await self.back.wait()
        return True

    async def close(self) -> None:
        self.closed = True


class Script:
    """Makes events with their stamps; `at` is seconds since the first launch."""

    def __init__(self, attempt: int = 1, command: list[str] | None = None) -> None:
        self.attempt = attempt
        self.command = command or COMMAND

    def stamp(self, at: float) -> Any:
        return {"time": START_TIME + at, "mono": START_MONO + at, "node": NODE, "attempt": self.attempt}

    def restored(self, folder: Path | str = "") -> ModelRestored:
        """What a view gets first, of a session that has just begun."""
        model = SessionModel(session=str(folder), name="night", node=NODE, cwd="/srv", command=self.command)
        return ModelRestored(**self.stamp(0), model=snapshot(model))

    def session_started(self) -> SessionStarted:
        return SessionStarted(
            **self.stamp(0),
            schema=1,
            session="/s",
            version="0",
            name="night",
            command=self.command,
            cwd="/srv",
            boot_id="b",
        )

    def attempt_started(self, at: float = 0, levers: Iterable[str] = (), **more: Any) -> AttemptStarted:
        return AttemptStarted(
            **self.stamp(at),
            command=self.command,
            levers=list(levers),
            log=f"attempt-{self.attempt}.log",
            shim_pid=100,
            **{"expects_vllm": True, **more},
        )

    def state(self, state: Any, at: float = 1, reason: str | None = None) -> StateChanged:
        return StateChanged(**self.stamp(at), state=state, reason=reason)

    def phase(self, label: str, at: float = 1) -> PhaseChanged:
        return PhaseChanged(**self.stamp(at), phase=label.lower(), label=label, line_number=1)

    def progress(self, done: float, total: float, at: float = 1, eta: str | None = None) -> ProgressChanged:
        return ProgressChanged(**self.stamp(at), label="shards", done=done, total=total, eta=eta)

    def processes(self, *rows: ProcessRow, at: float = 1, gone: Iterable[int] = ()) -> ProcessesSampled:
        return ProcessesSampled(**self.stamp(at), rows=list(rows), gone=list(gone))

    def tree(self, workers: int = 8, at: float = 1) -> ProcessesSampled:
        """An API server, an engine core, and so many workers."""
        api = row(4001, "APIServer", role="api_server", cpu_percent=3.0, rss_bytes=900 << 20)
        core = row(4013, "EngineCore", role="engine_core", state="R", cpu_percent=99.0, rss_bytes=2 << 30)
        ranks = [
            row(
                4031 + rank,
                f"Worker_TP{rank}",
                parent_pid=4013,
                role="worker",
                rank=rank,
                state="R",
                cpu_percent=97.0 + rank % 3,
                rss_bytes=9 << 30,
            )
            for rank in range(workers)
        ]
        tracker = row(4050, "resource_tracker", role="resource_tracker", rss_bytes=12 << 20)
        return self.processes(api, core, *ranks, tracker, at=at)

    def endpoint(self, at: float = 1, tokens: float = 0, running: float = 12, waiting: float = 3) -> EndpointSampled:
        engine = EngineSample(
            running=running, waiting=waiting, kv_usage=0.71, generation_tokens=tokens,
            prefix_queries=100, prefix_hits=38,
            ttft_count=tokens / 100, ttft_sum_s=tokens / 100 * 0.21, tpot_count=tokens, tpot_sum_s=tokens * 0.023,
        )  # fmt: skip
        return EndpointSampled(
            **self.stamp(at),
            url="http://127.0.0.1:8000",
            health="ok",
            status=200,
            latency_s=0.002,
            active=True,
            engines=[engine],
        )

    def log_sampled(self, size_bytes: int, at: float = 1) -> LogSampled:
        return LogSampled(**self.stamp(at), size_bytes=size_bytes, line_count=0)

    def stop_requested(self, at: float = 1, *, kill: bool = False, by: Any = "key") -> StopRequested:
        return StopRequested(**self.stamp(at), by=by, kill=kill)

    def stacks_captured(self, at: float = 1, *stacks: StackFile, reason: str = "key") -> StacksCaptured:
        return StacksCaptured(**self.stamp(at), reason=reason, folder=".", stacks=list(stacks))

    def gpus(self, *rows: GpuRow, at: float = 1, **more: Any) -> GpusSampled:
        cards = [
            GpuCard(index=row.index, name="NVIDIA H100 80GB HBM3", total_bytes=80 << 30, power_limit_w=700.0)
            for row in rows
        ]
        return GpusSampled(**self.stamp(at), cards=cards, rows=list(rows), driver="570.86.15", **more)

    def command_ended(
        self, at: float = 1, code: int | None = 0, signal: int | None = None, leftovers: Iterable[ProcessRef] = ()
    ) -> CommandEnded:
        return CommandEnded(**self.stamp(at), code=code, signal=signal, leftovers=list(leftovers))

    def tree_ended(self, at: float = 1) -> TreeEnded:
        return TreeEnded(**self.stamp(at))


def row(pid: int, process: str, **more: Any) -> ProcessRow:
    return ProcessRow(pid=pid, started=START_TIME, process=process, **{"parent_pid": 1, **more})


def gpu(index: int, busy: float | None = 98.0, **more: Any) -> GpuRow:
    """One that serves with a worker of `Script.tree` on it."""
    figures = {"used_bytes": 71 << 30, "power_w": 412.0, "temperature_c": 61.0}
    return GpuRow(index=index, busy_percent=busy, **{**figures, "processes": [GpuProcess(pid=4031 + index)], **more})


# --- runs that have got somewhere -----------------------------------------------------------------------------------


def started(script: Script, folder: Path, *, readonly: bool = False, **launch: Any) -> ScriptedSource:
    """A source whose first attempt has begun."""
    source = ScriptedSource(readonly=readonly)
    (folder / "attempt-1.log").write_text("INFO:     Application startup complete.\n")
    source.play(script.restored(folder))
    source.play(script.attempt_started(**launch))
    return source


def serving(script: Script, folder: Path, **more: Any) -> ScriptedSource:
    source = started(script, folder, **more)
    source.play(script.state("serving", 41), script.tree(at=41), *[script.endpoint(41 + i, i * 412) for i in range(9)])
    return source


def crashed(script: Script, folder: Path, *leftovers: ProcessRef) -> ScriptedSource:
    source = started(script, folder)
    source.play(script.state("crashed", 12), script.command_ended(12, None, 9, leftovers))
    if not leftovers:
        source.play(script.tree_ended(13))
    return source


# --- driving the app ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(
    source: ScriptedSource, folder: Path, *, size: tuple[int, int] = (120, 36), now: float = 60.0
) -> AsyncIterator[tuple[VllmTui, Pilot[Any]]]:
    """The app on a screen of `size`, `now` seconds after the first launch."""
    app = VllmTui(source, folder=folder, clock=lambda: START_MONO + now)
    async with app.run_test(size=size, notifications=True) as pilot:
        yield app, pilot


async def until(pilot: Pilot[Any], condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    """Let the app work until something is true."""
    async with asyncio.timeout(deadline_s):
        while not condition():
            await pilot.pause(0.02)


async def shows(app: VllmTui, pilot: Pilot[Any], *texts: str) -> None:
    """Wait until all these texts stand on the screen; say what stands there instead."""
    try:
        await until(pilot, lambda: all(text in screen_text(app) for text in texts))
    except TimeoutError:
        missing = [text for text in texts if text not in screen_text(app)]
        raise AssertionError(f"not on the screen: {missing}\n{screen_text(app)}") from None


_TEXT = re.compile(r'<text class="terminal[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>')
_CELL_WIDTH = 12.2


def screen_text(app: VllmTui) -> str:
    """What stands on the screen, row by row."""
    rows: dict[float, str] = {}
    for x, y, text in _TEXT.findall(app.export_screenshot()):
        column = round(float(x) / _CELL_WIDTH)
        rows[float(y)] = rows.get(float(y), "").ljust(column) + html.unescape(text).replace("\xa0", " ").rstrip("\n")
    return "\n".join(rows[y].rstrip() for y in sorted(rows))


async def answer(pilot: Pilot[Any], key: str) -> None:
    """Wait for a question and answer it."""
    await until(pilot, lambda: isinstance(pilot.app.screen, Question))
    await pilot.press(key)
    await until(pilot, lambda: not isinstance(pilot.app.screen, Question))


def app_source(app: VllmTui) -> ScriptedSource:
    source = app.source
    assert isinstance(source, ScriptedSource)
    return source
