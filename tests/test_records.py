"""Lines put together to records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.judges.records import LATE_LINES, MAX_LINES, STALE_LINES, Record, RecordAssembler

INFO = "(APIServer pid=1) INFO 11-21 08:52:59 [model.py:733] Resolved architecture: LlamaForCausalLM"
FATAL = "(EngineCore pid=2) ERROR 11-21 09:01:55 [core.py:1512] "
FRAMES = [
    "Traceback (most recent call last):",
    '  File "/opt/vllm/bin/vllm", line 6, in <module>',
    '    raise RuntimeError("Engine core initialization failed.")',
    "    ^^^^^^^^^^^^^^^^",
]


def records(*lines: str) -> list[Record]:
    assembler = RecordAssembler()
    done = [record for number, line in enumerate(lines, 1) for record in assembler.feed(number, line)]
    return sorted([*done, *assembler.flush()], key=lambda record: record.line_number)


def exceptions(record: Record) -> list[tuple[int, str]]:
    return [(found.number, found.text) for found in record.statements if found.is_exception]


def test_lines_with_one_prefix_are_one_record() -> None:
    head = "(APIServer pid=1) INFO 11-21 08:52:59 [api_utils.py:347] "
    first, second = records(head, head + "  version 0.32.0", head + "  model ./tiny", INFO)
    assert (first.line_number, first.message) == (1, "\n  version 0.32.0\n  model ./tiny")
    assert (second.line_number, second.level, second.is_traceback) == (4, "info", False)


def test_a_traceback_within_a_record() -> None:
    (record,) = records(
        FATAL + "EngineCore encountered a fatal error.", *(FATAL + line for line in FRAMES), FATAL + "ValueError: no"
    )
    assert exceptions(record) == [(6, "ValueError: no")]
    assert [statement.text for statement in record.statements] == [
        "EngineCore encountered a fatal error.",
        "ValueError: no",
    ]
    assert record.exception is not None
    assert record.exception.line == FATAL + "ValueError: no"


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "(APIServer pid=10) ", "[rank0]: ", "2026-05-01 21:27:19.056 | (APIServer pid=1) "),
        *("0: ", "[pod/vllm-0/vllm] ", "vllm-7c9d-x2 vllm [rank0]: ", "2026-05-01T21:27:19+0200 gpu7 vllm[22]: "),
    ],
)
def test_a_bare_traceback(prefix: str) -> None:
    found = records(INFO, *(prefix + line for line in [*FRAMES, "OSError: [Errno 98] Address already in use"]), INFO)
    assert [record.line_number for record in found] == [1, 2, 7]
    assert (found[1].level, exceptions(found[1])) == ("error", [(6, "OSError: [Errno 98] Address already in use")])


@pytest.mark.parametrize("prefix", ["    ", "job 7 says> ", "21.27.{second} node/3: "])
def test_a_traceback_behind_a_prefix_that_nobody_knows(prefix: str) -> None:
    lines = [prefix.format(second=10 + at) + line for at, line in enumerate([*FRAMES, "ValueError: no room"])]
    (record,) = records(*lines)
    assert record.exception is not None
    assert (record.exception.text, record.exception.line) == ("ValueError: no room", lines[-1])


def test_words_before_a_traceback_are_no_prefix() -> None:
    first, second = records("Error " + FRAMES[0], *FRAMES[1:], "ValueError: no", "", "Error of somebody else")
    assert [exceptions(record) for record in (first, second)] == [[(5, "ValueError: no")], []]
    assert second.message == "Error of somebody else"


def test_a_message_of_the_hub_goes_on_after_a_blank_line() -> None:
    link = "The above exception was the direct cause of the following exception:"
    hub = ["hub.NotFound: 404 Client Error.", "", "Repository Not Found for url: https://h/a/b.", "Check it.", "", link]
    (record,) = records(*FRAMES, *hub, "", *FRAMES, "OSError: no such model")
    assert [number for number, _ in exceptions(record)] == [5, 16]


@pytest.mark.parametrize(
    "link",
    [
        "During handling of the above exception, another exception occurred:",
        "The above exception was the direct cause of the following exception:",
    ],
)
def test_a_chain_is_one_record(link: str) -> None:
    (record,) = records(*FRAMES, "KeyError: 'a'", "", link, "", *FRAMES, "my.pkg.Broken: b")
    assert exceptions(record) == [(5, "KeyError: 'a'"), (13, "my.pkg.Broken: b")]
    assert record.exception is not None
    assert record.exception.number == 13


def test_two_tracebacks_without_a_link_are_two_records() -> None:
    first, second = records(*FRAMES, "KeyError: 'a'", *FRAMES, "SystemExit: 1")
    assert (exceptions(first), exceptions(second)) == ([(5, "KeyError: 'a'")], [(10, "SystemExit: 1")])


@pytest.mark.parametrize(
    "name",
    [
        "AssertionError",
        "KeyboardInterrupt: terminated",
        "zmq.error.ZMQError: x",
        "_queue.Empty",
        "torch.OutOfMemoryError: CUDA",
        "MyOwn: x",
    ],
)
def test_names_of_exceptions(name: str) -> None:
    assert exceptions(records(*FRAMES, name)[0]) == [(5, name)]


def test_the_message_of_an_exception_may_span_lines() -> None:
    lines = [
        "pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, too long",
        "    For more",
    ]
    (record, _) = records(*FRAMES, *lines, "", "INFO:     Shutting down")
    assert exceptions(record) == [(5, "\n".join(lines))]


def test_an_exception_without_its_traceback() -> None:
    (record, _) = records("RuntimeError: Failed to infer device type, set", "`VLLM_LOGGING_LEVEL=DEBUG`", INFO)
    assert (record.level, exceptions(record)) == (
        "error",
        [(1, "RuntimeError: Failed to infer device type, set\n`VLLM_LOGGING_LEVEL=DEBUG`")],
    )


def test_noise_and_other_processes_do_not_end_a_traceback() -> None:
    noise = "Triton is installed, but doesn't include CPU backend."
    found = records(FRAMES[0], INFO, FRAMES[1], noise, FRAMES[2], "ValueError: no")
    assert [(record.line_number, exceptions(record)) for record in found if record.is_traceback] == [
        (1, [(6, "ValueError: no")])
    ]
    assert [record.message for record in found if not record.is_traceback] == [INFO.partition("] ")[2], noise]


def test_two_processes_in_turns() -> None:
    lines = [*FRAMES, "ValueError: no"]
    mixed = [prefix + line for line in lines for prefix in ("(Worker_TP0 pid=5) ", "(Worker_TP1 pid=6) ")]
    first, second = records(*mixed)
    assert (exceptions(first), first.head.rank) == ([(9, "ValueError: no")], 0)
    assert (exceptions(second), second.head.rank) == ([(10, "ValueError: no")], 1)


def test_an_exception_group() -> None:
    (record,) = records(
        "  + Exception Group Traceback (most recent call last):",
        '  |   File "a.py", line 1, in <module>',
        "  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)",
        "  +-+---------------- 1 ----------------",
        "    | Traceback (most recent call last):",
        '    |   File "a.py", line 1, in f',
        "    | ValueError: no",
        "    +------------------------------------",
    )
    assert exceptions(record)[0][1].startswith("ExceptionGroup: unhandled errors")
    assert any(text.startswith("ValueError: no") for _, text in exceptions(record))


def test_dumps_of_faulthandler_are_no_errors() -> None:
    found = records(
        "Current thread 0x00007f (most recent call first):", '  File "a.py", line 1 in f', '  File "b.py", line 2 in g'
    )
    assert [record.level for record in found] == [None, None, None]


def test_an_excerpt_may_begin_with_a_line_of_source() -> None:
    (record,) = records('    raise ValueError("no room")', "ValueError: no room")
    assert [statement.number for statement in record.statements] == [2]


def test_exceptions_that_python_ignores_are_no_errors() -> None:
    (record,) = records("Exception ignored in: <function Pool.__del__ at 0x7f>", *FRAMES, "OSError: gone")
    assert (record.level, record.is_traceback, exceptions(record)) == (None, False, [])


def test_a_json_record_with_its_traceback() -> None:
    (record,) = records('{"levelname": "ERROR", "message": "failed", "exc_info": "' + FRAMES[0] + '\\nValueError: no"}')
    assert (record.level, exceptions(record)) == ("error", [(1, "ValueError: no")])


def test_records_are_bounded_and_the_exception_is_still_found() -> None:
    deep = [FATAL + line for line in FRAMES[1:3] * MAX_LINES]
    (record,) = records(FATAL + FRAMES[0], *deep, FATAL + "RecursionError: deep")
    assert len(record.lines) == MAX_LINES
    assert exceptions(record) == [(2 * MAX_LINES + 2, "RecursionError: deep")]
    flood = records(*[FATAL + "again"] * (2 * MAX_LINES + 1))
    assert [len(record.lines) for record in flood] == [MAX_LINES, MAX_LINES, 1]


def test_a_traceback_that_never_ends_is_given_up() -> None:
    assembler = RecordAssembler()
    assembler.feed(1, FRAMES[0])
    assert assembler.awaits(STALE_LINES)
    for number in range(2, STALE_LINES + 4):
        assembler.feed(number, INFO)
    assert not assembler.awaits(STALE_LINES + 4)


def test_a_traceback_with_its_exception_waits_for_a_few_lines_only() -> None:
    assembler = RecordAssembler()
    assembler.feed(1, FRAMES[0])
    assembler.feed(2, "ValueError: no")
    assert assembler.awaits(2 + LATE_LINES)
    assert not assembler.awaits(3 + LATE_LINES)


def test_what_looks_complete_is_settled() -> None:
    assembler = RecordAssembler()
    assembler.feed(1, INFO)
    assembler.feed(2, FRAMES[0])
    assert assembler.settle() == []  # line 2 ended the record before it
    assembler.feed(3, "ValueError: no")
    assert assembler.settle() == []
    assert [record.line_number for record in assembler.settle()] == [2]
    assembler.feed(4, INFO)
    assert [record.line_number for record in assembler.settle()] == [4]


PIECES = st.sampled_from(
    [INFO, FATAL + "x", *FRAMES, "ValueError: no", "", "noise", "INFO:     up", "(Worker_TP0 pid=5) x"]
)


@given(st.lists(PIECES, max_size=60))
def test_no_line_is_lost_or_told_twice(lines: list[str]) -> None:
    told = [text for record in records(*lines) for text in record.lines]
    spoken = [line for line in lines if line]
    assert len([text for text in told if text]) == len(spoken)


def test_exceptions_below_each_other_are_several() -> None:
    (record,) = records("KeyError: 'x'", "its second line", "RuntimeError: Engine core initialization failed.")
    assert exceptions(record) == [
        (1, "KeyError: 'x'\nits second line"),
        (3, "RuntimeError: Engine core initialization failed."),
    ]
