"""Log lines and progress bars in the shapes of vLLM 0.32 (logger.py and logging_utils/formatter.py; tqdm for bars)."""

import logging
import sys

LOGGER = logging.getLogger("vllm_probes.demo")


class NewLineFormatter(logging.Formatter):
    """Repeats the prefix on every line of a record and ends all but the last with a carriage return, as vLLM does."""

    def __init__(self) -> None:
        super().__init__(
            "(%(processName)s pid=%(process)d) %(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s",
            datefmt="%m-%d %H:%M:%S",
        )

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        prefix = text[: text.index("] ") + 2]
        return text.replace("\n", "\r\n" + prefix)


def configure() -> None:
    """Send the log to standard output, as vLLM does."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(NewLineFormatter())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def log_at(place: str, message: str, level: str = "INFO") -> None:
    """Log a message as if it came from `place`, a `file.py:line` of vLLM."""
    file, _, line = place.partition(":")
    number = logging.getLevelNamesMapping()[level]
    LOGGER.handle(LOGGER.makeRecord(LOGGER.name, number, file, int(line), message, (), None))


def uvicorn_line(message: str) -> None:
    """A line of uvicorn's own logger: no vLLM prefix, standard error."""
    print(f"INFO:     {message}", file=sys.stderr, flush=True)


def shards_bar(title: str, done: int, total: int, elapsed_s: float) -> str:
    """One state of the bar of weight_utils.py: plain text, a line of its own, an empty line at the end."""
    state = f"\r{title}: {done / total:4.0%} Completed | {done}/{total} {_pace(done, total, elapsed_s)}\n"
    return state if done < total else state + "\n"


def capture_bar(title: str, done: int, total: int, elapsed_s: float) -> str:
    """One state of a classic tqdm bar, which overwrites the one before and ends its line only when it is full."""
    blocks = "█" * (10 * done // total)
    state = f"\r{title}: {done / total:4.0%}|{blocks:<10}| {done}/{total} {_pace(done, total, elapsed_s)}"
    return state if done < total else state + "\n"


def _pace(done: int, total: int, elapsed_s: float) -> str:
    if done == 0:
        return f"[{_clock(elapsed_s)}<?, ?it/s]"
    remaining_s = elapsed_s * (total - done) / done
    each_s = elapsed_s / done
    speed = f"{each_s:5.2f}s/it" if each_s > 1 else f"{1 / max(each_s, 1e-6):5.2f}it/s"
    return f"[{_clock(elapsed_s)}<{_clock(remaining_s)}, {speed}]"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
