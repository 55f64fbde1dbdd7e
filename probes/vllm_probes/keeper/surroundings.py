"""What a session looks at whether an attempt runs or not."""

from vllm_probes.keeper.folder import Launch
from vllm_probes.keeper.stream import Stream


class Surroundings:
    def __init__(self, stream: Stream, launch: Launch) -> None:
        self._stream, self._launch = stream, launch

    def look(self) -> None:
        return

    def close(self) -> None:
        return
