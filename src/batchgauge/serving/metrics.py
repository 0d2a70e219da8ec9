"""What a server tells Prometheus: requests, tokens, waiting times, queue, batch and KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from batchgauge.serving.messages import State

# Bounds of histograms in seconds: of one step, and of whole requests.
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_REQUEST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0)


class Metrics(Collector):
    """Counters and histograms of a server; gauges are asked for when somebody looks.

    Satisfies `async_engine.Watch`; `follow` says whom to ask.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._state: Callable[[], State] = State
        self._restarts: Callable[[], int] = int

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"batchgauge_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(f"batchgauge_{name}", text, buckets=bounds, registry=self._registry)

        self._ended = counter("requests", "Requests that are over, by how they ended", "ended")
        self._refused = counter("requests_refused", "Requests refused as there was no room")
        self._prompt = counter("prompt_tokens", "Prompt tokens of requests that are over")
        self._tokens = counter("generated_tokens", "Tokens generated for requests that are over")
        self._ttft = histogram(
            "time_to_first_token_seconds", "From a request to its first token", _REQUEST_S
        )
        self._between = histogram("inter_token_latency_seconds", "From token to token", _STEP_S)
        self._whole = histogram(
            "request_duration_seconds", "From a request to its end, however it ended", _REQUEST_S
        )
        self._registry.register(self)

    def follow(self, state: Callable[[], State], restarts: Callable[[], int]) -> None:
        """Ask these for the gauges from now on."""
        self._state, self._restarts = state, restarts

    def refused(self) -> None:
        """A request was refused."""
        self._refused.inc()

    def first_token(self, seconds: float) -> None:
        """The first token of a request came."""
        self._ttft.observe(seconds)

    def next_tokens(self, seconds: float, count: int) -> None:
        """More tokens came."""
        for _ in range(count):
            self._between.observe(seconds / count)

    def ended(self, how: str, seconds: float, prompt_tokens: int, tokens: int) -> None:
        """A request is over."""
        self._ended.labels(how).inc()
        self._prompt.inc(prompt_tokens)
        self._tokens.inc(tokens)
        self._whole.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The gauges, for the registry."""
        state = self._state()
        for name, text, value in (
            ("requests_waiting", "Requests that wait for a place in the batch", state.waiting),
            ("batch_size", "Requests in the batch", state.running),
            ("kv_cache_used_bytes", "KV cache of requests in the batch", state.kv_used_bytes),
            ("kv_cache_bytes", "KV cache that requests may take, or have taken", state.kv_bytes),
            ("steps", "Steps of the model that its present workers have made", state.steps),
            ("worker_restarts", "Workers that were started in place of others", self._restarts()),
        ):
            yield GaugeMetricFamily(f"batchgauge_{name}", text, value)

    def text(self) -> tuple[bytes, str]:
        """Everything in Prometheus' text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
