"""Numbers for Prometheus: requests as they begin and end. What is read at the scrape alone are collectors of their own,
in `observability/`, which `services` registers here.

No label holds a key, and none a tenant or an adapter but those of `observability/owners` and of vLLM's LoRA metric.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from loraplex.engine.generation import Generation
from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.observability.in_hand import InHand, RequestsInHand
from loraplex.platform.observability.owners import Labels, Owner, OwnerMetrics, Used
from loraplex.platform.tenants import Principal

LATENCY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LOAD_SECONDS = (0, *LATENCY_SECONDS)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Owns its registry, so that a process may hold several."""

    def __init__(self, *, owner_series: int = 0, owner_labels: Labels = "ids") -> None:
        """owner_series: how many tenants, and how many adapters, have series of their own; 0: there are none."""
        self.registry = CollectorRegistry()
        self.in_hand = RequestsInHand()
        self._owners = OwnerMetrics(owner_series)
        self._owner_labels = owner_labels
        self.registry.register(self.in_hand)
        if owner_series:
            self.registry.register(self._owners)
        self._http_requests = self._counter(
            "http_requests", "HTTP responses begun, by route template.", "method", "route", "status"
        )
        self._errors = self._counter("errors", "Responses that are errors, by the code in them.", "status", "code")
        self._limited = self._counter(
            "limited_requests", "Requests refused with 429, by whose limit was reached and which.", "owner", "limit"
        )
        self.requests = self._counter(
            "requests", "Inference requests ended, each choice of them, by reason.", "endpoint", "finish_reason"
        )
        tokens = self._counter("tokens", "Tokens of ended requests; prompt tokens include cached ones.", "kind")
        self._prompt, self._cached, self._completion = map(tokens.labels, ("prompt", "cached", "completion"))
        self.first_token = self._histogram("time_to_first_token", "Until the first token.", LATENCY_SECONDS)
        self.next_token = self._histogram("time_per_output_token", "Between tokens, mean of a request.", TOKEN_SECONDS)
        self.duration = self._histogram("request_duration", "Whole inference request.", LATENCY_SECONDS)
        self.queue = self._histogram("queue", "Until the first step, without loads.", LATENCY_SECONDS)
        self._load = self._histogram("adapter_load", "Requests' waits for their adapters, 0 where warm.", LOAD_SECONDS)
        self._loop_lag = self._histogram("event_loop_lag", "How late the API's event loop wakes.", LAG_SECONDS)
        self._audited = self._counter("audit_entries", "Entries of the audit log that this server wrote.")

    def http_response(self, method: str, route: str, status: int) -> None:
        """`route` is a template such as /api/v1/adapters/{name}, never a path: paths have no end."""
        self._http_requests.labels(method, route, str(status)).inc()

    def error(self, status: int, code: str | None) -> None:
        """An error was told. code: one of `errors`, never a client's words."""
        self._errors.labels(str(status), code or "none").inc()

    def limited(self, owner: str, limit: str) -> None:
        """A limit of that kind, of a key, a tenant or an adapter, has refused a request."""
        self._limited.labels(owner, limit).inc()

    def loop_was_late(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    def audited(self, entries: int = 1) -> None:
        """So many entries of the audit log were committed."""
        self._audited.inc(entries)

    def request_begun(self, principal: Principal, model: ResolvedModel, generation: Generation) -> InHand:
        """The engine has a sequence, until `request_finished` gets back what this returns."""
        return self.in_hand.add(Owner.of(principal, model, self._owner_labels), generation)

    def request_started(self, queue_seconds: float, load_seconds: float | None) -> None:
        """An inference request is in a step for the first time. `load_seconds` None: it has no adapter."""
        self.queue.observe(queue_seconds)
        if load_seconds is not None:
            self._load.observe(load_seconds)

    def request_finished(
        self,
        endpoint: str,
        finish_reason: str,
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        ttft_seconds: float | None,
        total_seconds: float,
        in_hand: InHand | None = None,
    ) -> None:
        """Count one choice of an inference request, however it ended. `ttft_seconds` None: there was no token."""
        self.requests.labels(endpoint, finish_reason).inc()
        self._prompt.inc(prompt_tokens)
        self._cached.inc(cached_tokens)
        self._completion.inc(completion_tokens)
        self.duration.observe(total_seconds)
        if in_hand is not None:
            self.in_hand.remove(in_hand)
            self._owners.count(in_hand.owner, Used(1, prompt_tokens, cached_tokens, completion_tokens))
        if ttft_seconds is None:
            return
        self.first_token.observe(ttft_seconds)
        if completion_tokens > 1:
            self.next_token.observe((total_seconds - ttft_seconds) / (completion_tokens - 1))

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"loraplex_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"loraplex_{name}_seconds", text, buckets=buckets, registry=self.registry)
