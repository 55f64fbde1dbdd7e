"""How a line of the log is coloured: who wrote it, how grave it is, and what the user looks for.

Colour only repeats what the words of the line say. Few styles a line: on a slow connection they cost more than text.
"""

import re
import zlib
from functools import lru_cache

from textual.content import Content

from vllm_probes.log.line import ParsedLine, parse_line
from vllm_probes.log.rows import LogLine
from vllm_probes.rows import ALARMING_LEVELS, Level
from vllm_tui.format import plural

RANK_COLOURS = ("#2fa58d", "#a68a2a", "#a873d1", "#3f9ab0", "#6fa13a", "#cc7a4f", "#c96a9d", "#7c86d9")
_HEAD = "$foreground 45%"
_LEVEL_STYLES = {
    "warning": "$text-warning",
    "error": "$text-error",
    "critical": "$text-error",
    "debug": "$foreground 60%",
}
_MATCH = "reverse bold"


def styled_line(line: LogLine, needle: str = "", *, compact: bool = False) -> Content:
    """The text of a line with its styles; every occurrence of `needle` stands out.

    `compact` is for narrow screens: of vLLM's long prefix only process, time and a level worse than INFO stay.
    """
    content = _styled(line.text, line.level in ("error", "critical"), compact)
    if needle:
        for match in re.finditer(re.escape(needle), content.plain, re.IGNORECASE):
            content = content.stylize(_MATCH, *match.span())
    return content


def gutter(level: Level | None) -> tuple[str, str] | str:
    """What stands at the edge of a line, so that the eye finds the grave ones on a full screen."""
    return ("▎", _LEVEL_STYLES[level]) if level in (*ALARMING_LEVELS, "warning") else " "


def left_out(line: LogLine) -> str:
    """` ×8`, ` +57 lines`: what a folded view does not show of it; nothing where all is shown."""
    times = f" ×{line.times:,}" if line.times > 1 else ""
    return times + (f" +{plural(line.hidden_count, 'line')}" if line.hidden_count else "")


@lru_cache(maxsize=4096)
def _styled(text: str, alarming: bool, compact: bool) -> Content:
    parsed = parse_line(text)
    head, message = _split(text, parsed)
    head_style = process_style(parsed.process, parsed.rank) if parsed.process else _HEAD
    message_style = "$text-error" if alarming else _LEVEL_STYLES.get(parsed.level or "", "")
    if compact and parsed.shape == "vllm":
        level = f"{parsed.level.upper()} " if parsed.level and parsed.level != "info" else ""
        clock = f"{(parsed.stamp or '').rpartition(' ')[2]} "
        return Content.assemble(
            (f"{parsed.process or ''} ".lstrip(), head_style), (clock, _HEAD), (level + message, message_style)
        )
    name_end = head.find(")") + 1 if parsed.process and head.startswith("(") else 0
    return Content.assemble((head[:name_end], head_style), (head[name_end:], _HEAD), (message, message_style))


def _split(text: str, parsed: ParsedLine) -> tuple[str, str]:
    """What the parser took for the prefix, and the message."""
    if parsed.shape == "plain" or not text.endswith(parsed.message):
        return "", text
    return text[: len(text) - len(parsed.message)], parsed.message


def process_style(process: str, rank: int | None) -> str:
    """The same colour for the same process everywhere and always: ranks in their order, others by their name."""
    if process == "APIServer":
        return "$api-server"
    if process.startswith("EngineCore"):
        return "$engine-core"
    number = rank if rank is not None else zlib.crc32(process.encode())
    return f"$rank-{number % len(RANK_COLOURS)}"
