"""Every judge, as one fold over the observations of a session."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from vllm_probes.events import Conclusion, Observation
from vllm_probes.judges import deadline, limits, state, verdict
from vllm_probes.judges.aftermath import Circumstances
from vllm_probes.judges.frames import FrameTable
from vllm_probes.judges.rules import Rule


class Knowledge(NamedTuple):
    """What the judges know of vLLM: rules of its log by id, and frames of its stacks."""

    rules: Mapping[str, Rule]
    frames: FrameTable


class Memory(msgspec.Struct, frozen=True):
    """What each judge remembers."""

    of_state: state.Memory = msgspec.field(default_factory=state.Memory)
    of_limits: limits.Memory = msgspec.field(default_factory=limits.Memory)
    of_verdict: verdict.Memory = msgspec.field(default_factory=verdict.Memory)
    of_deadline: deadline.Memory = msgspec.field(default_factory=deadline.Memory)


def judge(knowledge: Knowledge, memory: Memory, event: Observation) -> tuple[Memory, list[Conclusion]]:
    """One observation in, the conclusions of all judges out, always in the same order."""
    seen = memory.of_verdict
    circumstances = Circumstances(seen.hung(event.mono), seen.cards, seen.gpus, seen.rows)
    of_state, states = state.step(knowledge.rules, memory.of_state, event, circumstances)
    of_limits, changes = limits.step(memory.of_limits, event)
    of_verdict, verdicts = verdict.step(knowledge.frames, memory.of_verdict, event, of_state.state, of_state.phase)
    of_deadline, deadlines = deadline.step(memory.of_deadline, event, of_state.state, verdicts)
    return Memory(of_state, of_limits, of_verdict, of_deadline), [*states, *changes, *verdicts, *deadlines]
