"""The fixed text that a pattern cannot match without: looking for it first makes hundreds of patterns cheap."""

import re
from itertools import pairwise
from typing import NamedTuple

SHORTEST = 3
WORD = r"[A-Za-z_]{3,}"
"""What counts as a word of a line."""
_TOKEN = re.compile(
    r"\\[AbBZdDsSwW]|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?:\?(?:P<\w+>|[:=!]|<[=!]))?|[*+?]\??|\{[\d,]*\}\??|.", re.S
)
_EDGE, _OPEN = "\0", "\1"
"""What stands in a skeleton for the edge of a word, and for anything else that is no fixed character."""
_EDGES = frozenset((r"\A", r"\b", r"\Z", r"\s", "^", "$"))
_WHOLE_WORD = re.compile(rf"(?<![A-Za-z_{_OPEN}]){WORD}(?![A-Za-z_{_OPEN}])")
_UNBOUNDED = re.compile(r"[*+]\??|\{\d*,\}\??")


class Alternative(NamedTuple):
    """One of the patterns that a pattern offers outside of groups, with text that each of its matches contains."""

    source: str
    words: frozenset[str]
    """Whole words: they can be looked up among the words of a line."""
    text: str
    """The longest run of fixed characters, for one that has no whole word."""


def alternatives(pattern: str) -> list[Alternative]:
    """What `pattern` offers. Only text outside of groups and character classes counts."""
    return [_alternative(tokens) for tokens in _split(pattern)]


def is_bounded(pattern: str) -> bool:
    """Whether a search costs no more than a line's length times a constant.

    Each repeat needs an upper bound; where an alternative begins with `^`, only `.` needs one, and once it may do
    without.
    """
    return all(map(_is_bounded, _split(pattern)))


def _is_bounded(tokens: list[str]) -> bool:
    repeated = [before for before, token in pairwise(tokens) if _UNBOUNDED.fullmatch(token)]
    return repeated.count(".") <= 1 if tokens[:1] == ["^"] else not repeated


def _split(pattern: str) -> list[list[str]]:
    """The tokens of each alternative outside of groups."""
    found: list[list[str]] = [[]]
    depth = 0
    for token in _TOKEN.findall(pattern):
        depth += token.startswith("(") - (token == ")")
        if token == "|" and depth == 0:
            found.append([])
        else:
            found[-1].append(token)
    return found


def _alternative(tokens: list[str]) -> Alternative:
    skeleton = _skeleton(tokens)
    text = max(re.split(f"[{_EDGE}{_OPEN}]", skeleton), key=len)
    return Alternative("".join(tokens), frozenset(_WHOLE_WORD.findall(skeleton)), text)


def _skeleton(tokens: list[str]) -> str:
    """An alternative with what is not fixed taken out."""
    skeleton, depth = _OPEN, 0  # a pattern may begin and end within a word
    for token in tokens:
        if depth or token.startswith("("):
            depth += token.startswith("(") - (token == ")")
            skeleton += _OPEN
        else:
            skeleton = _with_token(skeleton, token)
    return skeleton + _OPEN


def _with_token(skeleton: str, token: str) -> str:
    if token in _EDGES:
        return skeleton + _EDGE
    if token[0] in "*?{":
        return skeleton[:-1] + _OPEN  # what it repeats need not be there
    if token[0] == "\\" and not token[1].isalnum():
        return skeleton + token[1]
    return skeleton + (_OPEN if token[0] in "\\.+[" else token)
