"""Numbers, times and untrusted text as the screen writes them; unknown is a dash."""

import json
import shlex
import signal as signals
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

import msgspec

from vllm_probes.events import State

UNKNOWN = "-"
BLOCKS = " ▁▂▃▄▅▆▇█"

STATE_LOOKS: dict[State, tuple[str, str]] = {
    "starting": ("◌", "$text-accent"),
    "running": ("●", "$text-success"),
    "downloading": ("◌", "$text-accent"),
    "loading": ("◌", "$text-accent"),
    "compiling": ("◌", "$text-accent"),
    "warming_up": ("◌", "$text-accent"),
    "idle": ("○", "$text-success"),
    "serving": ("●", "$text-success"),
    "sleeping": ("○", "$text-accent"),
    "stopping": ("▼", "$text-warning"),
    "exited": ("■", "$text-muted"),
    "crashed": ("✖", "$text-error"),
}
"""Symbol and colour of each state; the word stands beside them, so neither has to be seen."""

_PROCESS_STATES = {
    "R": "runs",
    "S": "sleeps",
    "D": "I/O wait",
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
    "X": "dead",
    "I": "idle",
}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_PLACEHOLDER = "·"


def state_word(state: State) -> str:
    return state.replace("_", " ").upper()


def process_state(letter: str) -> str:
    """The state letter of /proc/PID/stat as a word (proc(5))."""
    return _PROCESS_STATES.get(letter, letter)


def printable(text: str) -> str:
    """Text of unknown origin without anything that a terminal would obey; tabs become four blanks.

    Every other character stays one character, so that columns can be counted.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\t", "    ")
    return "".join(_PLACEHOLDER if unicodedata.category(char) in _INVISIBLE else char for char in text)


def clock(seconds: float) -> str:
    """`0:12:41`."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def duration(seconds: float) -> str:
    """The shortest way to say it, cut as `clock` cuts: `210 ms`, `9.9 s`, `14 s`, `4:46`, `2:03:10`."""
    if seconds < 1:
        return f"{max(0, seconds) * 1000:.0f} ms"
    if seconds < 60:
        return f"{int(seconds * 10) / 10} s" if seconds < 10 else f"{int(seconds)} s"
    text = clock(seconds)
    return text[2:].lstrip("0") if text.startswith("0:") else text


def latency(seconds: float | None) -> str:
    """A duration that may be unknown."""
    return UNKNOWN if seconds is None else duration(seconds)


def size(byte_count: int) -> str:
    """`9.1G`, as the tools of the shell write it (powers of 1024)."""
    value = float(byte_count)
    for unit in ("B", "K", "M"):
        if value < 1000:
            return f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.1f}G" if value < 100 else f"{value:.0f}G"


def number(value: float | None) -> str:
    """A count with thousands separated."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def percent(fraction: float | None) -> str:
    """`71 %` of a fraction between 0 and 1."""
    return UNKNOWN if fraction is None else f"{fraction * 100:.0f} %"


def plural(count: int, noun: str) -> str:
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def bar(fraction: float, width: int) -> str:
    """A bar of `width` cells, filled from the left."""
    filled = round(min(1.0, max(0.0, fraction)) * width)
    return "━" * filled + "┄" * (width - filled)


def graph(values: Sequence[float | None], width: int, height: int) -> list[str]:
    """The last `width` values as columns of block characters, `height` rows from the top.

    A known value, zero too, has at least the lowest block; unknown ones are gaps.
    """
    shown = values[-width:]
    top = max((value for value in shown if value), default=1.0)
    levels = [0 if value is None else max(1, round(value / top * height * 8)) for value in shown]
    return [
        "".join(BLOCKS[min(8, max(0, level - row * 8))] for level in levels).rjust(width)
        for row in range(height - 1, -1, -1)
    ]


def ending(code: int | None, signal: int | None) -> str:
    """How a process ended, as the second half of a sentence."""
    if signal is not None:
        try:
            name = signals.Signals(signal).name
        except ValueError:
            name = f"signal {signal}"
        return f"was killed ({name})"
    return "ended" if code is None else f"ended with code {code}"


def json_text(value: object) -> str:
    """Structs and plain data as JSON for programs; bytes of names and paths that are no UTF-8 become `?`."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False).encode(errors="replace").decode()


def wrapped(text: str, width: int, begin: str) -> list[str]:
    """Lines of at most `width` columns; words, and so commands without blanks, stay whole."""
    wrapper = textwrap.TextWrapper(width, initial_indent=begin, subsequent_indent=" " * len(begin))
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return wrapper.wrap(text)


def table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, the first row being the heading."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def short_command(argv: Sequence[str]) -> str:
    """The command line as a shell takes it, with every path cut to its last part and `python -m` left out."""
    words = [_last_part(word) for word in argv]
    if len(words) > 2 and words[0].startswith("python") and words[1] == "-m":
        words = [words[2].rsplit(".", 1)[-1], *words[3:]]
    return printable(shlex.join(words))


def _last_part(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if "/" in value and "://" not in value and not any(char in " {\n" for char in value):
        value = PurePosixPath(value).name or value
    return flag + equals + value


def program_name(argv: Sequence[str]) -> str:
    """The script that a command line runs, else its program, without folders."""
    script = next((word for word in argv if word.endswith((".py", ".sh"))), argv[0] if argv else "The command")
    return script.rsplit("/", 1)[-1]
