"""The fixed text that a pattern cannot match without: looking for it first makes a hundred patterns cheap."""

import re

SHORTEST = 3
_TOKEN = re.compile(
    r"\\[AbBZdDsSwW]|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?:\?(?:P<\w+>|[:=!]|<[=!]))?|[*+?]\??|\{[\d,]*\}\??|.", re.S
)


def fixed_texts(pattern: str) -> list[str] | None:
    """For every alternative of `pattern` one text that each of its matches contains; None where one has no such text.

    Only text outside of groups and character classes counts, of at least SHORTEST characters.
    """
    best, run, texts, depth = "", "", [], 0
    for token in [*_TOKEN.findall(pattern), "|"]:
        plain = _plain(token) if depth == 0 else None
        if plain is not None:
            run += plain
            continue
        if token[0] in "*?{" and depth == 0:
            run = run[:-1]
        best, run = max(best, run, key=len), ""
        depth += token.startswith("(") - (token == ")")
        if token == "|" and depth == 0:
            texts.append(best)
            best = ""
    return texts if all(len(text) >= SHORTEST for text in texts) else None


def _plain(token: str) -> str | None:
    """The character that the token stands for, None where it stands for more than one."""
    if token[0] == "\\":
        return None if token[1].isalnum() else token[1]
    return None if token[0] in ".^$*+?{[()|" else token
