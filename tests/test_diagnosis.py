"""What a log as a whole is taken to say."""

import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_probes.judges.diagnosis import LINE_LIMIT_BYTES, TAIL_LINES, diagnose
from vllm_probes.judges.rules import RuleSet, load_rules
from vllm_probes.judges.survival import NEAR_LINES
from vllm_probes.judges.triage import NO_CAUSE, NOT_IN_LOG
from vllm_probes.rows import Finding

RULES = load_rules()
BANNER = "(APIServer pid=1) INFO 11-21 08:52:59 [api_utils.py:347]  version 0.32.0"
CORE = "(EngineCore pid=2) ERROR 11-21 09:01:55 [core.py:1512] "
OPAQUE = (
    "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)
DEAD = "(APIServer pid=1) ERROR 11-21 09:01:55 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore"
NO_ROOM = CORE + "ValueError: No available memory for the cache blocks."
STRANGE = CORE.replace("1512", "9") + "RuntimeError: something that nobody has seen"
WAIT = "(EngineCore pid=2) INFO 11-21 09:0{}:46 [shm_broadcast.py:751] "
WAIT += "No available shared memory broadcast block found in 60 seconds."
SERVED = 'INFO:     127.0.0.1:46084 - "POST /v1/completions HTTP/1.1" 200 OK'
POLLED = 'INFO:     127.0.0.1:46084 - "GET /health HTTP/1.1" 200 OK'
SHUTDOWN = "(APIServer pid=1) INFO 11-21 08:56:13 [launcher.py:254] [shutdown] API server: shutdown triggered"


def findings(*lines: str, rules: RuleSet = RULES) -> list[Finding]:
    return diagnose(rules, (line.encode() for line in lines), "a.log")


def told(*lines: str) -> list[tuple[str | None, str, str, int]]:
    return [(one.rule, one.role, one.severity, one.line_number) for one in findings(*lines)]


def test_the_cause_comes_before_what_followed_from_it() -> None:
    assert told(BANNER, DEAD, OPAQUE, NO_ROOM) == [
        ("kv-cache-none", "cause", "fatal", 4),
        ("engine-dead", "consequence", "fatal", 2),
        ("engine-init-failed", "consequence", "fatal", 3),
    ]


def test_an_error_that_no_rule_knows_is_the_cause_where_no_rule_knows_one() -> None:
    assert told(BANNER, STRANGE, OPAQUE)[0] == (None, "cause", "error", 2)
    assert told(BANNER, STRANGE, BANNER, NO_ROOM) == [
        ("kv-cache-none", "cause", "fatal", 4),
        (None, "consequence", "error", 2),
    ]


def test_a_symptom_is_the_cause_only_where_nothing_better_came() -> None:
    lost = "(Worker_TP1 pid=4) RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer"
    assert [one[:2] for one in told(lost, OPAQUE)] == [("gloo-lost", "cause"), ("engine-init-failed", "consequence")]
    assert [one[:2] for one in told(lost, NO_ROOM)] == [("kv-cache-none", "cause"), ("gloo-lost", "consequence")]


def test_words_that_no_rule_knows_are_the_cause_only_where_nothing_better_came() -> None:
    words = "ERROR:plugin:something odd was seen"
    killed = CORE + "Worker proc VllmWorker-0 died unexpectedly (exit code: -11), shutting down executor."
    assert told(words, killed)[0] == ("worker-segfault", "cause", "fatal", 2)
    assert told(words, DEAD)[0] == (None, "cause", "error", 1)


def test_waiting_is_the_cause_only_where_nothing_better_came() -> None:
    late = CORE + "TimeoutError: RPC call to sample_tokens timed out."
    assert [one[0] for one in told(WAIT.format(1), WAIT.format(2), late, DEAD)] == [
        "rpc-timeout",
        "shm-wait",
        "engine-dead",
    ]
    assert [one[0] for one in told(WAIT.format(1), WAIT.format(2), DEAD)] == ["shm-wait", "engine-dead"]
    retry = "(APIServer pid=1) WARNING 11-21 08:53:06 [a.py:63] timed out, retrying 1 of 2"
    assert [one[::2] for one in told(retry, WAIT.format(1))] == [("shm-wait", "error"), ("hub-retry", "warning")]


def test_of_a_chain_the_exception_that_got_out_is_told() -> None:
    link = ["", "During handling of the above exception, another exception occurred:", ""]
    first = [
        "Traceback (most recent call last):",
        '  File "a.py", line 1, in f',
        "ValueError: 404 Client Error for url: x",
    ]
    last = [*first[:2], "OSError: a/b is not a local folder and is not a valid model identifier"]
    assert told(*first, *link, *last) == [("hub-repository", "cause", "fatal", 9)]
    for text in ("RuntimeError", "OSError: 404 Client Error for url: x"):
        assert told(*first, *link, *first[:2], text)[0] == ("hub-repository", "cause", "fatal", 3)


def test_the_bare_name_of_an_exception_says_less_than_the_one_that_it_led_to() -> None:
    """As vLLM 0.32 raises where its ranks do not answer (multiproc_executor.py, get_response)."""
    link = ["", "The above exception was the direct cause of the following exception:", ""]
    frames = ["Traceback (most recent call last):", '  File "v1/engine/core.py", line 1, in run_busy_loop', "    x"]
    late = "TimeoutError: RPC call to execute_model timed out."
    record = [CORE + line for line in (*frames, "TimeoutError", *link, *frames, late)]
    assert told(*record) == [("rpc-timeout", "cause", "fatal", len(record))]
    alone = [CORE + line for line in (*frames, "TimeoutError")]
    assert told(*alone) == [("engine-exception", "cause", "fatal", 4)]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (
            "Exception in worker VllmWorkerProcess while processing method load_model: "
            "Cannot re-initialize CUDA in forked subprocess. Use spawn, Traceback (most recent call last):",
            "spawn-guard",
        ),
        ("RuntimeError: Worker failed with error 'LoRA rank 9 is greater than max_lora_rank 8.', please check", "lora"),
        ("  Value error, Expecting value: line 1 column 1 (char 0) [type=value_error]", "tokenizer"),
        ("RuntimeError: Worker failed with error 'something new', please check", "worker-failed-with"),
        ("  Value error, something new [type=value_error]", "config-value"),
    ],
)
def test_a_message_that_passes_another_one_on_is_read_to_its_end(line: str, rule: str) -> None:
    assert told(CORE + line)[0][0] == rule


def test_what_answers_a_request_speaks_of_that_request_alone() -> None:
    head = "ERROR 11-21 09:01:55 serving_chat.py:9] "
    frames = ["Traceback (most recent call last):", '  File "/opt/v/json/decoder.py", line 9, in raw_decode', "    x"]
    record = [head + line for line in (*frames, "json.decoder.JSONDecodeError: Expecting value: line 1 column 1")]
    assert told(*record) == []
    assert told(*record[:-1], head + "vllm.v1.engine.exceptions.EngineDeadError: x")[0][0] == "engine-dead"


def test_an_unknown_exception_in_an_engine_that_died_of_it_has_its_class() -> None:
    unknown = "(EngineCore pid=2) ERROR 11-21 09:01:55 [a.py:1] AssertionError: never seen"
    assert findings(unknown)[0].class_ == "other"
    assert findings(unknown, DEAD)[0].class_ == "engine_core_died"
    assert findings(unknown, OPAQUE)[0].class_ == "other"


def test_of_exceptions_below_each_other_the_unknown_one_comes_before_its_consequence() -> None:
    opaque = OPAQUE.partition(") ")[2]
    assert [one[:2] for one in told("KeyError: 'x'", opaque)] == [
        (None, "cause"),
        ("engine-init-failed", "consequence"),
    ]


def test_the_first_line_of_a_traceback_says_nothing_by_itself() -> None:
    torn = "(APIServer pid=1) ERROR 11-21 09:01:55 [serving_chat.py:9[] Traceback (most recent call last):"
    assert told(torn, DEAD)[0][0] == "engine-dead"


def test_a_worker_that_aborts_itself_follows_from_what_it_says() -> None:
    died = "ERROR 06-10 21:32:17 multiproc_worker_utils.py:120] Worker VllmWorkerProcess pid 403 died, exit code: -6"
    late = "[rank0]:[E ProcessGroupNCCL.cpp:563] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(x)"
    assert [one[0] for one in told(died, late)] == ["nccl-watchdog", "worker-ended-itself"]
    assert told(died)[0][0] == "worker-ended-itself"


def test_what_a_log_does_not_hold_is_said() -> None:
    assert findings(OPAQUE)[0].why.startswith(NOT_IN_LOG)
    assert findings(BANNER, OPAQUE)[0].why.startswith(NO_CAUSE)


def test_what_is_said_twice_is_told_where_it_was_said_first() -> None:
    bare = ["Traceback (most recent call last):", "ValueError: No available memory for the cache blocks."]
    assert [one[3] for one in told(CORE + "failed", NO_ROOM, *bare)] == [2]


def test_exit_codes_are_decoded() -> None:
    (finding,) = findings(OPAQUE.replace("{}", "{'EngineCore_DP0': -9, 'EngineCore_DP1': 1}"))
    assert "-9 is SIGKILL" in finding.why
    (finding,) = findings("Worker proc VllmWorker-1 died unexpectedly (exit code: -15)")
    assert finding.why.endswith("-15 is SIGTERM: it was told to end.")


def test_what_several_ranks_say_is_told_once_with_the_ranks() -> None:
    line = "(Worker_TP{rank} pid={rank}) ERROR 11-21 09:01:55 [w.py:1] torch.OutOfMemoryError: CUDA out of memory."
    (finding,) = findings(*(line.format(rank=rank) for rank in range(8)))
    assert (finding.line_number, finding.class_) == (1, "oom_weights")
    assert "Worker_TP0-7 said so" in finding.why


def test_advice_has_the_numbers_of_this_run() -> None:
    text = "max seq len (4096) is larger than the maximum number of tokens that can be stored in KV cache (1024)."
    fix = findings(CORE + "ValueError: The model's " + text)[0].fix
    assert fix.startswith("A request may have 4096 tokens, 1024 fit: try `--max-model-len 1024`. Lower")
    met = "INFO 11-21 08:58:32 [p.py:1] world_size=2 rank=1 local_rank=1 distributed_init_method=tcp://h:1 backend=nccl"
    (finding,) = findings(met, "RuntimeError: Gloo connectFullMesh failed with no error")
    assert finding.fix.startswith("The ranks were told to meet at tcp://h:1")


@pytest.mark.parametrize(("ranks", "told_of"), [(8, ["every-rank-reads-all"]), (1, [])])
def test_ranks_that_each_read_the_whole_checkpoint(ranks: int, told_of: list[str]) -> None:
    head = "(Worker_TP0 pid=3) INFO 11-21 08:58:32 [a.py:1] "
    lines = [
        head + f"world_size={ranks} rank=0 local_rank=0 distributed_init_method=tcp://h:1 backend=nccl",
        head + "Filesystem type for checkpoints: NFS4. Checkpoint size: 140.00 GiB. Available RAM: 900.00 GiB.",
        head + "Loading weights took 612.50 seconds",
    ]
    found = findings(*lines)
    assert [one.rule for one in found] == told_of
    assert all("8 ranks each read 140.00 GiB from NFS4" in one.fix and one.severity == "info" for one in found)


@pytest.mark.parametrize(
    ("lines", "severity"),
    [
        ([WAIT.format(1), WAIT.format(2)], "error"),
        ([WAIT.format(1), POLLED, ""], "error"),
        ([WAIT.format(1), "^C(APIServer pid=1) Traceback (most recent call last):", "KeyboardInterrupt"], "error"),
        ([WAIT.format(1), SERVED], "warning"),
        ([WAIT.format(1), *[POLLED] * (TAIL_LINES + 1)], "warning"),
        ([BANNER, "INFO 11-21 08:58:32 [monitor.py:1] Starting torch.compile", WAIT.format(1)], "warning"),
        ([BANNER, "INFO 11-21 08:58:32 [monitor.py:1] Starting torch.compile", *map(WAIT.format, "1234")], "error"),
    ],
)
def test_waiting_is_an_error_where_a_log_ends_with_it(lines: list[str], severity: str) -> None:
    assert [(one.rule, one.severity) for one in findings(*lines)] == [("shm-wait", severity)]


def test_errors_that_a_run_survives_are_warnings() -> None:
    assert [one[2] for one in told(STRANGE, SERVED)] == ["warning"]
    assert [one[2] for one in told(STRANGE, SERVED.replace("200 OK", "400 Bad Request"))] == ["warning"]
    assert [one[2] for one in told(STRANGE, SERVED.replace("200 OK", "500 Internal Server Error"))] == ["error"]
    assert [one[2] for one in told(SERVED, STRANGE)] == ["error"]
    assert [one[2] for one in told(STRANGE, POLLED)] == ["error"]
    coloured = SERVED.replace('"POST', '"\x1b[1mPOST').replace('1.1" 200', '1.1\x1b[0m" \x1b[32m200')
    assert [one[2] for one in told(STRANGE, coloured)] == ["warning"]


def test_after_a_death_nothing_is_survived() -> None:
    assert [one[2] for one in told(STRANGE, SERVED, DEAD)] == ["error", "fatal"]
    assert [one[2] for one in told(STRANGE, *[SERVED] * NEAR_LINES, DEAD)] == ["fatal", "warning"]
    assert [one[2] for one in told(DEAD, STRANGE, SERVED)] == ["error", "fatal"]
    assert [one[2] for one in told(DEAD, BANNER, STRANGE, SERVED)] == ["fatal", "warning"]


HUB = "(APIServer pid=1) ERROR 11-21 08:53:06 [repo_utils.py:65] Error retrieving safetensors: "
HUB += "Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/models/none'."
STEP = "({}) INFO 11-21 08:53:07 [model.py:9] Using max model len 4096"


@pytest.mark.parametrize(
    ("lines", "severity"),
    [
        ([STEP.format("APIServer pid=1")], "warning"),
        ([SERVED], "warning"),
        ([], "fatal"),
        ([STEP.format("EngineCore pid=2")], "fatal"),
        ([DEAD, STEP.format("APIServer pid=1")], "fatal"),
        ([BANNER, STEP.format("APIServer pid=1")], "fatal"),
    ],
)
def test_known_errors_that_a_start_survives_are_warnings(lines: list[str], severity: str) -> None:
    assert [one.severity for one in findings(HUB, *lines) if one.rule == "hub-repository"] == [severity]


ASGI = [
    "(APIServer pid=1) ERROR:    Exception in ASGI application",
    "(APIServer pid=1) Traceback (most recent call last):",
]
FRAME = '(APIServer pid=1)   File "/opt/v/middleware.py", line 9, in dispatch'


def test_the_traceback_of_a_request_is_no_failure_but_the_death_that_it_tells_of() -> None:
    assert told(*ASGI, FRAME, "(APIServer pid=1) RuntimeError: nobody asked") == []
    assert told(*ASGI, FRAME, "(APIServer pid=1) EngineDeadError")[0][:2] == ("engine-dead", "consequence")
    strange = ["Traceback (most recent call last):", FRAME.partition(") ")[2], "RuntimeError: nobody asked"]
    assert told(*ASGI, FRAME, "(APIServer pid=1) ValueError: x", *strange) == [(None, "cause", "error", 7)]


def test_requests_that_were_refused_are_no_failures() -> None:
    api = "(APIServer pid=1) "
    frame = api + '  File "/opt/v/vllm/entrypoints/openai/chat_completion/serving.py", line 9, in create'
    assert told(api + "Traceback (most recent call last):", frame, api + "    raise", api + "ValueError: no role") == []


def test_an_orderly_end_is_no_failure() -> None:
    assert told(BANNER, SHUTDOWN, DEAD) == []
    assert [one[0] for one in told(BANNER, NO_ROOM, SHUTDOWN, DEAD)] == ["kv-cache-none", "engine-dead"]
    assert [one[2] for one in told(BANNER, STRANGE, SERVED, SHUTDOWN, DEAD)] == ["warning"]
    assert [one[0] for one in told(BANNER, SHUTDOWN, DEAD, BANNER, DEAD)] == ["engine-dead"]


def test_an_assertion_without_words_is_told_by_its_source() -> None:
    lines = [
        '  File "/opt/v/a.py", line 1, in f',
        "    assert left == right",
        "           ^^^^^^^^^^^^^",
        "AssertionError",
    ]
    (finding,) = findings(*lines)
    assert (finding.line_number, finding.line) == (2, "    assert left == right")


def test_a_line_without_end_costs_no_more_than_a_long_one() -> None:
    huge = "x" * (10 << 20) + " Address already in use"
    assert told(huge, "OSError: [Errno 98] Address already in use")[0][0] == "port-in-use"
    assert told("Address already in use " + "x" * (2 * LINE_LIMIT_BYTES))[0][0] == "port-in-use"


FRAGMENTS = [fragment for rule in RULES.by_id.values() for sample in rule.samples for fragment in sample.split()]


def pathological(fragment: str) -> Iterable[str]:
    """Long lines that begin again and again like something known."""
    for unit in (fragment, fragment + " ", fragment + "(", fragment[:4], fragment + " '"):
        yield (unit * (LINE_LIMIT_BYTES // len(unit) + 1))[:LINE_LIMIT_BYTES]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=3).map(" ".join))
def test_no_line_makes_a_pattern_blow_up(fragment: str) -> None:
    """A pattern that backtracks without bound takes minutes to hours on such a line; a sound one some milliseconds.

    CPU time, and a limit that is a hundred times what it takes: this machine may be busy.
    """
    before = time.process_time()
    for line in pathological(fragment):
        RULES.match(line)
    assert time.process_time() - before < 20


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([BANNER, NO_ROOM, STRANGE, OPAQUE]).map(str.encode), max_size=30)
)
def test_any_bytes_can_be_read(raws: list[bytes]) -> None:
    for finding in diagnose(RULES, raws, "a.log"):
        assert 1 <= finding.line_number <= len(raws)
        assert finding.why
        assert finding.fix
