"""The parts that events are made of: one process, one engine, one finding …"""

from typing import Literal

import msgspec

Level = Literal["debug", "info", "warning", "error", "critical"]
ALARMING_LEVELS: frozenset[Level] = frozenset(("error", "critical"))

Role = Literal["command", "api_server", "engine_core", "worker", "coordinator", "resource_tracker", "compiler", "other"]


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of an event; defaults are not written."""


class Change(Row, frozen=True, kw_only=True):
    """One difference of a launch from what was typed: an environment variable or a flag. Secrets are removed."""

    name: str
    before: str | None = None
    """None: not set."""
    after: str | None = None
    """None: removed."""


class DebugSetting(Row, frozen=True, kw_only=True):
    """A debug setting in force, and what it costs: a lever, a flag the user typed, or a variable of the shell."""

    setting: str
    """As one would type it: `--enforce-eager` or `NCCL_DEBUG=INFO`."""
    origin: Literal["lever", "typed", "inherited"]
    cost: str


class ProcessRow(Row, frozen=True, kw_only=True):
    """One process of the tree. Byte counts are since its start (/proc/PID/io: rchar, wchar, read_bytes)."""

    pid: int
    parent_pid: int
    started: float
    """Unix seconds."""
    process: str
    """Title without `VLLM::`; `APIServer`; else the base name of its executable or script."""
    role: Role = "other"
    rank: int | None = None
    state: str = "S"
    """R S D T Z …, as in /proc/PID/stat."""
    cpu_percent: float = 0.0
    """Of one core, since the sample before."""
    rss_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    disk_read_bytes: int = 0
    thread_count: int = 0
    foreign: bool = False
    """Found by title, not a descendant of ours (docker, srun, ray): never signalled."""


class EngineSample(Row, frozen=True, kw_only=True):
    """Counters and gauges of one engine (label `engine` of /metrics). None: this version does not export it."""

    engine: str = "0"
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """0 to 1."""
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    iterations: float | None = None
    """`vllm:iteration_tokens_total_count`: steps with output, the best heartbeat."""
    preemptions: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    finished_requests: float | None = None
    ttft_count: float | None = None
    ttft_sum_s: float | None = None
    tpot_count: float | None = None
    tpot_sum_s: float | None = None
    awake: bool | None = None


class StackFile(Row, frozen=True, kw_only=True):
    """The stacks of one process, or why there are none."""

    pid: int
    process: str
    file: str | None = None
    """Relative to the session folder: py-spy's JSON."""
    error: str | None = None


class ProcessRef(Row, frozen=True, kw_only=True):
    """A process by name and pid, with its state letter."""

    pid: int
    process: str
    state: str = "?"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a post-mortem; the root cause comes first. All fields are always written."""

    rule: str | None
    class_: str = msgspec.field(name="class")
    role: Literal["cause", "consequence", "noise"]
    severity: Literal["info", "warning", "error", "fatal"]
    file: str
    line_number: int
    """Counts newlines from 1."""
    line: str
    why: str
    fix: str
