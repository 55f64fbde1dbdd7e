"""What the program that asks the GPU driver says: one JSON line each on its standard output.

Whoever speaks these lines can take its place, a simulated driver too. Nothing here needs the driver's library.
"""

from typing import Literal

import msgspec

from vllm_probes.rows import GpuCard, GpuRow, Row


class Opened(Row, frozen=True, kw_only=True, tag_field="line", tag="opened"):
    """The driver answered: said first, and again whenever it was opened anew."""

    driver: str | None = None
    cuda: str | None = None
    """Versions: of the driver, and the newest CUDA that it can run."""


class Looked(Row, frozen=True, kw_only=True, tag_field="line", tag="looked"):
    """One look at every GPU, every second."""

    rows: list[GpuRow]
    """Of every GPU."""
    cards: list[GpuCard] = []
    """Those that are new or that have changed; a GPU that has never answered has none."""


class Faulted(Row, frozen=True, kw_only=True, tag_field="line", tag="faulted"):
    """The driver reported an Xid."""

    index: int
    xid: int


class Ended(Row, frozen=True, kw_only=True, tag_field="line", tag="ended"):
    """The last line: why there is nothing to look at."""

    status: Literal["absent", "failed"]
    """`absent`: this host has no NVIDIA driver; `failed`: it has one that cannot be used."""
    reason: str
    """A sentence, and in another one what to do."""


GpuLine = Opened | Looked | Faulted | Ended

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[GpuLine] = msgspec.json.Decoder(GpuLine)


def encode(line: GpuLine) -> bytes:
    """The line with its newline."""
    return _ENCODER.encode(line) + b"\n"


def decode(line: bytes) -> GpuLine | None:
    """What a line says; None for one that is torn or from somebody else (a library prints where it likes)."""
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
