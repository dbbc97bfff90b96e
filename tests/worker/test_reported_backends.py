"""Backends as an operator reads them: in `GET /v1/models/NAME`, and in the worker's metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bundles.vit import write_tiny_vit
from tests.support.live_service import running
from tests.support.waiting import eventually


def test_the_backend_of_a_bundle_is_reported(tmp_path: Path) -> None:
    write_tiny_vit(tmp_path / "bundles")
    with running(tmp_path / "bundles", of_workers={"backend": "onnx", "dtype": "auto", "cache": tmp_path / "cache"}) as service:

        def backends() -> set[str]:
            [worker] = service.gateway.http.get("/v1/models/tiny").json()["workers"]
            return set(worker["backends"].values())

        eventually(lambda: backends() == {"onnx"}, "it is measured")
        assert service.sum_metric("opsin_backend", backend="onnx", model="tiny", version="1") == 1


def test_the_retired_backend_means_auto(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tiny_vit(tmp_path / "bundles")
    with running(tmp_path / "bundles", of_workers={"backend": "compiled", "cache": tmp_path / "cache"}) as service:
        assert service.gateway.http.get("/v1/models/tiny").json()["state"] == "ready"
    assert "backend is no longer offered: auto is used instead" in capfd.readouterr().err
