"""Which processes put their name in front of lines of a log.

Found only once somebody asks: looking at every prefix costs as much as indexing the log.
"""

import re
from typing import TYPE_CHECKING

from vllm_probes.log.heads import COLOUR
from vllm_probes.log.line import COLLECTOR, clean, parse_line

if TYPE_CHECKING:
    from vllm_probes.log.index import LogIndex
    from vllm_probes.log.rows import Block

# Prefixes nest under fork: a group that repeats gives the last, which is the process that wrote the line.
_PREFIXED = re.compile(
    rb"\n(?:%(collector)s)*[ \t]*"
    rb"(?:%(c)s\(([A-Za-z][^()=\n]*?)(?: rank=\d+)? pid=(\d+)(?:, ip=[^()\n]+)?\)%(c)s ?)+"
    % {b"collector": COLLECTOR.pattern.encode(), b"c": COLOUR}
)
_JSON = b'"processName"'


class Writers:
    """Names by pid, in the order in which they first appear. `refresh` makes it follow the index."""

    def __init__(self, index: "LogIndex") -> None:
        self._index = index
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._generation = self._index.generation
        self._next_line = 0
        self.names: dict[int, str] = {}
        """Every process by the name that it had last: a worker gets its rank only after its first lines."""

    def refresh(self, budget_bytes: int = 1 << 20) -> bool:
        """Look at lines that the index has gained, within a budget; True when more are waiting."""
        if self._generation != self._index.generation:
            self._begin_anew()
        while (finished := self._index.finished_lines) > self._next_line and budget_bytes > 0:
            block = self._index.block(self._index.block_of(self._next_line))
            self._take(block)
            budget_bytes -= sum(map(len, block.raws))
            self._next_line = min(finished, block.next_line)
        return self._index.finished_lines > self._next_line

    def _take(self, block: "Block") -> None:
        data = b"\n" + b"\n".join(block.raws)
        self.names.update({int(pid): name.decode("utf-8", "replace") for name, pid in _PREFIXED.findall(data)})
        if _JSON in data:
            records = [parse_line(clean(raw)) for raw in block.raws if _JSON in raw]
            self.names.update({record.pid: record.process for record in records if record.pid and record.process})
