"""What the screen says of the GPUs, at every size and whatever the driver says."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.ui_source import SIZES, Script, ScriptedSource, gpu, running, screen_text, serving, shows, until
from vllm_probes.events import GpuFaulted
from vllm_probes.rows import GpuCard, GpuProcess, GpuRow
from vllm_tui.widgets.gpus import busy_at, kinds, odd_ones, span


@pytest.fixture
def script() -> Script:
    return Script()


def with_gpus(script: Script, folder: Path, *rows: GpuRow, **more: Any) -> ScriptedSource:
    source = serving(script, folder)
    source.play(script.gpus(*rows, at=58, **more))
    return source


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 8, 16])
async def test_every_gpu_has_its_row(script: Script, tmp_path: Path, size: tuple[int, int], count: int) -> None:
    source = with_gpus(script, tmp_path, *[gpu(index, used_bytes=(40 + index) << 30) for index in range(count)])
    async with running(source, tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, f"{count} GPU" if size[0] == 80 else f"GPUs · {count} × H100")
        if size[0] == 80:
            await pilot.press("v")
        await shows(app, pilot, *[f"{40 + index}/80G" for index in range(count)][:8])
        await shows(app, pilot, "98%", "412W", "61°C", "Worker_TP0")


@pytest.mark.parametrize("size", SIZES)
async def test_the_one_that_does_nothing_is_marked_in_words(
    script: Script, tmp_path: Path, size: tuple[int, int]
) -> None:
    rows = [gpu(index, 100.0, power_w=110.0) for index in range(8)]
    rows[3] = gpu(3, 0.0, power_w=82.0)
    async with running(with_gpus(script, tmp_path, *rows), tmp_path, size=size) as (app, pilot):
        await shows(app, pilot, "3: idle, others busy" if size[0] == 80 else "▲ 3")
        marked = [line for line in screen_text(app).splitlines() if "▲" in line]
        assert size[0] == 80 or len(marked) == 1


async def test_a_lost_gpu_blanks_nothing_else(script: Script, tmp_path: Path) -> None:
    rows = [gpu(0), GpuRow(index=1, error="GPU is lost"), GpuRow(index=2, busy_percent=7.0)]
    async with running(with_gpus(script, tmp_path, *rows), tmp_path) as (app, pilot):
        await shows(app, pilot, "✖ 1  GPU is lost", "71/80G", "-/80G", "7%")


async def test_throttling_says_why(script: Script, tmp_path: Path) -> None:
    rows = [gpu(0, throttle=["hot", "power cap"]), gpu(1)]
    async with running(with_gpus(script, tmp_path, *rows), tmp_path, size=(200, 50)) as (app, pilot):
        await shows(app, pilot, "▲ 0", "slow: hot")


async def test_a_silent_driver_is_evidence(script: Script, tmp_path: Path) -> None:
    source = with_gpus(script, tmp_path, gpu(0))
    async with running(source, tmp_path, now=100) as (app, pilot):
        await shows(app, pilot, "as of 42 s ago")
        source.play(script.gpus(at=99, status="silent", answered_mono=1058.0, reason="It does not answer."))
        await shows(app, pilot, "the driver has not answered for 42 s", "71/80G")


async def test_gpus_that_the_run_may_not_use_are_counted(script: Script, tmp_path: Path) -> None:
    source = with_gpus(script, tmp_path, *[gpu(index) for index in range(4)])
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "GPUs · 4 ×")
        workers = [script.tree(at=59).rows[2 + rank] for rank in range(2)]
        rows = [replace(row, visible_devices="1,2") for row in workers]
        source.play(script.processes(*rows, at=59))
        await shows(app, pilot, "GPUs · 2 ×", "CUDA_VISIBLE_DEVICES=1,2", "+ 2 not visible to this run")


async def test_ranks_are_guessed_where_the_driver_names_other_pids(script: Script, tmp_path: Path) -> None:
    rows = [gpu(index, processes=[GpuProcess(pid=900 + index)]) for index in range(8)]
    async with running(with_gpus(script, tmp_path, *rows), tmp_path) as (app, pilot):
        await shows(app, pilot, "~Worker_TP0", "~Worker_TP7")


async def test_without_gpus_there_is_no_panel(script: Script, tmp_path: Path) -> None:
    source = serving(script, tmp_path)
    source.play(script.gpus(at=2, status="absent", reason="There is no NVIDIA driver."))
    async with running(source, tmp_path) as (app, pilot):
        await shows(app, pilot, "Worker_TP7")
        await until(pilot, lambda: "GPUs" not in screen_text(app))


async def test_memory_of_others_is_named(script: Script, tmp_path: Path) -> None:
    orphan = GpuProcess(pid=99, used_bytes=61 << 30, process="Worker_TP0", user="alice")
    small = GpuProcess(pid=98, used_bytes=1 << 20, process="monitor", user="bob")
    rows = [gpu(0), gpu(1, processes=[GpuProcess(pid=4032), orphan, small])]
    async with running(with_gpus(script, tmp_path, *rows), tmp_path) as (app, pilot):
        await shows(app, pilot, "GPU 1 has memory in use that is not of this run: 61.0G Worker_TP0 (99, alice).")
        assert "monitor" not in screen_text(app)


async def test_an_xid_is_told_and_kept_in_the_details(script: Script, tmp_path: Path) -> None:
    source = with_gpus(script, tmp_path, gpu(0), cuda="12.8")
    source.play(GpuFaulted(**script.stamp(50), index=0, xid=79, meaning="GPU has fallen off the bus"))
    async with running(source, tmp_path, now=62) as (app, pilot):
        await shows(app, pilot, "GPU 0 reported Xid 79 (GPU has fallen off the bus) 12 s ago.")
        await pilot.press("D")
        await shows(app, pilot, "570.86.15, runs CUDA up to 12.8", "NVIDIA H100 80GB HBM3", "limit 700 W", "Xid 79")


@pytest.mark.parametrize(
    ("busy", "odd"),
    [
        ([100, 100, 0, 100], {2}),
        ([100, 100, 0, 0, 99], {2, 3}),
        ([100, 0], set()),
        ([0, 0, 0, 100], set()),
        ([100, 50, 0, 100], set()),
        ([100, None, 0, 100], {2}),
        ([0], set()),
        ([], set()),
    ],
)
def test_the_odd_ones(busy: list[float | None], odd: set[int]) -> None:
    assert odd_ones([GpuRow(index=index, busy_percent=value) for index, value in enumerate(busy)]) == odd


def test_a_history_holds_what_was_told_last() -> None:
    told = [(10.0, 50.0), (20.0, 0.0)]
    assert [busy_at(told, mono) for mono in (9, 10, 19.9, 20, 99)] == [None, 50, 50, 0, 0]


def test_words_for_several() -> None:
    assert span([None, 97.2, 100.0], " %") == "97-100 %"
    assert span([None], " %") == "- %"
    cards = [GpuCard(index=0, name="NVIDIA L4"), GpuCard(index=1)]
    assert (kinds(cards), kinds(cards[:1])) == ("2 of 2 kinds", "1 × L4")
