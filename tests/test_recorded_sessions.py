"""Recorded sessions judged again: without its conclusions, a recording gives the same ones.

`sessions/` holds recordings of real runs (vLLM 0.32 on the CPU, two ranks; the demo), with paths and host replaced.
"""

from pathlib import Path

import pytest

from vllm_probes.events import Conclusion, Event, ModelRestored, Observation, Stamp, VerdictChanged
from vllm_probes.judges.frames import load_frames
from vllm_probes.judges.judging import Knowledge, Memory, judge
from vllm_probes.judges.rules import load_rules
from vllm_probes.keeper.recording import read_events
from vllm_probes.model import SessionModel, restore, snapshot

RECORDINGS = sorted(Path(__file__).with_name("sessions").glob("*.jsonl"))


def events_of(path: Path) -> list[Event]:
    events = [event for event in read_events(path) if event is not None]
    assert len(events) > 10
    return events


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_judged_again_it_gives_the_same(path: Path) -> None:
    events, knowledge = events_of(path), Knowledge(load_rules().by_id, load_frames())
    memory, conclusions = Memory(), []
    for event in events:
        if isinstance(event, Observation):
            memory, more = judge(knowledge, memory, event)
            conclusions += more
    assert conclusions == [event for event in events if isinstance(event, Conclusion)]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_model_survives_the_way_to_a_view(path: Path) -> None:
    model = SessionModel()
    for event in events_of(path):
        model.apply(event)
        stamp = Stamp(time=event.time, mono=event.mono, node=event.node, attempt=event.attempt)
        assert restore(ModelRestored(**stamp, model=snapshot(model))) == model


def test_there_are_recordings() -> None:
    assert {path.stem for path in RECORDINGS} >= {"demo", "real-two-ranks", "real-port-in-use", *HANGS}


HANGS = {
    "real-hang-lock": ("rank_absent", "Worker_TP1", "lock"),
    "real-hang-exception": ("rank_absent", "Worker_TP1", "idle"),
    "real-hang-native": ("rank_absent", "Worker_TP0", "native_loop"),
    "real-hang-stopped": ("process_stopped", "Worker_TP0", "stopped"),
    "real-hang-scheduler": ("engine_stuck", "EngineCore", "lock"),
    "real-hang-front": ("frontend_stuck", "APIServer", "lock"),
    "real-hang-weights": ("load_stuck", "Worker_TP0", "read"),
    "real-hang-download": ("download_stuck", "APIServer", "socket"),
}


@pytest.mark.parametrize("name", HANGS)
def test_a_recorded_hang_is_found(name: str) -> None:
    verdicts = [
        event for event in events_of(Path(__file__).with_name("sessions") / f"{name}.jsonl")
        if isinstance(event, VerdictChanged)
    ]  # fmt: skip
    assert [one.health for one in verdicts][:2] == ["suspect", "stalled"]
    kind, process, doing = HANGS[name]
    assert (verdicts[1].kind, verdicts[1].culprits[0].process, verdicts[1].culprits[0].doing) == (kind, process, doing)


def test_the_exception_that_a_rank_logged_is_evidence() -> None:
    path = Path(__file__).with_name("sessions") / "real-hang-exception.jsonl"
    verdict = next(event for event in events_of(path) if isinstance(event, VerdictChanged))
    assert (verdict.evidence[0].signal, verdict.evidence[0].file) == ("exception of Worker_TP1", "attempt-1.log")
    assert verdict.evidence[0].value == "RuntimeError: a rank that fails (line 145 of the log)"
