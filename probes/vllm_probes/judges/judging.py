"""Every judge, as one fold over the observations of a session."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllm_probes.events import Conclusion, Observation
from vllm_probes.judges import limits, state
from vllm_probes.judges.rules import Rule


@dataclass(frozen=True, slots=True)
class Memory:
    """What each judge remembers."""

    of_state: state.Memory = field(default_factory=state.Memory)
    of_limits: limits.Memory = field(default_factory=limits.Memory)


def judge(rules: Mapping[str, Rule], memory: Memory, event: Observation) -> tuple[Memory, list[Conclusion]]:
    """One observation in, the conclusions of all judges out, always in the same order."""
    of_state, states = state.step(rules, memory.of_state, event)
    of_limits, changes = limits.step(memory.of_limits, event)
    return replace(memory, of_state=of_state, of_limits=of_limits), [*states, *changes]
