"""The host in one row: what it has in use, and what this run has to wait for."""

from collections.abc import Iterator

from textual.content import Content

from vllm_probes.events import HostSampled
from vllm_tui.format import UNKNOWN, number, size
from vllm_tui.widgets.rows import Panel, cell, joined

LABEL_WIDTH = 7
WAITS_PERCENT = 10.0
"""Pressure above which something waits noticeably (no measured threshold: PSI is a share of time)."""
THROTTLED_PERCENT = 5.0
FULL = 0.9
SWAPS_BYTES_PER_S = 1e6
FLOWS_BYTES_PER_S = 1e6


class HostLine(Panel):
    """Always in the same order; what is wrong stands out in words that are only there then."""

    def rows(self, width: int) -> list[Content]:
        host = self._situation.model.host
        if host is None or not (self._situation.alive or self._situation.holds):
            return []
        parts = [Content.styled(text, style) for text, style in figures(host)]
        if self._situation.model.gpus.status == "absent":
            parts.append(Content.styled("no NVIDIA driver", "dim"))
        label = Content.assemble(" ", cell("host", LABEL_WIDTH, "dim"))
        return [Content.assemble(label, joined(parts)).truncate(width, ellipsis=True)]


def figures(host: HostSampled) -> Iterator[tuple[str, str]]:
    """(text, style) of each figure, trouble first."""
    yield from troubles(host)
    yield f"CPU {number(host.cpu_percent)} % of {number(host.core_count)}", ""
    yield f"memory {part(*memory(host))}", ""
    yield f"/dev/shm {part(host.shm_used_bytes, host.shm_total_bytes)}", ""
    yield from flows(host)


def troubles(host: HostSampled) -> Iterator[tuple[str, str]]:
    used, total = memory(host)
    if used is not None and total and used > FULL * total:
        yield "memory nearly full", "bold $text-warning"
    if (host.swap_bytes_per_s or 0.0) > SWAPS_BYTES_PER_S:
        yield f"swaps {size(int(host.swap_bytes_per_s or 0))}/s", "bold $text-warning"
    if host.shm_used_bytes and host.shm_total_bytes and host.shm_used_bytes > FULL * host.shm_total_bytes:
        yield "/dev/shm nearly full", "bold $text-warning"
    if (host.cgroup_throttled_percent or 0.0) > THROTTLED_PERCENT:
        limit = "" if host.cgroup_cpu_limit is None else f" to {host.cgroup_cpu_limit:g} cores"
        yield f"CPU throttled{limit} {host.cgroup_throttled_percent:.0f} % of the time", "bold $text-warning"
    for what, percent in (("memory", host.memory_pressure_percent), ("disk", host.io_pressure_percent)):
        if (percent or 0.0) > WAITS_PERCENT:
            yield f"waits for {what} {percent:.0f} % of the time", "$text-warning"


def memory(host: HostSampled) -> tuple[int | None, int | None]:
    """(in use, what there is): of the cgroup where that allows less than the host has."""
    limit = host.cgroup_memory_limit_bytes
    if limit is not None and (host.memory_total_bytes is None or limit < host.memory_total_bytes):
        return host.cgroup_memory_bytes, limit
    return host.memory_used_bytes, host.memory_total_bytes


def part(used: int | None, total: int | None) -> str:
    return f"{UNKNOWN if used is None else size(used)} of {UNKNOWN if total is None else size(total)}"


def flows(host: HostSampled) -> Iterator[tuple[str, str]]:
    """What moves, where it is more than a trickle."""
    rates = {
        "disk reads": host.disk_read_bytes_per_s,
        "disk writes": host.disk_write_bytes_per_s,
        "network in": host.network_receive_bytes_per_s,
        "out": host.network_send_bytes_per_s,
    }
    for name, rate in rates.items():
        if rate is not None and rate > FLOWS_BYTES_PER_S:
            yield f"{name} {size(int(rate))}/s", ""
