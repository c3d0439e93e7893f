"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fathom.engine.server.backend import Service

CONTENT_TYPE = prometheus.CONTENT_TYPE_PLAIN_0_0_4
Outcome = Literal["finished", "cancelled", "failed"]

# of Service.stats: whether it only ever grows, and what it is
ENGINE = {
    "running": (False, "completions that are being written"),
    "waiting": (False, "completions that wait for room"),
    "blocks_used": (False, "blocks of the cache that hold something in use"),
    "blocks_total": (False, "blocks of the cache"),
    "version": (False, "version of the weights"),
    "prompt_tokens_total": (True, "tokens of prompts"),
    "completion_tokens_total": (True, "tokens of completions"),
    "cached_tokens_total": (True, "prompt tokens that were in the cache"),
    "preemptions_total": (True, "completions put back to waiting for want of blocks"),
    "failures_total": (True, "steps that failed; what was under way failed with them"),
    "drafted_total": (True, "tokens drafted by speculation"),
    "accepted_total": (True, "drafted tokens that were accepted"),
}
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class _Engine(Collector):
    """The engine's own figures, read when they are asked for."""

    def __init__(self, service: Service):
        self._service = service

    def collect(self) -> Iterator[Metric]:
        stats = self._service.stats()
        for key, (grows, about) in ENGINE.items():
            family = CounterMetricFamily if grows else GaugeMetricFamily
            yield family(f"fathom_engine_{key}", about, value=stats[key])


class Metrics:
    """Counts requests from start to end: started = finished + cancelled + failed + running, at every moment."""

    def __init__(self, service: Service):
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = prometheus.CollectorRegistry(auto_describe=True)
        self.registry.register(_Engine(service))
        self.http = prometheus.Counter(
            "fathom_http_requests", "answers by route and status; 499: the client had gone", ("route", "status"),
            registry=self.registry)
        self._started = prometheus.Counter(
            "fathom_requests_started", "requests that reached the engine", registry=self.registry)
        self._ended = prometheus.Counter(
            "fathom_requests_ended", "how they ended", ("outcome",), registry=self.registry)
        for outcome in ("finished", "cancelled", "failed"):
            self._ended.labels(outcome)
        self._running = prometheus.Gauge(
            "fathom_requests_running", "those that have not ended", registry=self.registry)
        self.first_token = prometheus.Histogram(
            "fathom_first_token_seconds", "from a request's arrival to its first token", buckets=SECONDS,
            registry=self.registry)
        self.token = prometheus.Histogram(
            "fathom_token_seconds", "between a completion's tokens; those that one step brought share its time",
            buckets=TOKEN_SECONDS, registry=self.registry)
        self.duration = prometheus.Histogram(
            "fathom_request_seconds", "from a request's arrival to its end", buckets=SECONDS,
            registry=self.registry)

    def start(self) -> None:
        """A request has reached the engine."""
        self._started.inc()
        self._running.inc()

    def end(self, outcome: Outcome) -> None:
        """A request that was started has ended."""
        self._running.dec()
        self._ended.labels(outcome).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)
