"""A collector for tests: it receives traces by OTLP over HTTP, and answers as a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.support.waiting import eventually

KINDS = {SpanMessage.SPAN_KIND_INTERNAL: "internal", SpanMessage.SPAN_KIND_SERVER: "server"}
KINDS |= {SpanMessage.SPAN_KIND_CLIENT: "client", SpanMessage.SPAN_KIND_CONSUMER: "consumer"}


@dataclass(frozen=True)
class ReceivedSpan:
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    start: int
    end: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    """Trace and span ids."""
    is_error: bool
    resource: dict[str, Any]

    @property
    def service(self) -> str:
        return str(self.resource["service.name"])


@dataclass(eq=False)
class Receiver:
    """A collector. `status` and `body` are its answer; `delay` is how many seconds it takes."""

    url: str = ""
    status: int = 200
    body: bytes = b""
    delay: float = 0.0
    spans: list[ReceivedSpan] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Headers of each call."""

    def spans_of(self, trace_id: str) -> list[ReceivedSpan]:
        return [span for span in list(self.spans) if span.trace_id == trace_id]

    def wait_for(self, trace_id: str, *names: str) -> list[ReceivedSpan]:
        """Wait until the trace has spans of these names, and return all of its spans."""
        eventually(lambda: {span.name for span in self.spans_of(trace_id)} >= set(names), f"the spans {names} of {trace_id} arrive")
        return self.spans_of(trace_id)

    def receive(self, content: bytes) -> None:
        for one in ExportTraceServiceRequest.FromString(content).resource_spans:
            resource = _values(one.resource.attributes)
            self.spans += [_span(span, resource) for scope in one.scope_spans for span in scope.spans]


def _span(span: SpanMessage, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        KINDS[span.kind],
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        span.status.code == span.status.STATUS_CODE_ERROR,
        resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def receiver(**answer: Any) -> Iterator[Receiver]:
    """Run a collector that gives this answer."""
    running = Receiver(**answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            running.headers.append({name.lower(): value for name, value in self.headers.items()})
            running.receive(content)
            time.sleep(running.delay)
            self.send_response(running.status)
            self.send_header("Content-Length", str(len(running.body)))
            self.end_headers()
            self.wfile.write(running.body)

        def log_message(self, *_arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    running.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
