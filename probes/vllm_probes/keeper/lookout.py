"""Notices that a run has fallen quiet, says so, and has stacks taken as long as that may mean something."""

from collections.abc import Collection
from pathlib import Path

from vllm_probes.events import ActivitySampled
from vllm_probes.judges.probing import is_unanswered
from vllm_probes.judges.scene import stage_of
from vllm_probes.judges.verdict import SERVER_MOVES
from vllm_probes.keeper.stream import Stream
from vllm_probes.sensors import ports

QUIET_AFTER_S = 3.0
"""A healthy step of a loaded server takes less; one long prefill may take longer, and its stacks move."""
TELL_EVERY_S = 5.0
SUSPECTED_EVERY_S = 2.5
"""Between looks at stacks while they show what may be a hang …"""
QUICK_LOOKS = 40
"""So many in a row: 100 s are enough for a start to be judged, and a script may be suspected for days."""
EARLY_S, EARLY_PAUSE_S, LONGEST_PAUSE_S = 60.0, 5.0, 30.0
"""… and else twice as long each time, up to the second of these in the first minute, for one look may mislead, and up
to the third later: an open connection without a request looks like work."""
ARRIVAL_S, ARRIVAL_EVERY_S = 12.0, 2.0
"""A run that was found running may hang since long, with nobody left who waits for it: it is looked at until tokens
have moved, as often as the second says and as long as the first."""
KNOWN_PAUSE_S = 600.0
"""Of a hang that is known: it may last a night, and each look leaves 50 kB and more in the session folder."""


class Lookout:
    """Looks once a second."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._work_mono: float | None = None
        self._told_mono: float | None = stream.stamp()["mono"] if stream.activity.is_attached else None
        """When the activity was told last; None: that it moves is no news. Of a run that was found running it is."""
        self._captured_mono: float | None = None
        self._pause_s = SUSPECTED_EVERY_S
        self._quick_looks = QUICK_LOOKS

    def look(self, port: int | None, probe_clients: Collection[str] | None = None, *, is_looking: bool = False) -> bool:
        """Tell of quiet; True: it is time for stacks.

        `probe_clients` are the connections of a probe that is on its way; None: there is none. `is_looking`: stacks are
        being taken at this moment, and the next have to wait for them.
        """
        now = self._stream.stamp()["mono"]
        arrives = self._has_just_come(now)
        is_time = arrives or self._is_time(now, port, probe_clients)
        if not is_time or is_looking or not self._is_due(now, arrives=arrives):
            return False
        if arrives:
            self._tell(self._connections(port, probe_clients or ()), probed=probe_clients is not None, found_still=True)
        return True

    def _is_time(self, now: float, port: int | None, probe_clients: Collection[str] | None) -> bool:
        moved_mono = self._moved_mono()
        if now - moved_mono < QUIET_AFTER_S:  # and nobody has to be asked who is connected
            self._work_mono = moved_mono
            self._wake(None, probed=probe_clients is not None)
            return False
        connections = self._connections(port, probe_clients or ())
        probed = probe_clients is not None or self._was_left_unanswered(moved_mono)
        if not self._has_work(connections, probed=probed):
            self._work_mono = None
            self._wake(connections, probed=False)
            return False
        self._work_mono = now if self._work_mono is None else self._work_mono
        if now - self._work_mono < QUIET_AFTER_S:
            return False
        if self._told_mono is None or now - self._told_mono >= TELL_EVERY_S:
            self._tell(connections, probed=probed)
        return True

    def _has_just_come(self, now: float) -> bool:
        """To a run that was found running, and of which nobody knows whether it gets on."""
        activity = self._stream.activity
        has_begun = now - activity.moved.get("start", now) < ARRIVAL_S
        return activity.is_attached and "tokens" not in activity.moved and has_begun

    def _is_due(self, now: float, *, arrives: bool) -> bool:
        if self._captured_mono is None:
            self._captured_mono = now
            return True
        is_open = self._stream.suspects and not self._stream.is_stalled and self._quick_looks > 0
        pause_s = ARRIVAL_EVERY_S if arrives else SUSPECTED_EVERY_S if is_open else self._pause_s
        if now - self._captured_mono < pause_s:
            return False
        if is_open:
            self._quick_looks -= 1
        elif not arrives:
            self._pause_s = min(2 * self._pause_s, self._longest_pause_s(now))
        self._captured_mono = now
        return True

    def _longest_pause_s(self, now: float) -> float:
        if self._stream.is_stalled or not self._quick_looks:
            return KNOWN_PAUSE_S
        is_early = self._work_mono is None or now - self._work_mono < EARLY_S
        return EARLY_PAUSE_S if is_early else LONGEST_PAUSE_S

    def _moved_mono(self) -> float:
        """A server moves tokens; whatever starts moves anything."""
        moved = self._stream.activity.moved
        if self._serves:
            moved = {what: mono for what, mono in moved.items() if what in SERVER_MOVES}
        return max(moved.values(), default=float("-inf"))

    def _was_left_unanswered(self, moved_mono: float) -> bool:
        """A server that has hung while it was idle hangs on when the probe that has found it is over."""
        attempt = self._stream.model.attempt
        probe = attempt.probe if attempt else None
        return probe is not None and is_unanswered(probe.lights) and probe.mono > moved_mono

    def _has_work(self, connections: int | None, *, probed: bool) -> bool:
        """Whatever starts has; of a server the gauges tell only if its first step has come to its end."""
        has_requests = bool(self._stream.activity.requests) or bool(connections) or probed
        return not self._serves or has_requests or self._stream.suspects

    @property
    def _serves(self) -> bool:
        return stage_of(self._stream.model.state, is_counted=self._stream.activity.is_counted) == "serves"

    def _connections(self, port: int | None, probe_clients: Collection[str]) -> int | None:
        attempt = self._stream.model.attempt
        if port is None or attempt is None:
            return None
        own = {int(client.rpartition(":")[2]) for client in (*attempt.own_clients, *probe_clients)}
        servers = [row.pid for row in self._stream.model.processes.values() if row.role == "api_server"]
        return len(ports.client_ports(port, *(Path(f"/proc/{pid}/net") for pid in servers[:1])) - own)

    def _wake(self, connections: int | None, *, probed: bool) -> None:
        if self._told_mono is not None:
            self._tell(connections, probed=probed)
        self._told_mono, self._captured_mono = None, None
        self._pause_s, self._quick_looks = SUSPECTED_EVERY_S, QUICK_LOOKS

    def _tell(self, connections: int | None, *, probed: bool, found_still: bool = False) -> None:
        stamp = self._stream.stamp()
        self._told_mono = stamp["mono"]
        activity = self._stream.activity
        moved = dict(activity.moved) | ({} if self._work_mono is None else {"work": self._work_mono})
        self._stream.publish(
            ActivitySampled(
                **stamp,
                moved=moved,
                requests=activity.requests,
                unanswered=activity.unanswered,
                connections=connections,
                probed=probed,
                found_still=found_still,
            )
        )
