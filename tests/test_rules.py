"""Rule files, and every rule's own samples."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vllm_probes.judges import rules as rule_module
from vllm_probes.judges.literals import alternatives, is_bounded
from vllm_probes.judges.matching import RecordStream
from vllm_probes.judges.rules import Context, Rule, RuleError, RuleSet, load_rules, read_rules
from vllm_probes.launch.levers import load_levers
from vllm_probes.log.line import clean, parse_line

RULES = load_rules()
SAMPLES = [(rule.id, sample) for rule in RULES.by_id.values() for sample in rule.samples]
NOT_SAMPLES = [(rule.id, sample) for rule in RULES.by_id.values() for sample in rule.not_samples]


def matched(sample: str, rules: RuleSet = RULES) -> set[str]:
    """The rules that know a line, or something of several lines; what harmless levels say counts, too."""
    if "\n" not in sample:
        found = rules.match(parse_line(clean(sample.encode())).message)
        return {found.rule.id} if found else set()
    stream = RecordStream(rules)
    lines = enumerate(sample.split("\n"), 1)
    matches = [match for number, line in lines for match in stream.feed(number, clean(line.encode()))]
    return {match.rule.id for match in [*matches, *stream.flush()] if match.rule}


@pytest.mark.parametrize(("rule", "sample"), SAMPLES)
def test_samples(rule: str, sample: str) -> None:
    assert rule in matched(sample)


@pytest.mark.parametrize(("rule", "sample"), NOT_SAMPLES)
def test_not_samples(rule: str, sample: str) -> None:
    assert rule not in matched(sample)


def test_the_rules_of_the_program_are_sound() -> None:
    rules, faults = read_rules(Path(rule_module.__file__).with_name("rules"))
    assert faults == []
    assert rules == list(RULES.by_id.values())


def test_every_rule_tells_what_it_is_not() -> None:
    assert [rule.id for rule in RULES.by_id.values() if not rule.not_samples] == []


def test_every_alternative_of_a_rule_has_a_sample() -> None:
    assert [
        f"{rule.id}: {one.source}"
        for rule in RULES.by_id.values()
        for one in alternatives(rule.match)
        if not any(matched(sample, alone(rule, one.source)) for sample in rule.samples)
    ] == []


def alone(rule: Rule, source: str) -> RuleSet:
    """One alternative of a rule, without what has to come before it."""
    return RuleSet([replace(rule, match=source, after=[])])


def test_every_cause_has_an_address_of_the_documentation_and_levers_that_exist() -> None:
    causes = [rule for rule in RULES.by_id.values() if rule.role in ("cause", "symptom")]
    assert [rule.id for rule in causes if not (rule.docs or "").startswith("https://")] == []
    assert {rule.lever for rule in causes if rule.lever} <= load_levers().keys()


CLASSES = """
oom_weights kv_cache_too_small free_memory_below_utilization host_oom_killed cuda_illegal_access
cudagraph_replay_error cudagraph_capture_oom_or_error nccl_init_failure nccl_timeout_watchdog
network_misconfig shm_broadcast_stall engine_core_died engine_init_failed_opaque worker_proc_died rpc_timeout
hang_silent_load hf_download_or_auth model_arch_unsupported model_inspect_failed weights_missing_or_corrupt
infer_device_type mp_spawn_bootstrap torch_compile_inductor_triton driver_cuda_mismatch shm_size_bus_error
port_in_use port_or_fd_limits tokenizer_or_config_error invalid_argument quantization_or_dtype_unsupported
custom_allreduce_p2p attention_backend_missing_lib other benign
"""


def test_every_class_has_a_rule() -> None:
    assert {rule.class_ for rule in RULES.by_id.values()} == set(CLASSES.split())


PHASES = (
    *("banner", "args", "config", "engine_spawn", "dist_init", "model_init", "download", "weights", "weights_done"),
    *("compile", "compile_done", "profile", "kv_cache", "warmup", "cudagraph", "cudagraph_done", "engine_ready"),
    *("api_start", "server_url", "serving", "shutdown", "generation", "sleep", "wake"),
)


def test_every_phase_has_a_rule() -> None:
    assert {rule.phase for rule in RULES.by_id.values() if rule.phase} == set(PHASES)


def test_fields_are_the_named_groups_that_took_part() -> None:
    found = RULES.match("Uvicorn running on http://0.0.0.0:8000 (Press CTRL+C to quit)")
    assert found is not None
    assert found.fields == {"url": "http://0.0.0.0:8000"}
    found = RULES.match("DP group leader: node_rank=0")
    assert found is not None
    assert found.fields == {}


def test_eager_mode_is_read_from_a_line_of_several_kilobytes() -> None:
    line = "Initializing a V1 LLM engine (v0.32.0) with config: " + "option=None, " * 400 + "enforce_eager=True, seed=0"
    found = RULES.match(line)
    assert found is not None
    assert (found.rule.id, found.fields["enforce_eager"]) == ("engine_config", "True")


def test_a_stream_gives_statements_that_rules_know_and_exceptions_that_none_does() -> None:
    head = "(Worker_TP1 pid=4) ERROR 11-21 09:01:55 [multiproc_executor.py:1063] "
    lines = ["WorkerProc hit an exception.", "Traceback (most recent call last):", '  File "a", line 1, in f']
    stream = RecordStream(RULES)
    matches = [
        match
        for number, line in enumerate([*lines, "  EngineDeadError", "CustomError: x"], 1)
        for match in stream.feed(number, head + line)
    ]
    assert [(match.rule and match.rule.id, match.statement.number) for match in [*matches, *stream.flush()]] == [
        ("worker-exception", 1),
        (None, 5),
    ]


@pytest.mark.parametrize(
    ("since", "until", "version", "known"),
    [
        (None, "0.9", "0.9.2", True),
        (None, "0.9", "0.10.0", False),
        ("0.10", None, "0.9.2", False),
        ("0.10", "0.12", "0.11.0rc1", True),
        ("0.10", "0.12", None, True),
    ],
)
def test_rules_for_some_versions(since: str | None, until: str | None, version: str | None, known: bool) -> None:
    rule = Rule(id="x", match="some text", role="noise", samples=["some text"], since=since, until=until)
    assert bool(RuleSet([rule]).match("some text", Context(version=version))) is known


def test_what_a_harmless_level_says_is_no_failure() -> None:
    stream = RecordStream(RULES)
    head = "(APIServer pid=1) {} 11-21 08:53:06 [a.py:1] "
    text = "Too many open files may follow"
    matches = [
        match for n, level in enumerate(("WARNING", "ERROR"), 1) for match in stream.feed(n, head.format(level) + text)
    ]
    assert [match.rule and match.rule.id for match in [*matches, *stream.flush()]] == [None, "descriptors"]


def test_of_a_message_over_several_lines_the_line_that_tells_is_named() -> None:
    lines = [
        "pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, it is too long [type=x]",
    ]
    stream = RecordStream(RULES)
    matches = [match for number, line in enumerate(lines, 1) for match in stream.feed(number, line)]
    assert [(match.number, match.line) for match in [*matches, *stream.flush()]] == [(2, lines[1])]


def test_a_message_that_was_wrapped_is_known() -> None:
    lines = ["ValueError: No available memory for the", "cache blocks. Try more."]
    stream = RecordStream(RULES)
    matches = [match for number, line in enumerate(lines, 1) for match in stream.feed(number, line)]
    assert [(match.rule and match.rule.id, match.number) for match in [*matches, *stream.flush()]] == [
        ("kv-cache-none", 1)
    ]


def test_words_of_a_rule_are_found_in_bytes() -> None:
    assert b"unexpectedly" in RULES.telling(b"\x1b[31mWorker proc VllmWorker-1 died unexpectedly\x1b[0m")
    assert set(RULES.telling(b"nothing to see")) == set(RULES.telling(b""))


def write_rule(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.toml").write_text(text)
    return folder


GOOD = """
[[rule]]
id = "mine"
match = 'my own line (?P<n>\\d{1,9})'
role = "noise"
samples = ["my own line 5"]
"""


def test_a_folder_of_the_users_own(tmp_path: Path) -> None:
    rules, faults = read_rules(write_rule(tmp_path / "rules", GOOD))
    found = load_rules(*rules).match("my own line 5")
    assert found is not None
    assert (found.rule.id, found.fields, faults) == ("mine", {"n": "5"}, [])


def test_there_need_be_no_folder_of_the_users_own(tmp_path: Path) -> None:
    assert read_rules(tmp_path / "none") == ([], [])


def test_a_rule_of_the_users_own_comes_first_and_may_replace_one() -> None:
    mine = Rule(id="port-in-use", match="Errno 98", role="noise", samples=["Errno 98"])
    found = load_rules(mine).match("OSError: [Errno 98] Address already in use")
    assert found is not None
    assert found.rule == mine


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("match = ", "matches = "), "missing required field `match`|unknown field `matches`"),
        (('role = "noise"', 'role = "nose"'), r"\$\.role"),
        (('role = "noise"', 'role = "phase"'), "needs `phase` and `label`"),
        (('role = "noise"', 'role = "cause"'), "needs `why` and `fix`"),
        (("(?P<n>", "(?P<n"), "no regular expression"),
        (("my own line ", ""), "fixed characters"),
        (("1,9})", "1,9}) .*"), "`match` repeats without end"),
        (('["my own line 5"]', "[]"), "`samples` is empty"),
        (("'my own", "'(?i)my own"), "`match` sets flags"),
        (('id = "mine"', "id = 3"), r"\$\.id"),
        (("[[rule]]", "[[rules]]"), "only \\[\\[rule\\]\\] entries"),
        (("[[rule]]", "[[rule"), "TOML|Expected"),
    ],
)
def test_a_malformed_rule_is_told_by_file_and_key_and_the_rest_work(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    folder = write_rule(tmp_path / "rules", GOOD.replace(*change))
    (folder / "sound.toml").write_text(GOOD.replace('"mine"', '"sound"'))
    rules, faults = read_rules(folder)
    assert [rule.id for rule in rules] == ["sound"]
    (fault,) = faults
    assert "mine.toml" in fault
    assert re.search(complaint, fault)


def test_an_id_that_is_there_twice_is_told(tmp_path: Path) -> None:
    rules, faults = read_rules(write_rule(tmp_path / "rules", GOOD + GOOD))
    assert len(rules) == 1
    assert "`id` is taken" in faults[0]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("plain text", [("plain text", "")]),
        ("some plain text", [("some plain text", "plain")]),
        (r"\[Errno 98\]|\bEADDRINUSE\b", [("[Errno 98]", "Errno"), ("EADDRINUSE", "EADDRINUSE")]),
        (r"^Start|x{3}", [("Start", ""), ("", "")]),
        (r"[Aa]ddress in use", [("ddress in use", "")]),
        (r"^one (?:red|blue) two more$", [(" two more", "one two more")]),
        (r"colou?r is (?:red|blue) today", [(" today", "")]),
        (r"abcd+ef", [("abcd", "")]),
        (r"abcdx{2,3}y", [("abcd", "")]),
        (r"[^|]]: abc[|(]", [("]: abc", "")]),
        (r"took \d+ seconds$", [(" seconds", "seconds")]),
        (r"(?P<a>x|y)(?:y|z)", [("", "")]),
    ],
)
def test_alternatives(pattern: str, found: list[tuple[str, str]]) -> None:
    assert [(one.text, one.words) for one in alternatives(pattern)] == [(a, frozenset(b.split())) for a, b in found]
    assert "|".join(one.source for one in alternatives(pattern)) == pattern


PATTERNS = "(?:[a-z]{3,5}[0-9]?|x\\.yz[ab]{1,2}c| (?:q|r)stuv? |\\\\b[a-z]{3}\\\\b)(?:\\|[a-z]{4}w?)?"


@given(st.from_regex(PATTERNS, fullmatch=True), st.data())
def test_a_match_contains_the_words_and_the_text_of_its_alternative(pattern: str, data: st.DataObject) -> None:
    for one in alternatives(pattern):
        sample = data.draw(st.from_regex(one.source))
        assert one.text in sample
        assert one.words <= set(re.findall("[A-Za-z_]{3,}", sample))


@pytest.mark.parametrize(
    ("pattern", "bounded"),
    [
        ("a.{0,9}b", True),
        ("^a .*b", True),
        (r"^a \d+ \w+ .*", True),
        ("^a .*b.*", False),
        ("a.*b", False),
        ("^a|b+", False),
        (r"a{2,}", False),
        (r"a[+*]b\+", True),
    ],
)
def test_patterns_whose_cost_has_a_bound(pattern: str, bounded: bool) -> None:
    assert is_bounded(pattern) is bounded


def test_a_rule_set_refuses_two_rules_with_one_id() -> None:
    rule = Rule(id="x", match="some text", role="noise", samples=["some text"])
    with pytest.raises(RuleError, match="Two rules"):
        RuleSet([rule, rule])
