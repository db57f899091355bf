"""`/metrics`: what the engine counts (`generate.stats`) and the requests by route and status."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mgm_jax.generate.stats import Stats

# Fields of `Stats` -> what they are.
GAUGES = {
    "slots": "answers that can be written at a time",
    "occupied": "answers that are being written",
    "waiting": "requests that wait for a slot",
    "compiled": "shapes that are compiled",
    "to_compile": "shapes that there are",
    "tokens_per_second": "of all answers, over the last seconds",
}
COUNTERS = {
    "prompt_tokens": "of prompts, pictures included",
    "reused_tokens": "of prompts, those that were in memory already",
    "answer_tokens": "of answers",
    "rounds": "of the engine",
    "first_token_seconds": "to the first tokens, summed over requests",
    "seconds": "to the ends of answers, summed over requests",
}


class EngineCollector:
    """An engine's counts as metrics, read when they are asked for."""

    def __init__(self, stats: Stats):
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        values = self._stats.snapshot()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"mgm_{name}", text, value=values[name])
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"mgm_{name}", text, value=values[name])
        finished = CounterMetricFamily("mgm_finished", "answers by how they ended", labels=["why"])
        for why, count in values["finished"].items():
            finished.add_metric([why], count)
        yield finished


class Requests:
    """Counts of HTTP requests and the seconds that they took."""

    def __init__(self, registry: CollectorRegistry):
        labels = ("route", "status")
        self._count = Counter("mgm_requests", "HTTP requests", labels, registry=registry)
        self._seconds = Histogram(
            "mgm_request_seconds", "to the end of the response", ("route",), registry=registry
        )

    def saw(self, route: str, status: int, seconds: float) -> None:
        """`route`: one of the server's own; others would be as many as strangers like."""
        self._count.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)
