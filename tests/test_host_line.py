"""The host in one row, and what flows while a model comes."""

from pathlib import Path
from typing import Any

import pytest

from tests.ui_source import SIZES, Script, running, screen_text, serving, shows, started, until
from vllm_probes.events import HostSampled
from vllm_tui.widgets.host import figures, memory

GIB = 1 << 30


def host(script: Script, at: float = 59, **fields: Any) -> HostSampled:
    known = {"cpu_percent": 34.0, "core_count": 64, "memory_used_bytes": 412 * GIB, "memory_total_bytes": 2015 * GIB}
    return HostSampled(**script.stamp(at), **{**known, **fields})


@pytest.mark.parametrize("size", SIZES)
async def test_the_host_stands_below_the_tables(tmp_path: Path, size: tuple[int, int]) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(host(script, shm_used_bytes=2 * GIB, shm_total_bytes=64 * GIB, disk_read_bytes_per_s=210e6))
    async with running(source, tmp_path, size=size) as (app, pilot):
        if size[0] == 80:
            await shows(app, pilot, "8 workers")
            await pilot.press("v", "end")
        await shows(app, pilot, "CPU 34 % of 64 · memory 412G of 2015G", "/dev/shm 2.0G of 64.0G")
        await until(pilot, lambda: size[0] == 80 or "disk reads 200M/s" in screen_text(app))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"memory_used_bytes": 2000 * GIB}, "memory nearly full"),
        ({"swap_bytes_per_s": 5e6}, "swaps 5M/s"),
        ({"shm_used_bytes": 62 << 20, "shm_total_bytes": 64 << 20}, "/dev/shm nearly full"),
        ({"cgroup_throttled_percent": 40.0, "cgroup_cpu_limit": 1.5}, "CPU throttled to 1.5 cores 40 % of the time"),
        ({"io_pressure_percent": 31.0}, "waits for disk 31 % of the time"),
        ({"memory_pressure_percent": 31.0}, "waits for memory 31 % of the time"),
    ],
)
def test_trouble_comes_first_and_in_words(fields: dict[str, Any], said: str) -> None:
    assert next(iter(figures(host(Script(), **fields))))[0] == said
    assert said not in [text for text, _ in figures(host(Script()))]


def test_the_memory_is_that_of_the_cgroup_where_it_allows_less() -> None:
    limited = host(Script(), cgroup_memory_bytes=5 * GIB, cgroup_memory_limit_bytes=8 * GIB)
    assert memory(limited) == (5 * GIB, 8 * GIB)
    assert memory(host(Script(), cgroup_memory_bytes=5, cgroup_memory_limit_bytes=9000 * GIB))[1] == 2015 * GIB


def test_what_is_not_known_is_a_dash() -> None:
    nothing = HostSampled(**Script().stamp(1))
    assert [text for text, _ in figures(nothing)] == ["CPU - % of -", "memory - of -", "/dev/shm - of -"]


async def test_a_host_without_a_driver_says_so_quietly(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(host(script), script.gpus(at=59, status="absent", reason="There is none."))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "no NVIDIA driver")
        assert "There is none." not in screen_text(app)


async def test_a_driver_that_cannot_be_used_says_what_to_do(tmp_path: Path) -> None:
    script = Script()
    source = serving(script, tmp_path)
    source.play(script.gpus(at=59, status="failed", reason="Driver and library do not match. Restart the host."))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "Restart the host.")


@pytest.mark.parametrize("size", SIZES)
async def test_a_download_shows_its_bytes(tmp_path: Path, size: tuple[int, int]) -> None:
    script = Script()
    source = started(script, tmp_path)
    source.play(script.state("downloading", 20), script.phase("downloading the model", 20))
    source.play(host(script, 30, download_bytes=12 * GIB, download_bytes_per_s=210e6))
    async with running(source, tmp_path, size=size, now=31) as (app, pilot):
        await shows(app, pilot, "downloading the model", "12.0G so far, 200M/s", "for 11 s")


async def test_a_load_shows_how_fast_it_reads_and_from_where(tmp_path: Path) -> None:
    script = Script()
    source = started(script, tmp_path)
    source.play(script.state("loading", 20), script.phase("loading weights", 20))
    source.play(host(script, 30, model_read_bytes_per_s=1.5e9, model_filesystem="nfs4"))
    async with running(source, tmp_path, now=31) as (app, pilot):
        await shows(app, pilot, "reads 1.4G/s from nfs4")
