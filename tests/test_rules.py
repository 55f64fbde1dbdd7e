"""Rule files, and every rule's own samples."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.judges.literals import fixed_texts
from vllm_probes.judges.rules import Rule, RuleError, RuleSet, load_rules
from vllm_probes.log.line import clean, parse_line

RULES = load_rules()
SAMPLES = [(rule.id, sample) for rule in RULES.by_id.values() for sample in rule.samples]
NOT_SAMPLES = [(rule.id, sample) for rule in RULES.by_id.values() for sample in rule.not_samples]


def matched(sample: str) -> str | None:
    found = RULES.match(parse_line(clean(sample.encode())).message)
    return found[0].id if found else None


@pytest.mark.parametrize(("rule", "sample"), SAMPLES)
def test_samples(rule: str, sample: str) -> None:
    assert matched(sample) == rule


@pytest.mark.parametrize(("rule", "sample"), NOT_SAMPLES)
def test_not_samples(rule: str, sample: str) -> None:
    assert matched(sample) != rule


def test_every_rule_tells_what_it_is_not() -> None:
    assert [rule.id for rule in RULES.by_id.values() if not rule.not_samples] == []


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
    assert found[1] == {"url": "http://0.0.0.0:8000"}
    found = RULES.match("DP group leader: node_rank=0")
    assert found is not None
    assert found[1] == {}


def test_eager_mode_is_read_from_a_line_of_several_kilobytes() -> None:
    line = "Initializing a V1 LLM engine (v0.32.0) with config: " + "option=None, " * 400 + "enforce_eager=True, seed=0"
    found = RULES.match(line)
    assert found is not None
    assert (found[0].id, found[1]["enforce_eager"]) == ("engine_config", "True")


def test_a_stream_gives_statements_that_rules_know_and_exceptions_that_none_does() -> None:
    head = "(EngineCore pid=2) ERROR 11-21 09:01:55 [core.py:1512] "
    lines = ["EngineCore encountered a fatal error.", "Traceback (most recent call last):", '  File "a", line 1, in f']
    stream = RULES.stream()
    matches = [
        match
        for number, line in enumerate([*lines, "  EngineDeadError", "CustomError: x"], 1)
        for match in stream.feed(number, head + line)
    ]
    assert [(match.rule and match.rule.id, match.statement.number) for match in [*matches, *stream.flush()]] == [
        ("engine-fatal", 1),
        (None, 5),
    ]


def write_rule(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.toml").write_text(text)
    return folder


GOOD = """
[[rule]]
id = "mine"
match = 'my own line (?P<n>\\d+)'
role = "noise"
samples = ["my own line 5"]
"""


def test_a_folder_of_the_users_own(tmp_path: Path) -> None:
    found = load_rules(write_rule(tmp_path / "rules", GOOD)).match("my own line 5")
    assert found is not None
    assert (found[0].id, found[1]) == ("mine", {"n": "5"})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("match = ", "matches = "), "missing required field `match`|unknown field `matches`"),
        (('role = "noise"', 'role = "nose"'), r"\$\.role"),
        (('role = "noise"', 'role = "phase"'), "needs `phase` and `label`"),
        (('role = "noise"', 'role = "cause"'), "needs `why` and `fix`"),
        (("(?P<n>", "(?P<n"), "no regular expression"),
        (("my own line ", ""), "fixed characters"),
        (('["my own line 5"]', "[]"), "`samples` is empty"),
        (('id = "mine"', "id = 3"), r"\$\.id"),
        (("[[rule]]", "[[rules]]"), "only \\[\\[rule\\]\\] entries"),
        (("[[rule]]", "[[rule"), "TOML|Expected"),
        (('"mine"', '"worker-died"'), "Two rules have the id 'worker-died'"),
    ],
)
def test_a_malformed_rule_names_file_and_key(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    folder = write_rule(tmp_path / "rules", GOOD.replace(*change))
    with pytest.raises(RuleError, match=complaint) as raised:
        load_rules(folder)
    assert "mine.toml" in str(raised.value) or "Two rules" in str(raised.value)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("plain text", ["plain text"]),
        (r"\[Errno 98\]|EADDRINUSE", ["[Errno 98]", "EADDRINUSE"]),
        (r"[Aa]ddress in use", ["ddress in use"]),
        (r"colou?r is (?:red|blue) today", [" today"]),
        (r"abcd+ef", ["abcd"]),
        (r"abcdx{2,3}y", ["abcd"]),
        (r"[^|]]: abc[|(]", ["]: abc"]),
        (r"(?P<a>x)(?:y|z)", None),
        (r"\d\d\d", None),
        (r"long enough|no", None),
        (r"a.b.c", None),
    ],
)
def test_fixed_texts(pattern: str, texts: list[str] | None) -> None:
    re.compile(pattern)
    assert fixed_texts(pattern) == texts


@given(st.from_regex("(?:[a-z]{3,5}[0-9]?|x\\.yz[ab]+c|(?:q|r)stuv?)(?:\\|[a-z]{4}w*)?", fullmatch=True), st.data())
def test_a_match_contains_one_of_the_fixed_texts(pattern: str, data: st.DataObject) -> None:
    texts = fixed_texts(pattern)
    if texts is not None:
        sample = data.draw(st.from_regex(pattern))
        assert any(text in sample for text in texts)


def test_a_rule_set_refuses_two_rules_with_one_id() -> None:
    rule = Rule(id="x", match="some text", role="noise", samples=["some text"])
    with pytest.raises(RuleError, match="Two rules"):
        RuleSet([rule, rule])
