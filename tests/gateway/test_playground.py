"""The pages `/` and `/status`: static files under a strict policy, which can be turned off."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import playground
from server.queue.embedded import PrivateValkey
from tests.gateway import service
from tests.gateway.service import Gateway

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}


@pytest.mark.parametrize("path", ["/", "/status", "/static/playground.js", "/static/tasks/classify.js", "/static/samples/brazil.png"])
def test_pages_and_files_come_with_a_strict_policy(gateway: Gateway, path: str) -> None:
    response = gateway.http.get(path)
    assert response.status_code == 200
    assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert response.headers["x-content-type-options"] == "nosniff"
    suffix = Path(path).suffix or ".html"
    assert response.headers["content-type"].startswith(TYPES[suffix])


def test_files_that_have_not_changed_are_not_sent_again(gateway: Gateway) -> None:
    first = gateway.http.get("/static/playground.js")
    assert gateway.http.get("/static/playground.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("path", ["/static/", "/static/nothing.js", "/static/%2e%2e/__init__.py", "/static/../../settings.py"])
def test_there_is_nothing_beside_the_files(gateway: Gateway, path: str) -> None:
    response = gateway.http.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_without_the_playground_its_pages_are_not_there(valkey: PrivateValkey) -> None:
    with service.gateway(valkey.url, playground=False) as gateway:
        assert [gateway.http.get(path).status_code for path in ("/", "/status", "/static/playground.js")] == [404] * 3
        assert gateway.http.get("/v1/status").status_code == 200


def test_samples_are_the_documented_pictures() -> None:
    samples = sorted(playground.SAMPLES.glob("*.png"))
    sources = (playground.SAMPLES / "SOURCES.txt").read_text()
    originals = {picture.name: picture.read_bytes() for folder in ("flags", "drawings") for picture in (PICTURES / folder).glob("*.png")}
    assert samples
    assert [sample.name for sample in samples if sample.read_bytes() != originals.get(sample.name)] == []
    assert [sample.name for sample in samples if sample.name.removesuffix("-mask.png").removesuffix(".png") not in sources] == []
