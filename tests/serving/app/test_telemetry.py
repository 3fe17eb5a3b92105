"""Each request is a span with its stages below it, in the trace that the client began."""

import anyio
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dml.serving.app.factory import create_app
from dml.serving.app.telemetry import OtlpTracing
from tests.serving.app.parts import NAME, image, running


def test_a_search_is_a_span_with_a_span_for_each_stage(settings):
    exporter = InMemorySpanExporter()
    app = create_app(settings, tracing=OtlpTracing(exporter))

    async def asking():
        async with running(app) as client:
            trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
            await client.post(f"/v1/indexes/{NAME}/search", json={"queries": [image(3)]}, headers=trace)

    anyio.run(asking)
    spans = exporter.get_finished_spans()
    (search,) = (span for span in spans if span.name == "POST /v1/indexes/{name}/search")
    stages = {span.name for span in spans if span.parent and span.parent.span_id == search.context.span_id}
    assert stages == {"decode", "encode", "search"}
    assert f"{search.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert search.attributes["http.response.status_code"] == 200
