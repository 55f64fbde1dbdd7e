"""Which requests take part in a step."""

from collections import deque
from dataclasses import dataclass, field

MAX_RUNNING = 16
KV_CACHE_TOKENS = 40_000
SHARED_PROMPT_TOKENS = 64
"""All prompts begin with the same text, so this much of each is found in the prefix cache."""


@dataclass
class Request:
    """A request, with what it still has to produce."""

    request_id: str
    prompt_tokens: int
    tokens_left: int
    tokens_done: int = 0


@dataclass
class StepOutput:
    """What one step did: goes to the API server, which makes metrics of it. Token counts are of this step alone."""

    request_ids: list[str] = field(default_factory=list)
    """Those that got a token."""
    finished_ids: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    prefix_hits: int = 0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    """0 to 1."""


class Scheduler:
    """First come, first served."""

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add_request(self, request: Request) -> None:
        self.waiting.append(request)

    def has_requests(self) -> bool:
        return bool(self.waiting or self.running)

    def schedule(self) -> tuple[list[str], StepOutput]:
        """The ids of the next step's requests, and its output as far as it is known before the step."""
        admitted = []
        while self.waiting and len(self.running) < MAX_RUNNING:
            admitted.append(self.waiting.popleft())
            self.running.append(admitted[-1])
        output = StepOutput(
            prompt_tokens=sum(request.prompt_tokens for request in admitted),
            prefix_hits=sum(min(request.prompt_tokens, SHARED_PROMPT_TOKENS) for request in admitted),
        )
        return [request.request_id for request in self.running], output

    def update_from_output(self, output: StepOutput) -> StepOutput:
        """Book one token for every running request, let the finished ones go, complete the output."""
        output.request_ids = [request.request_id for request in self.running]
        for request in self.running:
            request.tokens_done += 1
            request.tokens_left -= 1
        output.finished_ids = [request.request_id for request in self.running if request.tokens_left <= 0]
        self.running = [request for request in self.running if request.tokens_left > 0]
        output.running, output.waiting = len(self.running), len(self.waiting)
        held_tokens = sum(request.prompt_tokens + request.tokens_done for request in self.running)
        output.kv_usage = min(1.0, held_tokens / KV_CACHE_TOKENS)
        return output
