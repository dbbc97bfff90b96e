"""Traces for OpenTelemetry, as docs/tracing.md describes them. Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set.

Whether a request is sampled is decided by its ids. Only spans of sampled requests reach the SDK, which `span_export` alone imports."""

from __future__ import annotations

import math
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from prometheus_client import Counter

if TYPE_CHECKING:
    from server.telemetry.span_export import Attributes, SpanExport

PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter")
SAMPLERS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": math.nan}
"""Share of traces that are sampled; NaN: a variable has it."""
PARENT_BASED = "parentbased_"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
LOW_BITS = 2**64 - 1
"""The bits of a trace id by which all ratio samplers of OpenTelemetry decide."""


class TraceContext(NamedTuple):
    """Ids of a span in hexadecimal, and whether its trace is sampled."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @staticmethod
    def parse(traceparent: str) -> TraceContext | None:
        """Parse `traceparent` (W3C Trace Context). None: it is not valid."""
        match = TRACEPARENT.fullmatch(traceparent)
        if match is None or (match[1] == "00" and match[5]):  # later versions may have more fields
            return None
        return TraceContext(match[2], match[3], bool(int(match[4], 16) & 1))

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-0{self.is_sampled:d}"


def new_span_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


def read_sampler() -> tuple[float, bool] | None:
    """Return the share of new traces that are sampled, and whether callers decide for theirs. None: traces are off.

    Raises ValueError for unusable variables, or if the extra is not installed."""
    endpoint = _variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or _variable("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint or _variable("OTEL_SDK_DISABLED").lower() == "true" or _variable("OTEL_TRACES_EXPORTER") == "none":
        return None
    if not re.match("https?://[^/]", endpoint):
        raise ValueError(f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}: use a URL such as http://collector:4318")
    protocol = _variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or _variable("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if protocol != "http/protobuf":
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: use http/protobuf, which collectors receive on port 4318")
    name = _variable("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    ratio = SAMPLERS.get(name.removeprefix(PARENT_BASED))
    if ratio is None:
        raise ValueError(f"OTEL_TRACES_SAMPLER={name}: use {', '.join(SAMPLERS)}, or one of them after {PARENT_BASED}")
    if any(find_spec(package) is None for package in PACKAGES):
        raise ValueError("OTEL_EXPORTER_OTLP_ENDPOINT is set: pip install 'opsin[otel]', or unset it")
    return read_number("OTEL_TRACES_SAMPLER_ARG", 1, 1) if math.isnan(ratio) else ratio, name.startswith(PARENT_BASED)


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def read_number(name: str, default: float, maximum: float) -> float:
    """Return the number in an environment variable. Raises ValueError."""
    text = _variable(name) or str(default)
    number = float(text) if re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", text) else math.nan
    if not number <= maximum:
        raise ValueError(f"{name}={text}: use a number from 0 to {maximum}")
    return number


def start_tracer(process: str, dropped: Counter) -> Tracer | None:
    """Start to export the spans of this process, in a thread: call it after forks. None: traces are off. Raises ValueError."""
    if (sampler := read_sampler()) is None:
        return None
    from server.telemetry.span_export import SpanExport

    return Tracer(*sampler, SpanExport(process, dropped, int(read_number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1_000_000)) or 1))


@dataclass(frozen=True)
class Tracer:
    ratio: float
    is_parent_based: bool
    export: SpanExport

    def start_request(self, path: str, traceparents: Sequence[bytes]) -> RequestTrace | None:
        """Return the trace of a request, whose id its log lines have. None: it is not sampled, and has no ids of a caller."""
        trace = None if path == "/metrics" or "/health/" in path else self._trace(traceparents)
        if trace is None:
            structlog.contextvars.unbind_contextvars("trace_id")  # pipelined requests inherit it
        else:
            structlog.contextvars.bind_contextvars(trace_id=trace.context.trace_id)
        return trace

    def _trace(self, traceparents: Sequence[bytes]) -> RequestTrace | None:
        caller = TraceContext.parse(traceparents[0].decode("latin-1")) if len(traceparents) == 1 else None
        number = random.getrandbits(128) if caller is None else int(caller.trace_id, 16)
        is_sampled = caller.is_sampled if caller and self.is_parent_based else number & LOW_BITS < self.ratio * 2**64
        if caller is None and not is_sampled:
            return None
        return RequestTrace(self.export, TraceContext(f"{number:032x}", new_span_id(), is_sampled), caller and caller.span_id)


@dataclass(eq=False, slots=True)
class RequestTrace:
    """The trace of one request in a gateway. It records spans only if it is sampled."""

    export: SpanExport
    context: TraceContext
    caller_id: str | None
    attributes: Attributes = field(default_factory=dict)
    """Further attributes of the server span."""
    offset_ns: int = field(default_factory=lambda: time.time_ns() - time.perf_counter_ns())
    started_at: float = field(default_factory=time.perf_counter)

    def record_stage(self, name: str, started_at: float, ended_at: float | None = None) -> None:
        """Record a stage. Times are seconds of `time.perf_counter()`; None: now."""
        if self.context.is_sampled:
            times = started_at, time.perf_counter() if ended_at is None else ended_at
            self.export.put(name, self.context._replace(span_id=new_span_id()), self.context.span_id, times, self.offset_ns)

    def end(self, scope: Mapping[str, Any], route: str | None, status: int) -> None:
        """Record the server span. route: path with placeholders. status: 0 if there was no response."""
        if not self.context.is_sampled:
            return
        name = method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        self.attributes |= {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope["scheme"]}
        if route:
            name, self.attributes["http.route"] = f"{method} {route}", route
        if status:
            self.attributes["http.response.status_code"] = status
        times, error = (self.started_at, time.perf_counter()), "" if 0 < status < 500 else str(status or "no_response")
        self.export.put(name, self.context, self.caller_id, times, self.offset_ns, kind="SERVER", attributes=self.attributes, error=error)
