"""Traces by OpenTelemetry, an extra: `loraplex[otel]`. Where they go, how many there are and what they are called, the
standard variables OTEL_... say, which its SDK reads.

Names of attributes are those of its semantic conventions for HTTP and for generative AI, which are still being
developed; those that it has none for begin with `loraplex`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from litestar.datastructures import Headers
from litestar.types import HTTPScope
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from loraplex import __version__
from loraplex.engine.messages import Embed, Generate
from loraplex.platform.observability.tracing import SequenceEnd, SequenceSpan, phases

OPERATIONS = {"completions": "text_completion", "embeddings": "embeddings"}
"""Of the conventions; all other endpoints are `chat`."""


CLOSE_SECONDS = 5.0


class OtelTracing:
    def __init__(self, provider: TracerProvider) -> None:
        """Whoever hands over the provider leaves it to `close`."""
        self._provider = provider
        self._tracer = provider.get_tracer("loraplex", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def exporting(cls) -> OtelTracing:
        """To a collector, by OTLP over HTTP, in batches from a thread of their own."""
        ours = Resource.create({"service.name": "loraplex", "service.version": __version__})
        provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    @contextmanager
    def request(self, scope: HTTPScope) -> Iterator[str | None]:
        if scope["method"] != "POST" or scope["route_handler"].opt.get("scope") != "inference":
            yield None
            return
        headers = Headers.from_scope(scope)
        given = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        route = scope["path_template"]
        attributes = {"http.request.method": scope["method"], "http.route": route, "url.scheme": scope["scheme"]}
        with self._tracer.start_as_current_span(
            f"{scope['method']} {route}",
            context=self._propagator.extract(given, Context()),
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield format_trace_id(span.get_span_context().trace_id)
            finally:
                _tell_response(span, scope)

    def span(self, name: str) -> AbstractContextManager[object]:
        return self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False)

    def sequence(self, endpoint: str, asked: Generate | Embed, model: str, tenant_id: str | None) -> SequenceSpan:
        operation = OPERATIONS.get(endpoint, "chat")
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "loraplex",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.response.id": asked.request_id,
            "gen_ai.usage.input_tokens": len(asked.prompt),
            "loraplex.adapters": len(asked.adapters),
        }
        if tenant_id is not None:
            attributes["loraplex.tenant.id"] = tenant_id
        if isinstance(asked, Generate):
            attributes["gen_ai.request.max_tokens"] = asked.sampling.max_tokens
            attributes["gen_ai.request.temperature"] = asked.sampling.temperature
        return _Sequence(self._tracer, self._tracer.start_span(f"{operation} {model}", attributes=attributes))

    def close(self) -> None:
        # A collector that is away must keep neither the server nor its process from ending.
        sender = threading.Thread(target=self._provider.shutdown, daemon=True)
        sender.start()
        sender.join(CLOSE_SECONDS)


class _Sequence:
    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._begun_at = time.monotonic()
        self._clock_offset_ns = time.time_ns() - time.monotonic_ns()

    def end(self, how: SequenceEnd) -> None:
        span = self._span
        if not span.is_recording():
            return
        inside = set_span_in_context(span, Context())
        for name, start, end in phases(self._begun_at, how):
            self._tracer.start_span(name, inside, start_time=self._at(start)).end(self._at(end))
        span.set_attribute("gen_ai.response.finish_reasons", [how.finish_reason])
        span.set_attribute("gen_ai.usage.output_tokens", how.completion_tokens)
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", how.cached_tokens)
        if how.started is not None:
            span.set_attribute("loraplex.adapter.state", "cold" if how.started.loads else "warm")
        if how.finish_reason == "error":
            span.set_status(StatusCode.ERROR)
        span.end(self._at(how.ended_at))

    def _at(self, moment: float) -> int:
        """As Unix time in nanoseconds."""
        return int(moment * 1e9) + self._clock_offset_ns


def _tell_response(span: Span, scope: HTTPScope) -> None:
    """A request without a status is one whose client went before there was a response."""
    state = scope["state"]
    if (status := state.get("status")) is not None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
    if (code := state.get("error_code")) is not None:
        span.set_attribute("error.type", code)
