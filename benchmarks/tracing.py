"""Price of traces: `python -m benchmarks.tracing`. Two services in turn, one of which samples a tenth of its requests.

Both run all the time, with a model that costs nothing, and only one of them has work. The collector only counts; it is a thread of this
process, which waits while a load generator runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.console import Console
from rich.table import Table

from benchmarks import machine, reference
from benchmarks.versions import FIGURES, HERE, NO_MODEL, NULL, CheckoutVersion, compare

WANTED = 0.97


class Collector(HTTPServer):
    """A collector that keeps what it receives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.bodies: list[bytes] = []

    def count_spans(self, name: str) -> int:
        received = map(ExportTraceServiceRequest.FromString, self.bodies)
        spans = (span for one in received for resource in one.resource_spans for scope in resource.scope_spans for span in scope.spans)
        return sum(span.name == name for span in spans)


class CollectorHandler(BaseHTTPRequestHandler):
    server: Collector
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


def show(values: Mapping[str, Mapping[str, Sequence[float]]], ratio: float, console: Console) -> None:
    table = Table(
        "", "off", "on", "on ÷ off, median of rounds", "min", "max", title=f"Traces of {ratio:.0%} of the requests, measured in turn"
    )
    for label, of_version in values.items():
        ratios = [on / off for off, on in zip(of_version["off"], of_version["on"], strict=True) if off]
        medians = [f"{statistics.median(series):.3f}" for series in (of_version["off"], of_version["on"], ratios)]
        table.add_row(label, *medians, f"{min(ratios):.3f}", f"{max(ratios):.3f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8.0, help="of counted load per measurement")
    parser.add_argument("--ratio", type=float, default=0.1, help="of the requests that are sampled")
    options = parser.parse_args()
    console = machine.show()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name, collecting() as collector:
        folder = Path(name)
        reference.write_small_pictures(folder / "small")
        traced = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(options.ratio),
        }
        versions = [CheckoutVersion("off", HERE, folder / "off"), CheckoutVersion("on", HERE, folder / "on", traced)]
        for version in versions:
            reference.make_null_bundle(version.folder / "null", NULL, 0.0)
        [figure] = [figure for figure in FIGURES if figure.label == NO_MODEL]
        values = compare([figure], versions, options.rounds, options.seconds, console)
        show(values, options.ratio, console)
        console.print(
            f"collector: {collector.count_spans('POST /v1/classify')} requests in {len(collector.bodies)} exports; wanted ≥ {WANTED}"
        )


if __name__ == "__main__":
    main()
