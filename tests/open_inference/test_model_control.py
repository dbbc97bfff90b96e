"""Rights to load and unload bundles, and valid names: nothing that is refused is ever written."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from server.queue import keys
from tests.support.bundles.vit import write_tiny_vit
from tests.support.fake_worker import Worker, make_spec
from tests.support.gateway_process import gateway_process
from tests.support.live_service import SMALL_LIMITS, Service, running
from tests.support.redis import CellRedis, private_valkey


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(bundles)
    with running(bundles, model_control="explicit", cors_origins=["https://example.org", "*"], **SMALL_LIMITS) as started:
        yield started


def call(service: Service, verb: str, name: str = "tiny", **headers: str) -> httpx2.Response:
    return service.gateway.http.post(f"/v2/repository/models/{name}/{verb}", headers=headers)


def read_repository(service: Service) -> dict[bytes, bytes]:
    with CellRedis.from_url(service.redis_url) as client:
        return client.hgetall(keys.REPOSITORY)


def assert_refused(response: httpx2.Response, status: int, message: str) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    assert response.json().keys() == {"error"} and message in response.json()["error"]


@pytest.mark.parametrize("verb", ["load", "unload"])
@pytest.mark.parametrize(
    "name",
    [
        "%23revision",
        "%23anything",
        "nobody",
        "Tiny",
        "tiny%00",
        "tiny@1",
        "%20",
        "%ff",
        "-",
        ".",
        "..",
        "x" * 65,
        "x" * 5000,
        "%F0%9F%92%A9",
    ],
)
def test_a_name_that_no_bundle_has_is_refused_and_not_written(service: Service, verb: str, name: str) -> None:
    before = read_repository(service)
    response = call(service, verb, name)
    assert response.headers["content-type"] == "application/json" and response.json().keys() == {"error"}
    assert 400 <= response.status_code < 500 and len(response.content) < 1000
    assert read_repository(service) == before


@pytest.mark.parametrize("path", ["models//load", "models/load", "models/a/b/load", "models/tiny/%2e%2e/load"])
def test_a_path_without_a_name_is_refused_and_writes_nothing(service: Service, path: str) -> None:
    before = read_repository(service)
    assert_refused(service.gateway.http.post(f"/v2/repository/{path}"), 404, "not found")
    assert read_repository(service) == before


@pytest.mark.parametrize("verb", ["load", "unload"])
@pytest.mark.parametrize("origin", ["https://example.org", "null", "http://127.0.0.1:1", "http://127.0.0.1", "file://", "", "http://["])
def test_pages_of_another_origin_never_may(service: Service, verb: str, origin: str) -> None:
    before = read_repository(service)
    assert_refused(call(service, verb, origin=origin), 403, "another origin")
    assert read_repository(service) == before


def test_pages_of_the_same_origin_and_programs_may(service: Service) -> None:
    assert call(service, "unload", origin=service.gateway.url.upper().replace("HTTP", "http")).status_code == 200
    assert call(service, "load").status_code == 200
    named = {"host": "opsin.example", "origin": "https://opsin.example:443"}
    assert call(service, "load", **named).status_code == 200
    assert_refused(call(service, "load", **{**named, "origin": "http://opsin.example:443"}), 403, "another origin")


def test_it_is_off_by_default_and_the_refusal_names_the_setting() -> None:
    with private_valkey() as valkey, Worker(valkey.url, [make_spec()]), gateway_process(valkey.url) as gateway:
        for verb in ("load", "unload"):
            assert_refused(gateway.http.post(f"/v2/repository/models/reds/{verb}"), 403, "OPSIN_MODEL_CONTROL=explicit")
        with CellRedis.from_url(valkey.url) as client:
            assert not client.exists(keys.REPOSITORY)
        assert not any("model_repository" in extension for extension in gateway.http.get("/v2").json()["extensions"])
        (entry,) = gateway.http.post("/v2/repository/index").json()
        assert entry["name"] == "reds"


def test_it_is_advertised_where_it_is_on(service: Service) -> None:
    assert "model_repository" in service.gateway.http.get("/v2").json()["extensions"]


@pytest.mark.parametrize("body", [b"[" * 5000, b'{"ready": "\xff"}', b"[]," * 20_000, b" " * 100_000])
def test_the_index_reads_little(service: Service, body: bytes) -> None:
    response = service.gateway.http.post("/v2/repository/index", content=body)
    assert response.status_code in (400, 413) and response.json().keys() == {"error"}
