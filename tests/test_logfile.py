"""The keeper's reader against real files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_probes.events import Event, LogRecorded, LogSampled, Stamp
from vllm_probes.judges.rules import load_rules
from vllm_probes.sensors.logfile import KNOWN_PER_SAMPLE, REPEAT_S, UNKNOWN_PER_SAMPLE, LogSensor
from vllm_probes.sensors.probe import MARK

RULES = load_rules()
READY = "(EngineCore pid=2) INFO 11-21 08:53:42 [core.py:402] "
READY += "init engine (profile, create kv cache, warmup model) took 24.31 s"
CHATTER = "(APIServer pid=1) INFO 11-21 08:53:43 [launcher.py:195] Route: /load, Methods: GET"
ERROR = "(Worker_TP1 pid=3) ERROR 11-21 08:53:43 [worker.py:9] it broke with key sk-secret"
TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "a.py", line 1, in f',
    "    sock.bind(addr)",
    "OSError: [Errno 98] Address already in use",
]


def stamp(mono: float = 0.0) -> Stamp:
    return Stamp(time=mono, mono=mono, node="here", attempt=1)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "attempt-1.log"


@pytest.fixture
def sensor(log: Path) -> Iterator[LogSensor]:
    sensor = LogSensor(log, RULES, lambda text: text.replace("sk-secret", "***"))
    yield sensor
    sensor.close()


def write(path: Path, *lines: str, end: str = "\n") -> None:
    with path.open("a") as file:
        file.write("\n".join(lines) + end)


def recorded(events: list[Event]) -> list[LogRecorded]:
    return [event for event in events if isinstance(event, LogRecorded)]


def rules(events: list[Event]) -> list[str | None]:
    return [event.rule for event in recorded(events)]


def test_no_log_yet(sensor: LogSensor) -> None:
    assert sensor.sample(stamp()) == []


def test_known_lines_and_alarms_are_told_and_the_size(sensor: LogSensor, log: Path) -> None:
    write(log, CHATTER, READY, CHATTER, ERROR)
    known, alarm, sampled = sensor.sample(stamp())
    assert isinstance(known, LogRecorded)
    assert (known.rule, known.line_number, known.fields, known.process) == (
        "engine_ready",
        2,
        {"seconds": "24.31"},
        "EngineCore",
    )
    assert isinstance(alarm, LogRecorded)
    assert (alarm.rule, alarm.level, alarm.rank, alarm.message) == (None, "error", 1, "it broke with key ***")
    assert isinstance(sampled, LogSampled)
    assert (sampled.line_count, sampled.error_count, sampled.size_bytes) == (4, 1, log.stat().st_size)
    assert sensor.sample(stamp()) == []


def test_answers_to_our_own_questions_are_heartbeats(sensor: LogSensor, log: Path) -> None:
    access = 'INFO:     127.0.0.1:53422 - "{} HTTP/1.1" 200 OK'
    ours = ["GET /metrics", "GET /health", f"GET /v1/models{MARK}", f"POST /v1/completions{MARK}"]
    write(log, *(access.format(request) for request in (*ours, "POST /v1/completions", "GET /v1/models")))
    sampled = sensor.sample(stamp())[-1]
    assert isinstance(sampled, LogSampled)
    assert (sampled.line_count, sampled.heartbeat_count) == (6, 4)


def test_names_are_learned_and_the_latest_stays(sensor: LogSensor, log: Path) -> None:
    write(
        log,
        "(VllmWorker-0 pid=3) INFO 11-21 08:53:43 [a.py:1] x",
        "(Worker_TP0 pid=3) INFO 11-21 08:53:43 [a.py:1] x",
        CHATTER,
    )
    sensor.sample(stamp())
    assert sensor.process_names == {1: "APIServer", 3: "Worker_TP0"}


def test_a_traceback_is_told_when_it_is_complete(sensor: LogSensor, log: Path) -> None:
    for line in TRACEBACK:
        write(log, line)
        assert recorded(sensor.sample(stamp())) == []
    (found,) = recorded(sensor.sample(stamp()))
    assert (found.rule, found.level, found.line_number, found.exception_line_number) == ("port-in-use", "error", 1, 4)
    assert found.line == TRACEBACK[-1]


def test_a_traceback_is_told_though_the_log_never_rests(sensor: LogSensor, log: Path) -> None:
    write(log, *TRACEBACK)
    assert rules(sensor.sample(stamp())) == []
    write(log, CHATTER)
    assert rules(sensor.sample(stamp())) == ["port-in-use"]


def test_a_bar_without_a_newline_is_progress(sensor: LogSensor, log: Path) -> None:
    steps = [
        f"\rCapturing CUDA graphs (FULL):  12%|█▎        | {done}/35 [00:01<00:08,  3.5it/s]" for done in (4, 5, 5, 6)
    ]
    done = []
    for step in steps:
        write(log, step, end="")
        done += [event.fields["done"] for event in recorded(sensor.sample(stamp()))]
    assert done == ["4", "5", "6"]


def test_of_a_bar_only_the_last_step_of_a_sample_is_told(sensor: LogSensor, log: Path) -> None:
    write(
        log,
        *(
            f"\rLoading safetensors checkpoint shards:  56% Completed | {done}/9 [00:13<00:11,  2.87s/it]"
            for done in range(9)
        ),
    )
    assert [event.fields["done"] for event in recorded(sensor.sample(stamp()))] == ["8"]


def test_repeats_are_counted(sensor: LogSensor, log: Path) -> None:
    def messages(mono: float) -> list[str]:
        write(log, "ERROR:    it broke", "ERROR:    it broke")
        return [event.message for event in recorded(sensor.sample(stamp(mono)))]

    assert [messages(0), messages(1), messages(REPEAT_S)] == [["it broke"], [], ["it broke (×4)"]]


@pytest.mark.parametrize(
    ("line", "limit"),
    [("ERROR:    failure {}", UNKNOWN_PER_SAMPLE), ("INFO:     Started server process [{}]", KNOWN_PER_SAMPLE)],
)
def test_a_flood_is_bounded(sensor: LogSensor, log: Path, line: str, limit: int) -> None:
    write(log, *(line.format(number) for number in range(limit + 1234)))
    found = recorded(sensor.sample(stamp()))
    assert len(found) == limit + 1
    assert "1,234 more records" in found[-1].message


def test_a_sample_reads_no_more_than_its_budget(sensor: LogSensor, log: Path) -> None:
    write(log, *[CHATTER] * 2000, READY)
    sensor.sample(stamp(), budget_bytes=10_000)
    assert sensor.behind
    found: list[str | None] = []
    while sensor.behind:
        found += rules(sensor.sample(stamp(), budget_bytes=10_000))
    assert found == ["engine_ready"]


def test_a_truncated_log_is_read_anew(sensor: LogSensor, log: Path) -> None:
    write(log, CHATTER, READY)
    sensor.sample(stamp())
    log.write_text("")
    sensor.sample(stamp())
    write(log, READY)
    assert [event.line_number for event in recorded(sensor.sample(stamp(1)))] == [1]


def test_long_messages_are_cut(sensor: LogSensor, log: Path) -> None:
    write(log, "ERROR:    " + "x" * 100_000)
    assert len(recorded(sensor.sample(stamp()))[0].message) == 500


def test_however_the_lines_arrive_the_phases_are_the_same(log: Path) -> None:
    text = "\n".join([CHATTER, READY, *TRACEBACK, CHATTER, "INFO:     Application startup complete.", ""])
    for step in (1, 7, 100, len(text)):
        log.write_text("")
        sensor = LogSensor(log, RULES, str)
        found: list[str | None] = []
        for at in range(0, len(text), step):
            write(log, text[at : at + step], end="")
            found += rules(sensor.sample(stamp()))
        found += rules(sensor.sample(stamp()))
        assert sorted(map(str, found)) == ["engine_ready", "port-in-use", "serving"]
        sensor.close()
