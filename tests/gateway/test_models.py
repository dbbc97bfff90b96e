"""`/v1/models`, `/health/*`, `/docs`: what the service says of itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import pytest

from models.bundle import BundleSpec
from server.gateway.model_directory import ModelDirectory, state_of
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.fleet import Fleet
from server.queue.messages import ServedBundle, WorkerInfo
from server.settings import Settings
from server.supervisor.private_valkey import PrivateValkey
from server.tasks.registry import TASKS, main_task
from tests.support.fake_worker import DEPTH, Worker, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process, problem
from tests.support.waiting import eventually


def ready(gateway: Gateway) -> tuple[int, object]:
    response = gateway.http.get("/health/ready")
    return response.status_code, response.json().get("detail")


def test_models_are_listed_with_state_and_ladder(gateway: Gateway) -> None:
    (model,) = gateway.http.get("/v1/models").json()["models"]
    assert model == {
        "name": "reds",
        "version": "1",
        "digest": make_spec().digest(),
        "task": "classify",
        "route": "classify",
        "state": "ready",
        "reason": "",
        "default": True,
        "inputs": [
            {
                "name": "image",
                "kind": "image",
                "required": True,
                "max_count": 8,
                "max_bytes": 200_000,
                "max_pixels": 1_000_000,
                "max_seconds": None,
                "max_frames": None,
            }
        ],
        "members": {},
        "labels": 10,
        "summary": "Ten shades of red",
        "trained_on": "plain pictures",
        "note": "For tests.",
        "merges": True,
        "default_rung": None,
        "ladder": [
            {"name": "gentle", "schedule": 1, "accuracy": None, "throughput": None, "metric": None},
            {"name": "strong", "schedule": [4, 2], "accuracy": None, "throughput": None, "metric": None},
        ],
        "format": "bfloat16",
        "max_difference": 0.02,
        "comparison": None,
    }


@pytest.mark.parametrize("comparison", [None, "fine", {"images": 3}, {"images": 0, "results": []}])
def test_a_quality_of_another_form_is_no_comparison(valkey: PrivateValkey, comparison: object) -> None:
    spec = make_spec().model_copy(update={"quality": {"comparison": comparison}})
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [spec]):
        (model,) = gateway.http.get("/v1/models").json()["models"]
        assert (model["state"], model["comparison"]) == ("ready", None)
        assert gateway.http.get("/v1/models/reds").json()["spec"]["quality"] == {"comparison": comparison}


def test_models_name_the_folders_of_bundles(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, []):
        assert gateway.http.get("/v1/models").json() == {"models": [], "cell": 0, "folders": ["/srv/bundles"], "object": "list", "data": []}


def test_a_model_has_its_spec_and_its_workers_rates(gateway: Gateway) -> None:
    model = gateway.http.get("/v1/models/reds").json()
    (worker,) = model["workers"]
    assert (worker["items_per_second"], worker["batch_budget"], worker["device"]) == (100.0, 8, "cpu")
    assert (worker["format"], worker["max_difference"]) == ("bfloat16", 0.02)
    assert model["spec"]["config"] == {"depth": DEPTH} and model["spec"]["labels"][3] == "red 3" and "weights" not in model["spec"]
    assert gateway.http.get("/v1/models/reds@1").json() == model
    for unknown in ("blues", "reds@2", "reds@"):
        assert "reds@1" in problem(gateway.http.get(f"/v1/models/{unknown}"), 404, "unknown-model")["detail"]


def test_bundle_of_other_task_is_listed_and_does_not_classify(valkey: PrivateValkey) -> None:
    painter = BundleSpec(
        name="painter", version="1", task="depth", architecture="mae", config={}, license="CC0-1.0", weights=make_spec().weights
    )
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec(), painter]):
        eventually(lambda: len(gateway.http.get("/v1/models").json()["models"]) == 2, "both are known")
        listed = {model["name"]: model for model in gateway.http.get("/v1/models").json()["models"]}
        assert (listed["painter"]["task"], listed["painter"]["labels"], listed["painter"]["ladder"]) == ("depth", 0, [])
        assert (listed["painter"]["inputs"], listed["painter"]["route"]) == ([], None)
        assert gateway.http.get("/v1/models/painter").json()["spec"]["preprocess"] is None
        refused = problem(gateway.classify(picture(1), model="painter"), 404, "unknown-model")
        assert refused["detail"] == "'painter' is for depth; known for classify: reds@1"
        assert gateway.classify(picture(1)).json()["model"] == "reds"


def test_without_a_version_the_newest_that_is_ready_answers(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec(version="9")]):
        with Worker(valkey.url, [make_spec(version="10")]):
            eventually(lambda: len(gateway.http.get("/v1/models").json()["models"]) == 2, "both versions are known")
            assert gateway.classify(picture(1), model="reds").json()["version"] == "10"
            assert gateway.classify(picture(1), model="reds@9").json()["version"] == "9"
        eventually(lambda: gateway.http.get("/v1/models/reds@10").json()["state"] == "unavailable", "version 10 is gone")
        assert gateway.classify(picture(1), model="reds").json()["version"] == "9"


def test_the_default_rung_is_used_and_named(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec(default_rung="strong")]):
        merging = gateway.classify(picture(1)).json()["results"][0]["merging"]
        assert (merging["rung"], merging["schedule"]) == ("strong", [4, 2, 0, 0])
        assert gateway.classify(picture(1), merge="off").json()["results"][0]["merging"]["rung"] is None


def test_of_several_models_the_starter_bundle_is_the_default(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec(), make_spec("blues")]):
        document = problem(gateway.classify(picture(1)), 422, "invalid-option")
        assert document["field"] == "model" and "blues@1, reds@1" in document["detail"]
        with Worker(valkey.url, [make_spec("photos")]):
            eventually(lambda: len(gateway.http.get("/v1/models").json()["models"]) == 3, "three models are known")
            assert gateway.classify(picture(1)).json()["model"] == "photos"
            assert [model["name"] for model in gateway.http.get("/v1/models").json()["models"] if model["default"]] == ["photos"]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("inpaint", ["another", "inpaint"]),
        ("reconstruct", ["another", "reconstruct"]),
        ("reconstruct", ["reconstruct", "shapes"]),
        ("actions", ["another", "actions"]),
    ],
)
def test_second_bundle_does_not_replace_starter_as_default(task: str, names: list[str]) -> None:
    specs = [make_spec(name).model_copy(update={"task": task}) for name in names]
    fleet = Fleet(specs={(spec.name, spec.version): spec for spec in specs})
    settings = Settings()
    assert ModelDirectory(Dispatcher("redis://127.0.0.1:1", settings), settings).default(fleet, task) == specs[1]


@pytest.mark.parametrize(("architecture", "gives_vectors"), [("mae", True), ("video_mae_pretraining", False), ("audio_mae", False)])
def test_autoencoder_without_vectors_is_never_default(architecture: str, gives_vectors: bool) -> None:
    """Such a default would never be ready, and so the gateway would not be either."""
    spec = make_spec("autoencoder").model_copy(update={"task": "autoencode", "architecture": architecture, "labels": []})
    fleet, settings = Fleet(specs={(spec.name, spec.version): spec}), Settings()
    assert ModelDirectory(Dispatcher("redis://127.0.0.1:1", settings), settings).default(fleet, "embed") == (
        spec if gives_vectors else None
    )
    assert main_task(spec) is (TASKS["embed"] if gives_vectors else None), "as GET /v1/models names its route"


@pytest.mark.parametrize(
    ("worker", "bundle", "expected"),
    [
        ("starting", "loading", ("loading", "")),
        ("starting", "ready", ("loading", "")),
        ("ready", "ready", ("ready", "")),
        ("ready", "unloading", ("unloading", "")),
        ("draining", "ready", ("unavailable", "no worker serves it")),
    ],
)
def test_a_bundle_of_a_worker_that_starts_is_loading(
    worker: Literal["starting", "ready", "draining"], bundle: Literal["loading", "ready", "unloading"], expected: tuple[str, str]
) -> None:
    spec = make_spec()
    served = ServedBundle(name=spec.name, version=spec.version, task=spec.task, digest=spec.digest(), state=bundle)
    info = WorkerInfo(id="w", host="here", pid=0, state=worker, device="cpu", bundles=[served])
    assert state_of(Fleet((info,), {(spec.name, spec.version): spec}), spec) == expected


def test_a_configured_default_comes_first(valkey: PrivateValkey) -> None:
    with (
        gateway_process(valkey.url, default_models={"classify": "blues"}) as gateway,
        Worker(valkey.url, [make_spec(), make_spec("flags")]),
    ):
        eventually(lambda: ready(gateway) == (503, "no ready worker serves blues, the default model for classify"), "the reason is given")
        problem(gateway.classify(picture(1)), 404, "unknown-model")
        with Worker(valkey.url, [make_spec("blues")]):
            eventually(lambda: ready(gateway)[0] == 200, "ready")
            assert gateway.classify(picture(1)).json()["model"] == "blues"


def test_readiness_follows_the_workers(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway:
        assert ready(gateway) == (503, "no worker is ready")
        with Worker(valkey.url, [make_spec()]):
            eventually(lambda: ready(gateway) == (200, None), "ready")
        eventually(lambda: ready(gateway) == (503, "no worker is ready"), "not ready any more")


def test_the_documentation_needs_no_network(gateway: Gateway) -> None:
    page = gateway.http.get("/docs")
    assert page.status_code == 200
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert not address.startswith("/"), "a proxy may serve the page under a prefix"
        assert gateway.http.get(f"/{address}").status_code == 200
    assert "'openapi.json'" in page.text


def test_the_documentation_has_bodies_answers_and_errors(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    post = document["paths"]["/v1/classify"]["post"]
    assert {"multipart/form-data", "application/json", "image/jpeg"} <= set(post["requestBody"]["content"])
    assert set(post["responses"]) == {"200", "202", "400", "401", "404", "406", "408", "413", "415", "422", "429", "500", "503", "504"}
    for response in post["responses"].values():
        for content in response["content"].values():
            schema = {**content["schema"], "components": document["components"]}
            examples = [content["example"]] if "example" in content else [example["value"] for example in content["examples"].values()]
            for example in examples:
                jsonschema.validate(example, schema)


def test_the_examples_of_the_documentation_fit_its_schemas(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    found = list(examples_of(document["paths"]))
    assert len(found) > 50
    for schema, example in found:
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(example)


def test_generators_of_clients_read_the_documentation(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    assert ": false" not in re.sub(r"\"additionalProperties\": false", "", json.dumps(document["components"]))
    parameters = [each for path in document["paths"].values() for call in path.values() for each in call.get("parameters", ())]
    assert {each["schema"].get("type") for each in parameters if each["in"] == "path"} == {"string"}
    body = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert gateway.http.post("/v1/classify", json=body).status_code == 200


def examples_of(document: object) -> Iterator[tuple[dict[str, Any], Any]]:
    """Schemas with an example of theirs."""
    if isinstance(document, dict):
        if "schema" in document:
            examples = [document["example"]] if "example" in document else [each["value"] for each in document.get("examples", {}).values()]
            yield from ((document["schema"], example) for example in examples)
        document = list(document.values())
    for part in document if isinstance(document, list) else ():
        yield from examples_of(part)


def test_the_documentation_says_who_may_not_load_and_unload(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    for action in ("load", "unload"):
        answer = gateway.http.post(f"/v2/repository/models/reds/{action}")
        content = document["paths"][f"/v2/repository/models/{{name}}/{action}"]["post"]["responses"]["403"]["content"]["application/json"]
        assert answer.status_code == 403
        jsonschema.validate(answer.json(), content["schema"])
        assert answer.json() == content["examples"]["model-control"]["value"]


def test_every_schema_of_the_documentation_is_one(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    schemas = [*schemas_of(document), *document["components"]["schemas"].values()]
    assert len(schemas) > 50
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_documentation_says_which_parts_a_form_needs(gateway: Gateway) -> None:
    paths = gateway.http.get("/openapi.json").json()["paths"]
    inpaint, actions = (
        paths[f"/v1/{task}"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"] for task in ("inpaint", "actions")
    )
    assert inpaint["required"] == ["image"]  # where generators of clients and forms look for it
    assert [part["required"] for part in actions["anyOf"]] == [["video"], ["tracks"]]


def schemas_of(document: object) -> Iterator[Any]:
    """Find all values of `schema`, at any depth."""
    if isinstance(document, list):
        for part in document:
            yield from schemas_of(part)
    elif isinstance(document, dict):
        for name, part in document.items():
            yield from [part] if name == "schema" else schemas_of(part)


def test_the_documentation_has_the_errors_of_the_protocol(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    for path in ("", "/versions/1", "/config", "/stats", "/ready"):
        answer = gateway.http.get(f"/v2/models/cats{path}")
        template = f"/v2/models/{{name}}{path.replace('/1', '/{version}')}"
        content = document["paths"][template]["get"]["responses"]["404"]["content"]["application/json"]
        assert answer.status_code == 404
        jsonschema.validate(answer.json(), content["schema"])
    for body, status in ((b"{", "400"), (b" " * 100_000, "413")):
        answer = gateway.http.post("/v2/repository/index", content=body)
        documented = document["paths"]["/v2/repository/index"]["post"]["responses"][status]["content"]["application/json"]
        assert str(answer.status_code) == status
        assert answer.json() in [example["value"] for example in documented["examples"].values()]


def test_metrics_are_documented_as_text(gateway: Gateway) -> None:
    content = gateway.http.get("/openapi.json").json()["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert list(content) == [gateway.http.get("/metrics").headers["Content-Type"].partition(";")[0]]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/reds", "/v1/classify"])
def test_answers_fit_the_documentation(gateway: Gateway, path: str) -> None:
    document = gateway.http.get("/openapi.json").json()
    route = next(route for template, route in document["paths"].items() if re.fullmatch(template.replace("{name}", "[^/]+"), path))
    ((method, operation),) = route.items()
    answer = gateway.classify(picture(1)) if method == "post" else gateway.http.get(path)
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), {**schema, "components": document["components"]})


def test_cors_is_closed_unless_it_is_opened(gateway: Gateway, valkey: PrivateValkey) -> None:
    origin = {"Origin": "https://example.org"}
    assert "access-control-allow-origin" not in gateway.http.get("/v1/models", headers=origin).headers
    with gateway_process(valkey.url, cors_origins=["https://example.org"]) as open_gateway:
        assert open_gateway.http.get("/health/live", headers=origin).headers["access-control-allow-origin"] == "https://example.org"
        other = open_gateway.http.get("/health/live", headers={"Origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers
        for path in ("/v1/classify", "/v2/models/reds/infer"):
            preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-Request-Timeout"}
            assert open_gateway.http.options(path, headers=origin | preflight).status_code == 200
            refused = open_gateway.http.post(path, headers=origin)
            assert refused.status_code == 400
            assert refused.headers["access-control-allow-origin"] == "https://example.org"
            assert refused.headers["x-request-id"] and "X-Request-ID" in refused.headers["access-control-expose-headers"]
        exposed = set(refused.headers["access-control-expose-headers"].split(", "))
        assert {"X-Model", "X-Seed", "X-Steps", "X-Method", "X-People", "X-Points", "X-Queries", "X-Metric"} <= exposed
        assert {"Server-Timing", "Location"} <= exposed
