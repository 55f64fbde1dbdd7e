"""The GPUs, through a program of its own that asks the driver (`nvml`): a call that never returns stays in there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Literal, cast

import msgspec
from msgspec.structs import replace

from vllm_probes.gpus import GpuModel
from vllm_probes.rows import GpuCard, GpuProcess, GpuRow, Row
from vllm_probes.sensors.gpu_lines import Ended, Faulted, GpuLine, Looked, Opened, decode

COMMAND = (sys.executable, "-m", "vllm_probes.sensors.nvml")

SILENT_AFTER_S = 5.0
OPENING_S = 60.0
"""A driver that has to wake its GPUs up is slow until its first look: a program ended before would never get there."""
DYING_S = 2.0
"""How long a killed program may take to go before it is said to be stuck."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Between two programs, twice as long each time …"""
GOOD_LIFE_S = 60.0
"""… until one has answered for so long."""

POLL_S = 0.02
READ_BYTES, READS_PER_SAMPLE = 1 << 16, 16
LONGEST_LINE_BYTES = 1 << 20

PROCESS_STEP_BYTES = 64 << 20
POWER_STEP_W = 5.0
STEPS = {
    "used_bytes": 16 << 20,
    "busy_percent": 3.0,
    "memory_busy_percent": 3.0,
    "power_w": POWER_STEP_W,
    "temperature_c": 2.0,
    "sm_clock_mhz": 50.0,
}
"""What a field of a row has to change by to be worth telling."""


class GpuSample(Row, frozen=True, kw_only=True):
    """The fields of `gpus_sampled`: all that is known, or what `difference` leaves of it."""

    status: Literal["ok", "absent", "failed", "silent"]
    reason: str | None = None
    answered_mono: float | None = None
    """While `silent`: when the driver answered last; None: it never did."""
    driver: str | None = None
    cuda: str | None = None
    cards: list[GpuCard] = []
    rows: list[GpuRow] = []


class GpuXid(Row, frozen=True, kw_only=True):
    """The fields of `gpu_faulted`."""

    index: int
    xid: int
    meaning: str | None = None


class GpuSensor:
    """Runs the program, and ends it when it is silent. No method waits for anything.

    There is never more than one program: a new one is started when the old one is gone, which one that hangs in the
    driver (state D) may never be. A host without a driver is not looked at again.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        """Prepare; `command` is a program that speaks the lines of `gpu_lines`, None the one that asks the driver."""
        self._command = list(command or COMMAND)
        self._program: _Program | None = None
        self._start_mono = float("-inf")
        self._pause_s = FIRST_PAUSE_S
        self._known = GpuSample(status="silent")
        self._opened = Opened()
        self._answered_mono: float | None = None

    def start(self) -> None:
        """Start the program, so that it has something to tell when it is asked first."""
        try:
            self._program = _Program(self._command)
        except OSError as error:
            self._fail(f"The program that asks the NVIDIA driver cannot be started: {error}.")

    def sample(self, mono: float) -> list[GpuSample | GpuXid]:
        """What is new: Xids, then at most one sample. To be called once a second; `mono` is CLOCK_MONOTONIC."""
        before = self._known
        xids = self._attend(self._program, mono) if self._program else []
        if self._program is None and mono >= self._start_mono:
            self.start()
            if self._program is None:
                self._pause(mono)
        return [*xids] if self._known is before else [*xids, self._known]

    def close(self) -> None:
        """End the program, and do not wait until it is gone."""
        if self._program is not None:
            self._program.kill(0.0)
            self._program.close()
        self._program, self._start_mono = None, float("inf")

    def _attend(self, program: "_Program", mono: float) -> list[GpuXid]:
        has_ended = program.has_ended()  # before it is read: what it said last is not to be lost
        lines = program.lines(mono)
        xids = [xid for line in lines if (xid := self._take(line, program, mono))]
        if has_ended:
            self._bury(program, mono)
        else:
            self._expect(program, mono)
        return xids

    def _take(self, line: GpuLine, program: "_Program", mono: float) -> GpuXid | None:
        match line:
            case Ended(status=status, reason=reason):
                program.has_explained = True
                self._known = replace(self._known, status=status, reason=reason, answered_mono=None)
                return None
            case Faulted(index=index, xid=xid):
                return GpuXid(index=index, xid=xid, meaning=xid_meanings().get(xid))
            case Opened():
                self._opened = line
            case Looked():
                self._look(line)
                if program.age_s(mono) >= GOOD_LIFE_S:
                    self._pause_s = FIRST_PAUSE_S
        self._answered_mono = mono
        return None

    def _look(self, line: Looked) -> None:
        cards = {card.index: card for card in [*self._known.cards, *line.cards]}
        self._known = GpuSample(
            status="ok",
            driver=self._opened.driver,
            cuda=self._opened.cuda,
            cards=[card for _, card in sorted(cards.items())],
            rows=line.rows,
        )

    def _bury(self, program: "_Program", mono: float) -> None:
        """The program is gone: why, and when the next one may start."""
        program.close()
        self._program = None
        if not program.has_explained and not program.is_killed:
            self._fail(f"The program that asks the NVIDIA driver {program.end()}. It is started again.")
        self._pause(mono)
        if self._known.status == "absent":
            self._start_mono = float("inf")

    def _expect(self, program: "_Program", mono: float) -> None:
        """End a program that says nothing any more."""
        if program.quiet_s(mono) < SILENT_AFTER_S:
            return
        if not program.is_opening or program.quiet_s(mono) >= OPENING_S:
            program.kill(mono)
        reason = self._silence(program, mono)
        if not program.has_explained and (self._known.status, self._known.reason) != ("silent", reason):
            self._known = replace(self._known, status="silent", reason=reason, answered_mono=self._answered_mono)

    def _silence(self, program: "_Program", mono: float) -> str:
        if program.is_stuck(mono):
            return (
                f"The NVIDIA driver does not answer, and the process that asked it (pid {program.pid}) hangs in it and "
                "cannot be killed. `dmesg` may say why; mostly only a reboot helps."
            )
        return f"The NVIDIA driver {'has not answered yet' if self._answered_mono is None else 'does not answer'}."

    def _fail(self, reason: str) -> None:
        self._known = replace(self._known, status="failed", reason=reason, answered_mono=None)

    def _pause(self, mono: float) -> None:
        self._start_mono = mono + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def indices_by_pid(within_s: float) -> dict[int, list[int]]:
    """Which GPUs each process has memory of, as far as the driver tells within that time; pids as it knows them."""
    sensor = GpuSensor()
    sensor.start()
    deadline = time.monotonic() + within_s
    sample = GpuSample(status="silent")
    while sample.status == "silent" and time.monotonic() < deadline:
        time.sleep(POLL_S)
        sample = next((one for one in sensor.sample(time.monotonic()) if isinstance(one, GpuSample)), sample)
    sensor.close()
    found: dict[int, list[int]] = {}
    for row in sample.rows:
        for process in row.processes or ():
            found.setdefault(process.pid, []).append(row.index)
    return found


class _Program:
    """One run of the program, in a session of its own: Ctrl+C is not for it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        self._output = cast(IO[bytes], self._process.stdout)
        os.set_blocking(self._output.fileno(), False)
        self.pid = self._process.pid
        self.is_opening = True
        """It has not looked yet since it opened the driver."""
        self.has_explained = False
        """It said why it ends."""
        self._unfinished = b""
        self._began_mono: float | None = None
        self._heard_mono = 0.0
        self._killed_mono: float | None = None

    def lines(self, mono: float) -> list[GpuLine]:
        """What it has said since the last time; what is no line of its is skipped."""
        if self._began_mono is None:
            self._began_mono = self._heard_mono = mono
        *whole, self._unfinished = (self._unfinished + b"".join(self._chunks())).split(b"\n")
        if len(self._unfinished) > LONGEST_LINE_BYTES:
            self._unfinished = b""
        lines = [line for text in whole if (line := decode(text))]
        if lines:
            self.is_opening, self._heard_mono = isinstance(lines[-1], Opened), mono
        return lines

    def _chunks(self) -> Iterator[bytes]:
        for _ in range(READS_PER_SAMPLE):
            with suppress(BlockingIOError):
                if chunk := os.read(self._output.fileno(), READ_BYTES):
                    yield chunk
                    continue
            return

    def age_s(self, mono: float) -> float:
        return 0.0 if self._began_mono is None else mono - self._began_mono

    def quiet_s(self, mono: float) -> float:
        return mono - self._heard_mono

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> str:
        """How it ended, after `has_ended`."""
        code = self._process.returncode
        if code < 0:
            return f"died ({signal.strsignal(-code)})"
        return f"ended with code {code}: keeper.log may say why"

    def kill(self, mono: float) -> None:
        if self._killed_mono is None:
            self._killed_mono = mono
            self._process.kill()

    @property
    def is_killed(self) -> bool:
        return self._killed_mono is not None

    def is_stuck(self, mono: float) -> bool:
        return self._killed_mono is not None and mono - self._killed_mono >= DYING_S

    def close(self) -> None:
        """Stop listening, and reap it if it is gone."""
        self._output.close()
        self._process.poll()


def difference(before: GpuModel, sample: GpuSample) -> GpuSample | None:
    """What of a sample is news by more than noise; None: nothing is.

    `before` must be what was last told, not what was last seen, or slow changes get lost.
    """
    news = replace(
        sample,
        cards=[card for card in sample.cards if _card_differs(before.cards.get(card.index), card)],
        rows=[row for row in sample.rows if _row_differs(before.rows.get(row.index), row)],
    )
    is_known = (
        (before.status, before.reason) == (sample.status, sample.reason)
        and (sample.status != "silent" or before.answered_mono == sample.answered_mono)
        and sample.driver in (None, before.driver)
        and sample.cuda in (None, before.cuda)
    )
    return None if is_known and not news.cards and not news.rows else news


def _card_differs(before: GpuCard | None, now: GpuCard) -> bool:
    if before is None or _moved(before.power_limit_w, now.power_limit_w, POWER_STEP_W):
        return True
    return replace(before, power_limit_w=None) != replace(now, power_limit_w=None)


def _row_differs(before: GpuRow | None, now: GpuRow) -> bool:
    return (
        before is None
        or (before.error, before.throttle) != (now.error, now.throttle)
        or (now.busy_percent in (0, 100) and before.busy_percent != now.busy_percent)
        or any(_moved(getattr(before, name), getattr(now, name), step) for name, step in STEPS.items())
        or _processes_differ(before.processes, now.processes)
    )


def _processes_differ(before: Sequence[GpuProcess] | None, now: Sequence[GpuProcess] | None) -> bool:
    """Names and users do not count: whoever tells the rows may have filled them in."""
    if before is None or now is None:
        return before is not now
    known, seen = ({process.pid: process.used_bytes for process in ones} for ones in (before, now))
    return known.keys() != seen.keys() or any(_moved(known[pid], seen[pid], PROCESS_STEP_BYTES) for pid in seen)


def _moved(before: float | None, now: float | None, step: float) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(now - before) >= step


@cache
def xid_meanings() -> Mapping[int, str]:
    text = Path(__file__).with_name("xid.toml").read_bytes()
    return msgspec.toml.decode(text, type=dict[str, dict[int, str]])["meaning"]
