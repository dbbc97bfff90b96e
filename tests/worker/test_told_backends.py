"""What an operator reads of backends: in `GET /v1/models/NAME`, and in the worker's metrics."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.harness.bundles import write_tiny_vit
from tests.harness.queue import free_port
from tests.harness.service import serve
from tests.harness.waiting import eventually


def test_what_runs_a_bundle_is_told(tmp_path: Path) -> None:
    write_tiny_vit(tmp_path / "bundles")
    port = free_port()
    with serve(tmp_path / "bundles", backend="onnx", cache=tmp_path / "cache", metrics_port=port) as service:

        def backends() -> set[str]:
            [worker] = service.get("/v1/models/tiny").json()["workers"]
            return set(worker["backends"].values())

        eventually(lambda: backends() == {"onnx"}, "it is measured")
        told = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'opsin_backend{backend="onnx",model="tiny",version="1"} 1.0' in told
