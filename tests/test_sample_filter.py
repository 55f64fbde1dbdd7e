"""Which samples are worth a line of the recording."""

from vllm_probes.events import EndpointSampled, GpusSampled, HostSampled, LogSampled, ProcessesSampled, Stamp
from vllm_probes.keeper.sample_filter import SampleFilter
from vllm_probes.rows import EngineSample, GpuProcess, GpuRow, ProcessRow


def stamp(mono: float) -> Stamp:
    return Stamp(time=1000.0 + mono, mono=mono, node="n", attempt=1)


def row(pid: int, **fields: object) -> ProcessRow:
    return ProcessRow(pid=pid, parent_pid=1, started=0.0, process=f"p{pid}", **fields)  # type: ignore[arg-type]


def test_drifting_numbers_are_written_now_and_then() -> None:
    sample_filter = SampleFilter()
    accepted = [
        sample_filter.accept(ProcessesSampled(**stamp(n), rows=[row(7, cpu_percent=50.0 + n % 3, rss_bytes=n)]))
        for n in range(300)
    ]
    assert 4 <= sum(event is not None for event in accepted) <= 6


def test_a_difference_in_kind_is_written_at_once() -> None:
    sample_filter = SampleFilter()
    sample_filter.accept(ProcessesSampled(**stamp(0), rows=[row(7), row(8)]))
    changes = [row(7, state="T"), row(7, state="T", rank=1), row(9)]
    for n, changed in enumerate(changes, 1):
        event = sample_filter.accept(ProcessesSampled(**stamp(n), rows=[changed, row(8, rss_bytes=n)]))
        assert isinstance(event, ProcessesSampled)
        assert event.rows == [changed]


def test_running_and_sleeping_in_turns_is_no_difference() -> None:
    sample_filter = SampleFilter()
    states = [sample_filter.accept(ProcessesSampled(**stamp(n), rows=[row(7, state="RS"[n % 2])])) for n in range(10)]
    assert [event is not None for event in states] == [True] + [False] * 9


def test_coming_to_rest_is_written_soon() -> None:
    sample_filter = SampleFilter()
    busy = [90.0] * 20 + [0.0] * 20
    accepted = [
        n
        for n, cpu in enumerate(busy)
        if sample_filter.accept(ProcessesSampled(**stamp(n), rows=[row(7, cpu_percent=cpu)]))
    ]
    assert accepted == [0, 20]


def test_pids_that_are_gone_are_always_written() -> None:
    sample_filter = SampleFilter()
    sample_filter.accept(ProcessesSampled(**stamp(0), rows=[row(7)]))
    event = sample_filter.accept(ProcessesSampled(**stamp(1), rows=[], gone=[7]))
    assert isinstance(event, ProcessesSampled)
    assert event.gone == [7]


def test_the_server_is_written_when_its_kind_changes_and_every_ten_seconds() -> None:
    sample_filter = SampleFilter()

    def sample(mono: float, *, active: bool) -> EndpointSampled:
        engines = [EngineSample(generation_tokens=mono)]
        return EndpointSampled(**stamp(mono), url="u", health="ok", active=active, engines=engines)

    accepted = [mono for mono in range(40) if sample_filter.accept(sample(mono, active=mono >= 15))]
    assert accepted == [0, 10, 15, 25, 35]


def test_the_log_is_written_every_five_seconds() -> None:
    sample_filter = SampleFilter()
    events = [LogSampled(**stamp(mono / 10), size_bytes=mono, line_count=mono) for mono in range(200)]
    assert [event.mono for event in events if sample_filter.accept(event)] == [0.0, 5.0, 10.0, 15.0]


def written_gpus(samples: list[list[GpuRow]]) -> list[tuple[int, list[int]]]:
    """(second, indices) of what is written of samples that come one a second."""
    sample_filter = SampleFilter()
    accepted = [
        (second, sample_filter.accept(GpusSampled(**stamp(second), rows=rows))) for second, rows in enumerate(samples)
    ]
    return [(second, [row.index for row in event.rows]) for second, event in accepted if isinstance(event, GpusSampled)]


def gpu(index: int, busy: float, power_w: float = 300.0, **more: object) -> GpuRow:
    return GpuRow(index=index, busy_percent=busy, power_w=power_w, **more)  # type: ignore[arg-type]


def test_a_gpu_that_flickers_is_written_once_a_minute() -> None:
    samples = [[gpu(0, 0 if second % 2 else 100)] for second in range(121)]
    assert [second for second, _ in written_gpus(samples)] == [0, 61]


def test_a_gpu_that_comes_to_rest_is_written_though_it_says_nothing_more() -> None:
    samples: list[list[GpuRow]] = [[gpu(0, 100), gpu(1, 100)] for _ in range(20)]
    samples += [[gpu(1, 0)], *([] for _ in range(10))]
    assert written_gpus(samples) == [(0, [0, 1]), (25, [1])]


def test_power_that_falls_for_good_is_written() -> None:
    samples = [[gpu(0, 100, 600)] for _ in range(20)] + [[gpu(0, 100, 110)] for _ in range(10)]
    assert [second for second, _ in written_gpus(samples)] == [0, 25]


def test_a_lost_gpu_and_a_new_process_are_written_at_once() -> None:
    lost = GpuRow(index=0, error="GPU is lost")
    young = gpu(1, 50, processes=[GpuProcess(pid=7)])
    assert written_gpus([[gpu(0, 50), gpu(1, 50)], [lost], [young]]) == [(0, [0, 1]), (1, [0]), (2, [1])]


def test_a_driver_that_falls_silent_is_written_once() -> None:
    sample_filter = SampleFilter()
    events = [GpusSampled(**stamp(0)), *(GpusSampled(**stamp(second), status="silent") for second in range(1, 9))]
    assert [event.mono for event in events if sample_filter.accept(event)] == [0, 1]


def test_the_host_is_written_every_minute_and_a_download_every_ten_seconds() -> None:
    sample_filter = SampleFilter()
    events = [
        HostSampled(**stamp(second), download_bytes=second if 100 <= second < 130 else None)
        for second in range(0, 200, 5)
    ]
    assert [event.mono for event in events if sample_filter.accept(event)] == [0, 60, 100, 110, 120, 130, 190]


def test_a_kill_by_the_kernel_is_written_at_once() -> None:
    sample_filter = SampleFilter()
    events = [HostSampled(**stamp(second), oom_kill_count=second // 10) for second in range(0, 20, 5)]
    assert [event.mono for event in events if sample_filter.accept(event)] == [0, 10]


def written_cpu(percents: list[float], role: str = "api_server") -> list[tuple[int, float]]:
    """(second, percent) of what is written of a process that the sensor tells of every second, among others."""
    sample_filter = SampleFilter()
    events = [
        sample_filter.accept(
            ProcessesSampled(**stamp(n), rows=[row(7, cpu_percent=cpu, role=role), row(8, rss_bytes=n)])
        )
        for n, cpu in enumerate(percents)
    ]
    return [
        (round(event.mono), one.cpu_percent)
        for event in events
        if isinstance(event, ProcessesSampled)
        for one in event.rows
        if one.pid == 7
    ]


def test_how_busy_a_part_of_vllm_is_over_ten_seconds_is_written() -> None:
    assert written_cpu([30.0] * 10 + [98.0] * 30) == [(0, 30.0), (20, 98.0)]


def test_a_busy_second_is_no_news() -> None:
    assert written_cpu([50.0] * 15 + [100.0] + [50.0] * 25) == [(0, 50.0)]


def test_how_busy_anything_else_is_only_drifts() -> None:
    assert written_cpu([30.0] * 10 + [98.0] * 30, role="compiler") == [(0, 30.0)]


def test_what_came_too_soon_is_written_later_though_nothing_more_is_told_of_it() -> None:
    sample_filter = SampleFilter()
    sample_filter.accept(ProcessesSampled(**stamp(0), rows=[row(7, cpu_percent=0.0, role="worker")]))
    sample_filter.accept(ProcessesSampled(**stamp(1), rows=[row(7, cpu_percent=100.0, role="worker")]))
    event = sample_filter.accept(ProcessesSampled(**stamp(12), rows=[row(8)]))
    assert isinstance(event, ProcessesSampled)
    assert [(one.pid, one.cpu_percent) for one in event.rows] == [(7, 100.0), (8, 0.0)]


def test_pressure_on_memory_is_written_at_once() -> None:
    sample_filter = SampleFilter()
    samples = [HostSampled(**stamp(n), memory_pressure_percent=0.0 if n < 5 else 40.0) for n in range(10)]
    assert [event.mono for event in samples if sample_filter.accept(event)] == [0, 5]
