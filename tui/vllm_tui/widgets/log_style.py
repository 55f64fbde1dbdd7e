"""How a line of the log is coloured: who wrote it, how grave it is, and what the user looks for.

Colour only repeats what the words of the line say. Few styles a line: on a slow connection they cost more than text.
"""

import re
import zlib
from functools import lru_cache

from textual.content import Content

from vllm_probes.logline import ParsedLine, parse_line
from vllm_probes.logrows import LogLine

RANK_COLOURS = 8
_HEAD = "$foreground 45%"
_LEVEL_STYLES = {
    "warning": "$text-warning",
    "error": "$text-error",
    "critical": "$text-error",
    "debug": "$foreground 60%",
}
_MATCH = "reverse bold"


def styled_line(line: LogLine, needle: str = "") -> Content:
    """The text of a line with its styles; every occurrence of `needle` stands out."""
    content = _styled(line.text, line.level in ("error", "critical"))
    if needle:
        for match in re.finditer(re.escape(needle), line.text, re.IGNORECASE):
            content = content.stylize(_MATCH, *match.span())
    return content


@lru_cache(maxsize=4096)
def _styled(text: str, alarming: bool) -> Content:
    parsed = parse_line(text)
    content = Content(text)
    message_style = "$text-error" if alarming else _LEVEL_STYLES.get(parsed.level or "", "")
    if message_style:
        content = content.stylize(message_style)
    head_length = _head_length(text, parsed)
    if head_length:
        content = content.stylize(_HEAD, 0, head_length)
    if parsed.process and (end := text.find(")")) > 0 and text.startswith("("):
        content = content.stylize(process_style(parsed.process, parsed.rank), 0, end + 1)
    return content


def _head_length(text: str, parsed: ParsedLine) -> int:
    """Where the message begins, for lines of which the parser cut something off; 0 where it did not."""
    if parsed.shape == "plain" or not text.endswith(parsed.message):
        return 0
    return len(text) - len(parsed.message)


def process_style(process: str, rank: int | None) -> str:
    """The same colour for the same process everywhere and always: ranks in their order, others by their name."""
    if process == "APIServer":
        return "$api-server"
    if process.startswith("EngineCore"):
        return "$engine-core"
    number = rank if rank is not None else zlib.crc32(process.encode())
    return f"$rank-{number % RANK_COLOURS}"
