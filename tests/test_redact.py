"""Secrets go, by name and by shape; ordinary text stays."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.launch.redact import REMOVED, is_secret_name, redact_argv, redact_env, redact_text

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=20, max_size=40)
SHAPED = st.one_of(
    WORDS.map("hf_{}".format),
    WORDS.map("sk-{}".format),
    WORDS.map("sk-proj-{}_x-y".format),
    WORDS.map("ghp_{}".format),
    WORDS.map("github_pat_{}".format),
    WORDS.map(lambda word: f"eyJ{word}.{word}.{word}"),
    WORDS.map(lambda word: "AKIA" + word.upper()[:16]),
)
PROSE = st.lists(st.sampled_from(["INFO", "loading", "8192", "[core.py:77]", "'x'", "{", "}", "a=b", "(pid=3)", "-"]))

ORDINARY = [
    "(EngineCore pid=7) INFO 11-21 09:15:08 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
    "model='m', tokenizer='m', tokenizer_mode=auto, revision=None, max_seq_len=256, enforce_eager=True, seed=0",
    "non-default args: {'model_tag': 'm', 'api_key': None, 'hf_token': None, 'max_num_batched_tokens': 8192}",
    "num_tokens=12 max_tokens: 100 eos_token='</s>' bos_token_id=1 pad_token: <pad> image_token=<image>",
    "Cache key: 123456789abcdef cache_key=123456789abcdef kv_cache_dtype=fp8 num_key_value_heads=8",
    "hf_overrides={} hf_config=LlamaConfig hf_transfer disk-usage task-specific scikit sk-learn",
    "Use --api-key to protect the server, or --hf-token if the model is gated.",
    "Bearer authentication is off. The token is not set. http://127.0.0.1:8000/v1 user@host git@github.com:x/y",
    '{"token": "Hello", "logprob": -0.1}',
    'File "/x/token.py", line 3, in secret_handshake',
    "torch.ops.monkey keyboard --ssl-keyfile /a/key.pem TOKENIZERS_PARALLELISM=false",
]

NAMED = [
    "api_key={}",
    "'api_key': ['{}', 'x']",
    '"apiKey": "{}"',
    '{{\\"api_key\\": \\"{}\\"}}',
    "HF_TOKEN={}",
    "export AWS_SECRET_ACCESS_KEY='{}'",
    "password: {}",
    "Authorization: Bearer {}",
    "'authorization': 'Basic {}'",
    "https://user:{}@host/path",
    "https://host/path?x=1&token={}&y=2",
    "vllm serve m --api-key {} --port 1",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
]

FLAGS = ["--api-key", "--hf-token", "--password", "--ssl-keyfile-password", "--client-secret"]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert redact_text(text) == text
    assert redact_argv([text]) == [text] or "--api-key" in text


@pytest.mark.parametrize("name", ["HF_TOKEN", "VLLM_API_KEY", "OPENAI_APIKEY", "MY_SECRET", "PGPASSWORD", "MYSQL_PWD"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert redact_env({name: "x"}) == {name: REMOVED}


@pytest.mark.parametrize(
    "name",
    ["TOKENIZERS_PARALLELISM", "VLLM_MAX_TOKENS", "PWD", "OLDPWD", "KEYBOARD", "HF_HOME", "eos_token", "cache_key"],
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)
    assert redact_env({name: "x"}) == {name: "x"}


def test_aws_and_shapes_in_the_environment() -> None:
    env = {"AWS_SESSION_TOKEN": "a", "X": "hf_0123456789abcdef", "EMPTY_KEY": "", "PROXY": "http://u:p@h:1"}
    assert redact_env(env) == {
        "AWS_SESSION_TOKEN": REMOVED,
        "X": REMOVED,
        "EMPTY_KEY": "",
        "PROXY": f"http://u:{REMOVED}@h:1",
    }


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("vllm serve m --api-key a b --port 1", "vllm serve m --api-key *** *** --port 1"),
        ("vllm serve m --api_key=a --port 1", "vllm serve m --api_key=*** --port 1"),
        ("vllm serve --hf-token t m", "vllm serve --hf-token *** m"),
        (
            "vllm serve m --max-num-batched-tokens 8192 --tokenizer x",
            "vllm serve m --max-num-batched-tokens 8192 --tokenizer x",
        ),
        ("env HF_TOKEN=t VLLM_X=1 vllm serve m", "env HF_TOKEN=*** VLLM_X=1 vllm serve m"),
        ("docker run -e 'A_SECRET=a b' --env=B_KEY=c img", "docker run -e 'A_SECRET=***' --env=B_KEY=*** img"),
        (
            "bash -c 'export HF_TOKEN=t; vllm serve m --api-key a b -tp 2'",
            "bash -c 'export HF_TOKEN=***; vllm serve m --api-key *** *** -tp 2'",
        ),
        ("curl -H 'Authorization: Bearer t' url", "curl -H 'Authorization: Bearer ***' url"),
        ("x --api-key", "x --api-key"),
        ("x --api-key --port 1", "x --api-key --port 1"),
    ],
)
def test_command_lines(command: str, expected: str) -> None:
    assert redact_argv(shlex.split(command)) == shlex.split(expected)


@given(before=PROSE, secret=SHAPED, after=PROSE)
def test_a_secret_of_a_known_shape_never_survives(before: list[str], secret: str, after: list[str]) -> None:
    words = [*before, secret, *after]
    assert secret not in redact_text(" ".join(words))
    assert all(secret not in word for word in redact_argv(words))
    assert secret not in redact_text(json.dumps({"x": {"y": [" ".join(words)]}}))
    assert redact_env({"X": secret}) == {"X": REMOVED}


@given(before=PROSE, form=st.sampled_from(NAMED), secret=WORDS, after=PROSE)
def test_a_secret_behind_a_telling_name_never_survives(
    before: list[str], form: str, secret: str, after: list[str]
) -> None:
    text = " ".join([*before, form.format(secret), *after])
    assert secret not in redact_text(text)
    assert secret not in redact_argv([text])[0]


@given(before=PROSE, flag=st.sampled_from(FLAGS), secret=st.text(min_size=1).filter(lambda s: not s.startswith("-")))
def test_the_value_of_a_secret_flag_never_survives(before: list[str], flag: str, secret: str) -> None:
    assert redact_argv([*before, flag, secret])[-1] == REMOVED
    assert redact_argv([*before, f"{flag}={secret}"])[-1] == f"{flag}={REMOVED}"


@given(st.lists(st.one_of(PROSE.map(" ".join), SHAPED, st.sampled_from(NAMED), st.sampled_from(FLAGS), st.text())))
def test_twice_is_as_once(words: list[str]) -> None:
    once = redact_text(" ".join(words))
    assert redact_text(once) == once
    argv = redact_argv(words)
    assert redact_argv(argv) == argv
    assert len(argv) == len(words)


@given(PROSE)
def test_prose_is_unchanged(words: list[str]) -> None:
    assert redact_text(" ".join(words)) == " ".join(words)


@pytest.mark.parametrize(
    "piece", ["api_key", "token=[", "token=\\'", "hf_", "eyJ.", "://a:", "-----BEGIN PRIVATE KEY-----", "'"]
)
def test_a_secret_behind_long_hostile_text_is_removed(piece: str) -> None:
    """An exponential pattern would not come back at all."""
    redacted = redact_text(f"{piece * 20_000} password=hunter2000")
    assert "hunter" not in redacted
    assert redacted.endswith(REMOVED)
