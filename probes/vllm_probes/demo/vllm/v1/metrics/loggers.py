"""What the API server makes of step outputs: the page of /metrics and the line of statistics every ten seconds.

Names, buckets and the rule for idle engines are those of vLLM 0.32 (v1/metrics/loggers.py, buckets.py).
"""

from dataclasses import dataclass

from vllm_probes.demo.log_format import log_at
from vllm_probes.demo.vllm.v1.core.sched.scheduler import StepOutput
from vllm_probes.demo.vllm.v1.metrics.exposition import Histogram, Metric, exposition

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_INTER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)
"""As far as the demo can get: vLLM has some more above."""


@dataclass
class _RequestTimes:
    """When it came, when the step with its first token began, when that and the latest one came; 0: not yet."""

    arrived_at: float
    scheduled_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0


class EngineStats:
    """Counters, gauges and histograms of one engine. Gauges move with step outputs only, as in vLLM."""

    def __init__(self, model: str) -> None:
        self._labels = {"engine": "0", "model_name": model}
        self._running = Metric("gauge", "vllm:num_requests_running")
        self._waiting = Metric("gauge", "vllm:num_requests_waiting")
        self._kv_usage = Metric("gauge", "vllm:kv_cache_usage_perc")
        self._awake = Metric("gauge", "vllm:engine_sleep_state", sleep_state="awake")
        self._awake.value = 1.0
        self._prefix_queries = Metric("counter", "vllm:prefix_cache_queries")
        self._prefix_hits = Metric("counter", "vllm:prefix_cache_hits")
        self._preemptions = Metric("counter", "vllm:num_preemptions")
        self._prompt_tokens = Metric("counter", "vllm:prompt_tokens")
        self._generation_tokens = Metric("counter", "vllm:generation_tokens")
        self._finished = Metric("counter", "vllm:request_success", finished_reason="length")
        self._iteration_tokens = Histogram("vllm:iteration_tokens_total", 1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
        self._first_token_s = Histogram("vllm:time_to_first_token_seconds", *_FIRST_TOKEN_S)
        self._inter_token_s = Histogram("vllm:inter_token_latency_seconds", *_INTER_TOKEN_S)
        self._queue_s = Histogram("vllm:request_queue_time_seconds", *_REQUEST_S)
        self._prefill_s = Histogram("vllm:request_prefill_time_seconds", *_REQUEST_S)
        self._request_s = Histogram("vllm:e2e_request_latency_seconds", *_REQUEST_S)
        self._requests: dict[str, _RequestTimes] = {}
        self._step_ended_at = 0.0
        self._logged_tokens = (0.0, 0.0)
        self._was_idle = False

    def page(self) -> str:
        """The body of /metrics."""
        metrics = [metric for metric in vars(self).values() if isinstance(metric, Metric | Histogram)]
        return exposition(metrics, self._labels)

    def record_arrival(self, request_id: str, now: float) -> None:
        self._requests[request_id] = _RequestTimes(arrived_at=now)

    def record_step(self, output: StepOutput, now: float) -> None:
        """Book one step output that came at `now`, in seconds of any steady clock."""
        self._running.value, self._waiting.value = output.running, output.waiting
        self._kv_usage.value = output.kv_usage
        self._prompt_tokens.value += output.prompt_tokens
        self._prefix_queries.value += output.prompt_tokens
        self._prefix_hits.value += output.prefix_hits
        self._generation_tokens.value += len(output.request_ids)
        self._iteration_tokens.observe(output.prompt_tokens + len(output.request_ids))
        for request_id in output.request_ids:
            self._record_token(request_id, now)
        for request_id in output.finished_ids:
            self._record_end(self._requests.pop(request_id), now)
        self._step_ended_at = now

    def log(self, interval_s: float) -> None:
        """The line for the last interval; none after two intervals without a token."""
        tokens = (self._prompt_tokens.value, self._generation_tokens.value)
        prompt, generation = ((new - old) / interval_s for new, old in zip(tokens, self._logged_tokens, strict=True))
        is_idle = tokens == self._logged_tokens
        if not (is_idle and self._was_idle):
            hit_rate = self._prefix_hits.value / max(1.0, self._prefix_queries.value)
            log_at(
                "loggers.py:335",
                f"Engine 000: Avg prompt throughput: {prompt:.1f} tokens/s, "
                f"Avg generation throughput: {generation:.1f} tokens/s, Running: {self._running.value:.0f} reqs, "
                f"Waiting: {self._waiting.value:.0f} reqs, GPU KV cache usage: {self._kv_usage.value:.1%}, "
                f"Prefix cache hit rate: {hit_rate:.1%}",
            )
        self._logged_tokens, self._was_idle = tokens, is_idle

    def _record_token(self, request_id: str, now: float) -> None:
        request = self._requests[request_id]
        if request.last_token_at:
            self._inter_token_s.observe(now - request.last_token_at)
        else:
            request.scheduled_at = max(request.arrived_at, self._step_ended_at)
            request.first_token_at = now
            self._first_token_s.observe(now - request.arrived_at)
        request.last_token_at = now

    def _record_end(self, request: _RequestTimes, now: float) -> None:
        self._finished.value += 1
        self._queue_s.observe(request.scheduled_at - request.arrived_at)
        self._prefill_s.observe(request.first_token_at - request.scheduled_at)
        self._request_s.observe(now - request.arrived_at)
