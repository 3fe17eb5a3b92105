"""Traces of requests for OpenTelemetry: one span a request, and one for each of its stages."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol


class Tracing(Protocol):
    """Makes spans, or does nothing."""

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """The span of a request; what is put into the dict become its attributes."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The span of a stage of the request at hand."""

    def close(self) -> None:
        """Send what was not sent yet."""


class NoTracing:
    """Of a service that has no collector."""

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        yield {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def close(self) -> None: ...


class OtlpTracing:
    """Spans that are sent in batches; a collector that does not answer delays no request.

    Args:
        exporter: where spans go; see `to_collector`.
    """

    def __init__(self, exporter: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": "dml"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("dml.serving")

    @classmethod
    def to_collector(cls, address: str) -> "OtlpTracing":
        """Spans for a collector that takes OTLP over HTTP, at such as http://127.0.0.1:4318."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return cls(OTLPSpanExporter(endpoint=f"{address.rstrip('/')}/v1/traces"))

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract(dict(headers))
        attributes: dict[str, Any] = {"http.request.method": method}
        with self._tracer.start_as_current_span("request", context, SpanKind.SERVER) as span:
            try:
                yield attributes
            finally:
                span.update_name(f"{method} {attributes.get('http.route', '')}".strip())
                span.set_attributes(attributes)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with self._tracer.start_as_current_span(name, record_exception=False):
            yield

    def close(self) -> None:
        self._provider.shutdown()


def tracing_for(address: str | None) -> Tracing:
    """Spans for a collector; none without an address.

    Raises:
        ModuleNotFoundError: the extra `telemetry` is not installed.
    """
    return NoTracing() if address is None else OtlpTracing.to_collector(address)
