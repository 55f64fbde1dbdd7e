"""What a command line runs: through an interpreter to its script or module, and whether that is a vLLM server."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from string import Template

SERVER_MODULES = frozenset(("vllm.entrypoints.openai.api_server", "vllm.entrypoints.api_server"))
"""Run as `python -m MODULE`; 0.32 still has the first."""
_SERVER_FILE = re.compile(r"(?:.*/)?vllm/entrypoints/(?:openai/)?api_server\.py")
_VLLM = re.compile(r"(?:.*/)?vllm|vllm\.entrypoints\.cli\.main|(?:.*/)?vllm/entrypoints/cli/main\.py")
_SERVING = frozenset(("serve", "launch"))

_PYTHON = re.compile(r"(?:python|pypy)[\d.]*t?")
_SHELL = re.compile(r"(?:ba|da|z|k|a)?sh")
_PYTHON_VALUE = re.compile(r"-[^-cmWX]*([cmWX])(.*)", re.DOTALL)
_PYTHON_LONG_VALUE = "--check-hash-based-pycs"
_SHELL_LONG_VALUES = frozenset(("--rcfile", "--init-file"))
_OPERATOR = frozenset("();<>|&")


def base_name(path: str) -> str:
    """The last part of a path; a login shell's leading dash goes."""
    return path.rpartition("/")[2].removeprefix("-")


def is_python(argv: Sequence[str]) -> bool:
    """Whether the process is a Python interpreter."""
    return bool(argv) and _PYTHON.fullmatch(base_name(argv[0])) is not None


def script(argv: Sequence[str]) -> list[str]:
    """The script, or the module after `-m`, that a Python or shell runs, and its arguments.

    Empty where no interpreter runs, and where it runs code from its command line or from standard input.
    """
    if is_python(argv):
        return _python_script(list(argv[1:]))
    return _shell_run(argv)[1]


def shell_code(argv: Sequence[str]) -> str | None:
    """The CODE of `bash -c CODE`, None where there is none."""
    return _shell_run(argv)[0]


def server_arguments(words: Sequence[str]) -> list[str] | None:
    """What follows `vllm serve` or the module of the API server where `words` begins with one of them, else None."""
    if words and (words[0] in SERVER_MODULES or _SERVER_FILE.fullmatch(words[0])):
        return list(words[1:])
    if len(words) > 1 and words[1] in _SERVING and _VLLM.fullmatch(words[0]):
        return list(words[2:])
    return None


def server_words(argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The words that start a vLLM server, for `server_arguments`; wrappers and `bash -c CODE` are looked through.

    `env` fills in variables inside such code, where the words end with the command. Empty: it starts none.
    """
    for words in _commands(argv, env):
        for start in range(len(words)):
            if server_arguments(words[start:]) is not None:
                return list(takewhile(lambda word: not word or not _OPERATOR.issuperset(word), words[start:]))
    return []


def options(arguments: Sequence[str]) -> dict[str, str]:
    """The long options with their values, as argparse takes them: the last one counts, `_` is `-`."""
    found: dict[str, str] = {}
    for position, word in enumerate(arguments):
        if word.startswith("--"):
            option, has_value, value = word.partition("=")
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            found[option.replace("_", "-")] = value if has_value else following
    return found


def _commands(argv: Sequence[str], env: Mapping[str, str]) -> Iterator[list[str]]:
    yield list(argv)
    for start in range(len(argv)):
        if code := shell_code(argv[start:]):
            try:
                words = _split(code)
            except ValueError:  # an open quotation mark
                continue
            yield from _commands([Template(word).safe_substitute(env) for word in words], env)


def _split(code: str) -> list[str]:
    lexer = shlex.shlex(code.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def _python_script(rest: list[str]) -> list[str]:
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "-":
            return []
        if option == _PYTHON_LONG_VALUE:
            rest = rest[1:]
        elif found := _PYTHON_VALUE.match(option):
            value = [found[2]] if found[2] else rest[:1]
            rest = rest if found[2] else rest[1:]
            if found[1] in "cm":
                return value + rest if found[1] == "m" else []
    return rest


def _shell_run(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The code, or the script and its arguments."""
    if not argv or not _SHELL.fullmatch(base_name(argv[0])):
        return None, []
    rest = list(argv[1:])
    takes_code = False
    while rest and rest[0][:1] in ("-", "+") and len(rest[0]) > 1:
        option = rest.pop(0)
        if option == "--":
            break
        is_long = option.startswith("--")
        takes_code |= "c" in option and not is_long
        if option in _SHELL_LONG_VALUES or ("o" in option.lower() and not is_long):
            rest = rest[1:]
    return (rest[0] if rest else None, []) if takes_code else (None, rest)
