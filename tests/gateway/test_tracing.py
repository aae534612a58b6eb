"""Traces: what arrives at a collector, and what the pod gets of them."""

import asyncio

import pytest
from aiohttp import web
from tests.gateway.conftest import model
from tests.gateway.peers import Pod

from corral.gateway.tracing import tracing_from

proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
async def collector(monkeypatch):
    """Spans by their names, as an OTLP collector gets them."""
    spans = {}

    async def take(request):
        told = proto.ExportTraceServiceRequest.FromString(await request.read())
        for resource in told.resource_spans:
            service = {entry.key: entry.value.string_value for entry in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                spans.update({span.name: (service, span) for span in scope.spans})
        return web.Response()

    app = web.Application()
    app.add_routes([web.post("/v1/traces", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield spans
    await runner.cleanup()


def attributes(span):
    return {entry.key: entry.value.string_value or entry.value.int_value for entry in span.attributes}


async def test_a_clients_trace_goes_on_through_gateway_and_pod(collector, stand):
    async with Pod(state="Sleeping") as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        asked = asyncio.ensure_future(stand.chat(headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"}))
        await stand.until(lambda: pod.polls)
        await pod.become("Loaded")
        assert (await asked)[0] == 200
        await stand.until(lambda: collector)
        service, span = collector["POST /v1/chat/completions"]
        assert (service, span.trace_id.hex(), span.parent_span_id.hex()) == ("corral-gateway", TRACE, PARENT)
        sent = pod.seen[0][2]
        assert sent.getall("traceparent") == [f"00-{TRACE}-{span.span_id.hex()}-01"]
        assert sent.getall("tracestate") == ["a=b"]
        told = attributes(span)
        assert (told["corral.model"], told["corral.replica"], told["http.response.status_code"]) == ("models/small", "pod-a", 200)
        assert told["corral.waited_ms"] > 0


async def test_a_refusal_is_a_span_as_well(collector, stand):
    assert (await stand.chat(model="nobody"))[0] == 404
    await stand.until(lambda: collector)
    assert attributes(collector["POST /v1/chat/completions"][1])["http.response.status_code"] == 404


@pytest.mark.parametrize("environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}])
def test_nothing_is_traced_unasked(environment):
    assert tracing_from(environment) is None
