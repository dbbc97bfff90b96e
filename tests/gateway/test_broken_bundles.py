"""A service with a bundle whose weights are damaged, and one whose bundle.json cannot be read, with a good one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.bundle import SPEC_FILE
from opsin.client import Client
from opsin.errors import Unavailable
from tests.support.bundles.vit import write_tiny_vit
from tests.support.fake_worker import picture
from tests.support.gateway_process import problem
from tests.support.live_service import Service, running
from tests.support.processes import opsin
from tests.support.waiting import eventually


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    bundles = tmp_path / "bundles"
    write_tiny_vit(bundles)
    weights = write_tiny_vit(bundles, "broken").weights_path
    weights.write_bytes(weights.read_bytes()[:-100])
    (write_tiny_vit(bundles, "unread").path / SPEC_FILE).write_text("{")
    with running(bundles, worker_grace=60.0) as service:
        yield service


def test_the_reason_reaches_each_client_of_a_broken_bundle(service: Service, tmp_path: Path) -> None:
    gateway, image = service.gateway, tmp_path / "image.png"
    image.write_bytes(picture(3))
    assert gateway.classify(picture(3)).json()["model"] == "tiny"
    listed = {model["name"]: model for model in gateway.http.get("/v1/models").json()["models"]}
    refused = {row["model"]: row["reason"] for row in gateway.http.get("/v1/status").json()["refused"]}
    assert refused.keys() == {"broken", "unread"}
    metrics = gateway.http.get("/metrics").text
    assert {name for name in refused if f'opsin_model_loaded{{model="{name}",version="1"}} 0.0\n' in metrics} == refused.keys()
    assert {name: gateway.metric("opsin_model_refused", model=name) for name in listed} == {"tiny": 0, "broken": 1, "unread": 1}
    health = service.get_from_worker("/health/ready")
    assert health.status_code == 503 and health.json()["ready"] is False
    assert sorted(health.json()["detail"].split("; ")) == [f"{name}@1 is unavailable: {refused[name]}" for name in sorted(refused)]
    assert "truncated or another file" in refused["broken"] and refused["unread"].startswith("unread/1/bundle.json: Invalid JSON")
    for name, reason in refused.items():
        assert (listed[name]["state"], listed[name]["reason"]) == ("unavailable", reason)
        assert gateway.http.get(f"/v1/models/{name}").json()["reason"] == reason
        detail = problem(gateway.classify(picture(3), model=name), 503, "bundle-unavailable")["detail"]
        assert detail == f"{name}@1 is unavailable: {reason}"
        tensors = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}]}
        assert gateway.http.post(f"/v2/models/{name}/infer", json=tensors).json() == {"error": detail}
        with Client(service.url) as client, pytest.raises(Unavailable) as raised:
            client.classify(image, model=name)
        assert (raised.value.type, raised.value.detail, raised.value.retry_after) == ("urn:opsin:bundle-unavailable", detail, None)
        command = opsin("classify", str(image), "--model", name, "--url", service.url)
        assert command.returncode == 1 and detail in " ".join(command.stderr.split())


def test_a_broken_bundle_answers_as_soon_as_it_is_mended(service: Service) -> None:
    problem(service.gateway.classify(picture(3), model="unread"), 503, "bundle-unavailable")
    spec = json.loads((service.bundles / "tiny" / "1" / SPEC_FILE).read_text())
    (service.bundles / "unread" / "1" / SPEC_FILE).write_text(json.dumps({**spec, "name": "unread"}))
    eventually(lambda: service.gateway.classify(picture(3), model="unread").status_code == 200, "it is served")
