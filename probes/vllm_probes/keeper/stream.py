"""The one way of every event: written, judged, applied to the model, sent to the views."""

import socket
import time
from collections.abc import Callable
from typing import Literal

from vllm_probes.events import (
    AttemptStarted,
    Conclusion,
    Event,
    LogRecorded,
    ModelRestored,
    Observation,
    Stamp,
    TroubleNoted,
)
from vllm_probes.judges.activity import Activity, follow
from vllm_probes.judges.judging import Knowledge, Memory, judge
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.keeper.recording import Recorder, read_events
from vllm_probes.keeper.sample_filter import SampleFilter
from vllm_probes.model import SessionModel, snapshot


class Stream:
    """Stamps and publishes; continues the recording that it finds."""

    def __init__(self, folder: SessionFolder, knowledge: Knowledge, send: Callable[[Event], None]) -> None:
        self.model = SessionModel()
        self._knowledge, self._send = knowledge, send
        self._memory = Memory()
        self.activity = Activity()
        """What has moved when, of everything that was published."""
        self._node = socket.gethostname()
        self._filter = SampleFilter()
        self.attempt = 0
        self.last_line_number = 0
        """Of the records of the attempt's log that an earlier keeper told."""
        missing = self._continue(folder) if folder.events.exists() else []
        self._recorder = Recorder(folder.events)
        self._disk_trouble = False
        for conclusion in missing:
            self.publish(conclusion)

    @property
    def is_new(self) -> bool:
        """Nothing was recorded before."""
        return not self.model.session

    @property
    def suspects(self) -> bool:
        """The latest look at stacks has shown what may be a hang."""
        return self._memory.of_verdict.suspicion is not None

    @property
    def is_stalled(self) -> bool:
        """The run is in a hang, also when nobody waits for it any more."""
        return self._memory.of_verdict.stalled is not None

    def stamp(self) -> Stamp:
        return Stamp(time=time.time(), mono=time.monotonic(), node=self._node, attempt=self.attempt)

    def publish(self, event: Event) -> None:
        """Take one event in, and every conclusion that follows from it."""
        if (recorded := self._filter.accept(event)) is not None:
            self._recorder.write(recorded)
        self.model.apply(event)
        self.activity = follow(self.activity, event)
        self._send(event)
        if recorded is not None and isinstance(recorded, Observation):
            self._memory, conclusions = judge(self._knowledge, self._memory, recorded)
            for conclusion in conclusions:
                self.publish(conclusion)
        self._watch_disk()

    def trouble(self, what: str, hint: str, severity: Literal["info", "warning", "error"] = "warning") -> None:
        """Tell of something that does not work."""
        self.publish(TroubleNoted(**self.stamp(), what=what, hint=hint, severity=severity))

    def retry(self) -> None:
        """Write what found no room on the disk before."""
        if self._recorder.error is not None:
            self._recorder.retry()
            self._watch_disk()

    def begin_attempt(self) -> int:
        """The number of the next attempt; its events carry it from now on."""
        self.attempt += 1
        self.last_line_number = 0
        self._filter.reset()
        return self.attempt

    def restored(self) -> ModelRestored:
        """The whole model, for a view that joins."""
        return ModelRestored(**self.stamp(), model=snapshot(self.model))

    def close(self) -> None:
        self._recorder.close()

    def _continue(self, folder: SessionFolder) -> list[Conclusion]:
        """Take the recording in; the conclusions from its last observation that a killed keeper did not write."""
        for event in read_events(folder.events):
            if event is None:
                self.model.unknown_line_count += 1
            else:
                self.model.apply(event)
        attempt = self.model.attempt
        self.attempt = attempt.number if attempt else 0
        is_closed = attempt is not None and attempt.over and attempt.exited is not None
        return [] if is_closed else self._judge_again(folder)

    def _judge_again(self, folder: SessionFolder) -> list[Conclusion]:
        """What an attempt that goes on has come to. After a closed one judges begin anew, and a day of it takes them
        seconds."""
        missing: list[Conclusion] = []
        for event in read_events(folder.events):
            if event is None:
                continue
            self.activity = follow(self.activity, event)
            if isinstance(event, Observation):
                self._memory, missing = judge(self._knowledge, self._memory, event)
                self._note_line(event)
            elif missing and type(event) is type(missing[0]):
                missing = missing[1:]
        return missing

    def _note_line(self, event: Observation) -> None:
        if isinstance(event, AttemptStarted):
            self.last_line_number = 0
        elif isinstance(event, LogRecorded):
            self.last_line_number = max(self.last_line_number, event.line_number)

    def _watch_disk(self) -> None:
        error = self._recorder.error
        if error is not None and not self._disk_trouble:
            self._disk_trouble = True
            trouble = TroubleNoted(
                **self.stamp(),
                what=f"The recording cannot be written: {error.strerror}.",
                hint="Free some space on the disk of the session folder; vLLM's own log is missing lines, too.",
                severity="error",
            )
            self.model.apply(trouble)
            self._send(trouble)
        elif error is None:
            self._disk_trouble = False
