"""Export of spans by OpenTelemetry's SDK, in a thread: a collector that is slow or dead delays no request.

No global tracer provider is set, since FastAPI would record spans of its own with it, of all requests."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import requests
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from prometheus_client import Counter

from server.telemetry import logs

if TYPE_CHECKING:
    from server.telemetry.tracing import TraceContext

MAX_BATCH = 512
LOG_INTERVAL_S = 60.0
MAX_CLOSE_S = 2.0
Attributes = dict[str, str | int]

log = logs.get(__name__)


class SpanExport:
    """A bounded queue of spans, which a thread exports. Only one thread at a time may put spans into it."""

    def __init__(self, process: str, dropped: Counter, max_queued: int) -> None:
        """process: `gateway` or `worker`. dropped: counts spans that are not exported, by reason."""
        self._max_queued = max_queued
        default = {"service.name": f"opsin-{process}", "service.version": version("opsin")}
        default["service.instance.id"] = f"{socket.gethostname()}-{os.getpid()}"
        self._resource = Resource.create({**default, **OTELResourceDetector().detect().attributes})
        self._scope = InstrumentationScope("opsin", version("opsin"))
        for library in ("opentelemetry", "urllib3"):
            logging.getLogger(library).handlers, logging.getLogger(library).propagate = [OccasionalHandler(logging.WARNING)], False
        self._queued, self._overflow = 0, dropped.labels("queue_full")
        self._exporter = CountingExporter(dropped.labels("not_exported"))
        self._processor = BatchSpanProcessor(self._exporter, max_queued, max_export_batch_size=min(MAX_BATCH, max_queued))

    def put(
        self, name: str, context: TraceContext, parent_id: str | None, times: tuple[float, float], offset_ns: int, **facts: Any
    ) -> None:
        """Queue a span that has ended. times: its start and end, in seconds of a clock that is so many nanoseconds behind Unix time.
        facts: kind, attributes, links and error, if it has them."""
        if self._queued - self._exporter.taken >= self._max_queued:
            self._overflow.inc()
            return
        self._queued += 1
        start_time, end_time = (offset_ns + int(seconds * 1e9) for seconds in times)
        attributes, error = facts.get("attributes") or {}, facts.get("error")
        span = ReadableSpan(
            name,
            to_sdk(context),
            None if parent_id is None else to_sdk(context._replace(span_id=parent_id)),
            self._resource,
            {**attributes, "error.type": error} if error else attributes,
            links=[Link(to_sdk(one)) for one in facts.get("links", ())],
            kind=SpanKind[facts.get("kind", "INTERNAL")],
            status=Status(StatusCode.ERROR if error else StatusCode.UNSET),
            start_time=start_time,
            end_time=end_time,
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(span)

    def close(self) -> None:
        """Export what is queued, for at most MAX_CLOSE_S."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(MAX_CLOSE_S)


def to_sdk(context: TraceContext) -> SpanContext:
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), True, TraceFlags(TraceFlags.SAMPLED))


class CountingExporter(OTLPSpanExporter):
    """OpenTelemetry's exporter. It counts the spans that it took, and those that no collector has accepted."""

    def __init__(self, failed: Counter) -> None:
        session, self.taken, self._failed = requests.Session(), 0, failed
        session.hooks["response"] = [self._check]
        super().__init__(session=session)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._failed.inc(len(spans))
        return result

    def _check(self, response: requests.Response, **_options: Any) -> None:
        """Turn an answer that is not valid OTLP into an error: the exporter takes each status below 400 for a success."""
        try:
            accepted = ExportTraceServiceResponse.FromString(response.content)
            self._failed.inc(accepted.partial_success.rejected_spans if response.ok else 0)
            is_otlp = response.status_code < 300
        except DecodeError:
            is_otlp = response.content.startswith(b"{")  # some collectors answer in JSON
        if response.ok and not is_otlp:
            response.status_code, response.reason = 400, f"status {response.status_code}, and not an answer of OTLP"


class OccasionalHandler(logging.Handler):
    """A handler of libraries' messages that logs one a minute."""

    _silent_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + LOG_INTERVAL_S
            log.warning("spans are not exported", reason=record.getMessage())
