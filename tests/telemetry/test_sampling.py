"""Which requests are traced: by their caller's decision, by a ratio, or not at all."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from structlog.contextvars import get_contextvars

from server.telemetry.metrics import GatewayMetrics
from server.telemetry.tracing import RequestTrace, TraceContext, Tracer, read_sampler, start_tracer
from tests.support.gateway_process import environment

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class RecordingExport:
    """Stands in for the export: no collector is needed to see who is sampled."""

    def __init__(self) -> None:
        self.spans: list[str] = []

    def put(self, name: str, *_facts: object, **_options: object) -> None:
        self.spans.append(name)


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", (TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", (TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", (TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", (TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"cc-{TRACE}-{SPAN}-01.more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("", None),
        ("00-é", None),
    ],
)
def test_traceparent_is_read_as_w3c_defines_it(traceparent: str, expected: tuple[str, str, bool] | None) -> None:
    assert TraceContext.parse(traceparent) == expected


def start(ratio: float, *traceparents: str, is_parent_based: bool = True) -> RequestTrace | None:
    tracer = Tracer(ratio, is_parent_based, RecordingExport())  # type: ignore[arg-type]
    return tracer.start_request("/v1/classify", [one.encode() for one in traceparents])


def test_a_ratio_holds_for_new_traces() -> None:
    random.seed(1)
    traces = [start(0.1) for _ in range(20_000)]
    sampled = [trace for trace in traces if trace is not None]
    assert 0.09 < len(sampled) / len(traces) < 0.11
    assert all(trace.context.is_sampled for trace in sampled)
    assert max(int(trace.context.trace_id[16:], 16) for trace in sampled) < 0.1 * 2**64  # so do other services' ratio samplers


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_decision_of_the_caller_is_followed(ratio: float) -> None:
    for flags, is_sampled in (("01", True), ("00", False)):
        trace = start(ratio, f"00-{TRACE}-{SPAN}-{flags}")
        assert trace is not None
        assert (trace.context.trace_id, trace.context.is_sampled) == (TRACE, is_sampled)
        assert trace.context.span_id != SPAN


def test_without_a_parent_based_sampler_the_ratio_decides_alone() -> None:
    low, high = f"{'1' * 16}{'0' * 15}1", f"{'1' * 16}{'f' * 16}"
    for trace_id, is_sampled in ((low, True), (high, False)):
        trace = start(0.5, f"00-{trace_id}-{SPAN}-00", is_parent_based=False)
        assert trace is not None
        assert trace.context.is_sampled is is_sampled


def test_two_traceparents_or_an_invalid_one_start_a_new_trace() -> None:
    for sent in ([f"00-{TRACE}-{SPAN}-00"] * 2, ["nonsense"]):
        trace = start(1.0, *sent)
        assert trace is not None
        assert trace.context.trace_id != TRACE


def test_an_unsampled_request_has_no_span_but_its_callers_ids() -> None:
    export = RecordingExport()
    tracer = Tracer(1.0, True, export)  # type: ignore[arg-type]
    trace = tracer.start_request("/v1/classify", [f"00-{TRACE}-{SPAN}-00".encode()])
    assert trace is not None
    trace.record_stage("prepare", 0.0)
    trace.end({"method": "POST", "path": "/v1/classify", "scheme": "http"}, "/v1/classify", 200)
    assert export.spans == []
    assert get_contextvars()["trace_id"] == TRACE
    assert tracer.start_request("/metrics", []) is None  # the next request of the connection does not inherit it
    assert "trace_id" not in get_contextvars()


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("", "", (1.0, True)),
        ("always_on", "", (1.0, False)),
        ("always_off", "", (0.0, False)),
        ("parentbased_always_off", "0.5", (0.0, True)),
        ("traceidratio", "0.25", (0.25, False)),
        ("parentbased_traceidratio", "0.1", (0.1, True)),
        ("parentbased_traceidratio", "1e-05", (0.00001, True)),
        ("parentbased_traceidratio", "", (1.0, True)),
    ],
)
def test_samplers_are_those_of_opentelemetry(
    monkeypatch: pytest.MonkeyPatch, name: str, argument: str, expected: tuple[float, bool]
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://collector:4318")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    assert read_sampler() == expected


@pytest.mark.parametrize(
    "variables",
    [{}, {ENDPOINT: ""}, {ENDPOINT: "http://c", "OTEL_SDK_DISABLED": "true"}, {ENDPOINT: "http://c", "OTEL_TRACES_EXPORTER": "none"}],
)
def test_traces_are_off(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert start_tracer("gateway", GatewayMetrics().spans_dropped) is None


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({ENDPOINT: "collector:4318"}, "use a URL such as http://collector:4318"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: use http/protobuf"),
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "OTEL_TRACES_SAMPLER=jaeger_remote: use always_on"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "10%"},
            "OTEL_TRACES_SAMPLER_ARG=10%: use a number from 0 to 1",
        ),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"}, "use a number from 0 to 1"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "OTEL_BSP_MAX_QUEUE_SIZE=many: use a number"),
    ],
)
def test_unusable_variables_are_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str) -> None:
    for name, value in {ENDPOINT: "http://collector:4318", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as refused:
        start_tracer("gateway", GatewayMetrics().spans_dropped)
    assert words in str(refused.value)


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    everything = environment(redis_url="redis://127.0.0.1:1", host="127.0.0.1", port=0) | variables
    return subprocess.run([sys.executable, "-c", program], env=everything, capture_output=True, text=True, timeout=120)


def test_processes_without_an_endpoint_import_no_exporter() -> None:
    program = (
        "import sys, server.worker.main, server.supervisor.supervisor; from server.gateway.app import create_app; "
        "from server.settings import load; create_app(load()); "
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk.trace', 'opentelemetry.exporter'))])"
    )
    assert run(program).stdout == "[]\n"  # redis-py imports the SDK's metrics by itself, if they are installed


WITHOUT_EXTRA = "import sys; sys.modules['opentelemetry.sdk'] = None; from server.settings import load; "
"""FastAPI needs OpenTelemetry's API, which is a package of its own."""


@pytest.mark.parametrize(
    "program",
    [
        "from server.gateway.main import run_gateway; sys.exit(run_gateway(load()))",
        "from server.worker.main import run_worker; sys.exit(run_worker(load()))",
        "from server.supervisor.supervisor import serve; sys.exit(serve(load()))",
    ],
)
def test_an_endpoint_without_the_extra_ends_a_process(program: str) -> None:
    ended = run(WITHOUT_EXTRA + program, **{ENDPOINT: "http://collector:4318"})
    assert ended.returncode == 2
    assert "pip install 'opsin[otel]'" in ended.stderr
    assert "Traceback" not in ended.stderr
