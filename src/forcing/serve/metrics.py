"""What a gateway counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """One registry for each gateway, so that several can live in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sessions = self._gauge("sessions", "sessions in each state", "state")
        self.engines = self._gauge("engines", "engines in each state", "state")
        self.slots = self._gauge("slots", "sessions that engines can serve at once")
        self.draining = self._gauge("draining", "1 while the gateway stops")
        self.pictures = self._counter("pictures", "pictures that were sent")
        self.bytes = self._counter("picture_bytes", "bytes of pictures that were sent")
        self.dropped = self._counter("dropped_chunks", "chunks that were made and not sent", "why")
        self.refused = self._counter("refused_sessions", "sessions that were not begun", "why")
        self.disconnects = self._counter("disconnects", "sockets that ended", "reason")
        self.protocol_errors = self._counter("protocol_errors", "messages that were not understood or too many", "code")
        self.restarts = self._counter("engine_restarts", "engines that were started again")
        self.stalls = self._counter("engine_stalls", "engines that were killed because they hung")
        self.failures = self._counter("session_failures", "sessions that the engine gave up", "code")
        self.memory = self._counter("oom", "sessions that there was no memory for")
        self.queued = self._histogram("queue_seconds", "from asking for a session until there was room")
        self.age = self._histogram("frame_age_seconds", "age of pictures when viewers saw them, as they say")
        self.waited = self._histogram("credit_wait_seconds", "without a chunk that may be made")
        self.applied = self._histogram("prompt_apply_seconds", "from a prompt until it is seen")

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"forcing_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"forcing_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"forcing_{name}", text, buckets=SECONDS, registry=self.registry)
