"""OpenTelemetry traces, when an endpoint for them is configured: one span a request, the client's trace continued and passed on to the pod.

The libraries are an extra (`corral[tracing]`) and are imported only when they are wanted; without an endpoint a request costs one comparison. Spans
are sent in the background by OpenTelemetry's own exporter, which reads the standard `OTEL_*` variables by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from corral.gateway.requests import Request

if TYPE_CHECKING:
    from corral.gateway.exchange import Exchange

log = logging.getLogger("corral.gateway")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
CONTEXT = (b"traceparent", b"tracestate")


class Tracing:
    """Made once for a gateway. `begin` gives a request's span, `end` closes it."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        resource = Resource.create()  # what the environment says
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "corral-gateway"}))
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("corral.gateway")
        self._context = TraceContextTextMapPropagator()
        self._in_context = set_span_in_context
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR

    def begin(self, request: Request) -> Any:
        carrier = {name.decode(): request.known[name].decode("latin-1") for name in CONTEXT if name in request.known}
        path = request.path or request.target.decode("latin-1")
        attributes = {"http.request.method": request.method.decode(), "url.path": path}
        return self._tracer.start_span(f"{attributes['http.request.method']} {path}", self._context.extract(carrier), self._kind, attributes)

    def lines(self, span: Any) -> list[bytes]:
        """The span as headers for the pod: name, colon, value, end of line, and so forth."""
        carrier: dict[str, str] = {}
        self._context.inject(carrier, self._in_context(span))
        lines: list[bytes] = []
        for name, value in carrier.items():
            lines += (name.encode(), b": ", value.encode(), b"\r\n")
        return lines

    def end(self, exchange: Exchange) -> None:
        span = exchange.span
        span.set_attribute("http.response.status_code", exchange.status)
        span.set_attribute("corral.request_id", exchange.request_id.decode())
        if exchange.key:
            span.set_attribute("corral.model", exchange.key)
        if exchange.grant is not None:
            span.set_attribute("corral.replica", exchange.grant.replica.pod)
        if not exchange.was_resident:
            span.set_attribute("corral.waited_ms", round(exchange.waited * 1000))
        if exchange.status >= 500:
            span.set_status(self._error)
        span.end()

    def close(self) -> None:
        """Send what is left. Blocks for as long as the collector takes, a few seconds at most."""
        self._provider.shutdown()


def tracing_from(environment: Mapping[str, str]) -> Tracing | None:
    """Tracing, when the environment asks for it."""
    asked = any(environment.get(name) for name in ENDPOINTS)
    if not asked or environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    try:
        return Tracing()
    except ImportError as error:
        log.error("traces are asked for (%s) and cannot be made: %s; install corral[tracing]", ENDPOINTS[0], error)  # noqa: TRY400 - it says all
        return None
