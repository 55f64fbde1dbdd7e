"""Takes secrets out of command lines, environments and text, by their names and by their shapes.

What is shown, recorded or bundled passes through here; only the relaunch itself sees secrets. In doubt a value behind
a telling name goes; ordinary text stays as it is. Doing it twice changes nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

REMOVED = "***"

_STRONG_NAME = re.compile(
    r"api[-_]?key|secret|passw(or)?d|passphrase|credential|(private|access|account)[-_]?key|connection[-_]?string"
    r"|^aws[-_]|^x-amz-signature$|[-_]pwd$",
    re.IGNORECASE,
)
_WEAK_NAME = re.compile(r"(?:^|[-_.])token$|[-_.]key$", re.IGNORECASE)
_HARMLESS_NAME = re.compile(
    r"(?:bos|eos|pad|unk|sep|cls|mask|stop|start|end|first|last|next|special|image|video|audio|mm|prompt|completion|per"
    r"|sampled|draft|bonus|max|num)[-_]token$"
    r"|(?:cache|sort|primary|foreign|partition|routing|group|hash|public|block|prefix|dict|index|lookup|mm)[-_]key$",
    re.IGNORECASE,
)
_KEY_LIST = re.compile(r"--api[-_]keys?", re.IGNORECASE)  # takes several values

_START = r"(?<![A-Za-z0-9])"
_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    rf"|{_START}(?:"
    r"hf_(?:[A-Za-z0-9]{16,}|(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{6,})"
    r"|sk-(?!learn)[A-Za-z0-9_-]{6,}"
    r"|gh[pousr]_[A-Za-z0-9]{6,}|github_pat_\w{6,}|glpat-[\w-]{6,}|xox[abeprs]-[\w-]{6,}|nvapi-[\w-]{6,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"
    r")",
    re.DOTALL,
)
_URL_LOGIN = re.compile(r"(://[^\s/?#:@'\"]*:)[^\s/?#'\"]+(?=@)")
_AUTHORIZATION = re.compile(
    r"(authorization\\*[\"']?\s*[:=]\s*\\*[\"']?(?:(?:bearer|basic|token|digest)\s+)?)[^\s\"',\\]+", re.IGNORECASE
)
_BEARER = re.compile(r"(\bbearer\s+)(?=\S*\d|\S{20})[\w.~+/=-]{6,}", re.IGNORECASE)

# A look ahead and a possessive name keep the time linear, whatever the text.
_NAME = (
    r"(?=[\w.-]*?(?:api[-_]?key|secret|passw(?:or)?d|passphrase|credential|token|[-_.]key|[-_]pwd|connection[-_]?string"
    r"|aws[-_]|x-amz-signature))(?P<name>[\w.-]++)"
)
_ASSIGNED = re.compile(
    rf"(?<![\w.-]){_NAME}"
    r"(?P<between>\\*[\"']?\s*[:=]\s*)"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|(?P<escaped>\\+[\"']).{0,4000}?(?P=escaped)|\[[^\]]{0,4000}\]"
    r"|[^\s&\"'\\]+?(?=[,;)}\]]*(?:[\s&\"'\\]|$)))",
    re.IGNORECASE,
)
_FLAG_IN_TEXT = re.compile(rf"(?<!\S)(?=--){_NAME}(?P<between>\s+)(?P<value>[^-\s]\S*)", re.IGNORECASE)
_HARMLESS_VALUE = re.compile(r"[\"'\\]*(?:|none|null|true|false)[\"'\\]*", re.IGNORECASE)
_SHORT_VALUE = re.compile(r"[\"'\\\[]*[^\"'\\\[\]]{0,7}[\"'\\\]]*")
_PROSE = re.compile(r"(?:to|is|or|and|was|for|in|if|as|has|can|not|must|with|when|flag|option|argument|value)\b")


def is_secret_name(name: str) -> bool:
    """Whether a variable, flag or key of this name holds a secret: `HF_TOKEN` does, `eos_token` does not."""
    bare = name.strip("-")
    return bool(_STRONG_NAME.search(bare) or (_WEAK_NAME.search(bare) and not _HARMLESS_NAME.search(bare)))


def redact_env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without secrets."""
    return {name: redact_value(name, value) for name, value in env.items()}


def redact_value(name: str, value: str) -> str:
    """The value of a variable or flag, without secrets."""
    return REMOVED if value and is_secret_name(name) else redact_text(value)


def redact_argv(argv: Sequence[str]) -> list[str]:
    """The command line without secrets: behind flags, in assignments, in code for a shell, by shape."""
    return [_redact_words(word) for word in _redact_flag_values(_SHAPES.sub(REMOVED, word) for word in argv)]


def redact_text(text: str) -> str:
    """A line of a log, of code or of JSON, without secrets."""
    text = _SHAPES.sub(REMOVED, text)
    text = _URL_LOGIN.sub(rf"\g<1>{REMOVED}", text)
    text = _AUTHORIZATION.sub(rf"\g<1>{REMOVED}", text)
    text = _BEARER.sub(rf"\g<1>{REMOVED}", text)
    return _FLAG_IN_TEXT.sub(_without_flag_value, _ASSIGNED.sub(_without_value, text))


def _redact_flag_values(words: Iterable[str]) -> list[str]:
    """The words behind a flag with a secret name: one, or for `--api-key` all up to the next flag."""
    result: list[str] = []
    flag: str | None = None
    for word in words:
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            secret = is_secret_name(name) and name != "--"
            flag = name if secret and not equals else None
            result.append(f"{name}={REMOVED}" if secret and value else word)
            continue
        result.append(REMOVED if flag and word else word)
        if flag and not _KEY_LIST.fullmatch(flag):
            flag = None
    return result


def _redact_words(word: str) -> str:
    """One argument; with blanks in it, it may be a command line of its own."""
    prefix, name, value = re.fullmatch(r"(?s)(-[\w-]*=)?(?:([\w.-]+)=)?(.*)", word).groups(default="")  # type: ignore[union-attr]
    if name and not name.startswith("-") and is_secret_name(name) and value:
        return f"{prefix}{name}={REMOVED}"
    pieces = re.split(r"(\s+)", word)
    pieces[::2] = _redact_flag_values(pieces[::2])
    return redact_text("".join(pieces))


def _without_value(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    if not is_secret_name(name) or _HARMLESS_VALUE.fullmatch(value):
        return found[0]
    if not (_STRONG_NAME.search(name) or name.isupper()) and _SHORT_VALUE.fullmatch(value):
        return found[0]
    quote = found["escaped"] or (value[0] if value[0] in "\"'" else "")
    return f"{name}{found['between']}{quote}{REMOVED}{quote}"


def _without_flag_value(found: re.Match[str]) -> str:
    if not is_secret_name(found["name"]) or _PROSE.match(found["value"]):
        return found[0]
    return f"{found['name']}{found['between']}{REMOVED}"
