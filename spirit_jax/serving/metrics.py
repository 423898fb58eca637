"""Counts of a server, in the form that Prometheus reads."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from spirit_jax.serving.worker import Worker

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counts of one server.

    Attributes:
      requests: by endpoint and status.
      seconds: of requests, by endpoint.
      speech: seconds of speech that were generated.
    """

    def __init__(self, worker: Worker):
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "spirit_requests", "HTTP requests", ["endpoint", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "spirit_request_seconds",
            "Duration of HTTP requests",
            ["endpoint"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.speech = Counter(
            "spirit_speech_seconds", "Seconds of generated speech", registry=self._registry
        )
        self._registry.register(_WorkerCollector(worker))

    def render(self) -> bytes:
        """The text of all counts."""
        return generate_latest(self._registry)


class _WorkerCollector(Collector):
    def __init__(self, worker: Worker):
        self._worker = worker

    def collect(self):
        worker = self._worker
        yield GaugeMetricFamily("spirit_generations", "Generations that wait or run", worker.live)
        yield CounterMetricFamily("spirit_tokens", "Generated tokens", worker.tokens)
        yield CounterMetricFamily(
            "spirit_aborted", "Generations whose client left before their end", worker.aborted
        )
