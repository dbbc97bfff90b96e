"""Loading and unloading: two gateways and two workers act as one server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from models.bundle import WEIGHTS_FILE
from tests.open_inference.conftest import PICTURES
from tests.support.bundles.vit import write_tiny_vit, write_unserved
from tests.support.live_service import SMALL_LIMITS, Service, running
from tests.support.waiting import eventually

READY = {"name": "tiny", "version": "1", "state": "READY", "reason": ""}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(bundles)
    with running(bundles, gateways=2, workers=2, model_control="explicit", **SMALL_LIMITS) as started:
        yield started


@pytest.fixture
def clients(service: Service) -> Iterator[list[triton.InferenceServerClient]]:
    """One for each gateway."""
    opened = [triton.InferenceServerClient(gateway.url.removeprefix("http://"), network_timeout=120) for gateway in service.gateways]
    yield opened
    for client in opened:
        client.close()


def infer(client: triton.InferenceServerClient, model: str = "tiny", version: str = "") -> triton.InferResult:
    array = np.array([PICTURES[0]], object)
    return client.infer(model, [triton.InferInput("image", [1], "BYTES").set_data_from_numpy(array)], model_version=version)


def entry(client: triton.InferenceServerClient, model: str) -> dict[str, str]:
    (found,) = [entry for entry in client.get_model_repository_index() if entry["name"] == model]
    return found


def test_load_and_unload_hold_for_both_gateways_at_once(service, clients):
    first, second = clients
    first.unload_model("tiny")
    for gateway, client in zip(service.gateways, clients, strict=True):
        assert entry(client, "tiny") == {**READY, "state": "UNAVAILABLE", "reason": "unloaded"}
        assert not client.is_model_ready("tiny")
        with pytest.raises(InferenceServerException, match="'tiny' is not ready, it is unloaded"):
            infer(client)
        with pytest.raises(InferenceServerException, match="unloaded"):
            client.get_model_metadata("tiny")
        assert gateway.http.get("/v2/models").json() == {"models": []}
        assert gateway.classify(PICTURES[0], model="tiny").status_code == 404

    second.load_model("tiny")
    for client in clients:
        assert entry(client, "tiny") == READY
        assert client.is_model_ready("tiny")
        assert infer(client).as_numpy("scores").shape == (1, 10)


def test_unloading_twice_and_loading_twice_is_fine(clients):
    first, second = clients
    for client in (first, second):
        client.unload_model("tiny", unload_dependents=True)
    for client in (first, second):
        client.load_model("tiny", config="{}")
        assert infer(client).as_numpy("scores").shape == (1, 10)


def test_a_worker_that_starts_later_obeys(service, clients):
    clients[0].unload_model("tiny")
    with service.another_worker():
        with pytest.raises(InferenceServerException, match="unloaded"):
            infer(clients[0])
        assert entry(clients[1], "tiny")["state"] == "UNAVAILABLE"
        clients[0].load_model("tiny")
        assert infer(clients[1]).as_numpy("scores").shape == (1, 10)


def test_bundle_copied_while_service_runs_is_loaded(service, clients):
    write_tiny_vit(service.bundles, name="late")
    clients[0].load_model("late")
    for gateway, client in zip(service.gateways, clients, strict=True):
        assert infer(client, "late").get_response()["model_name"] == "late"
        eventually(lambda gateway=gateway: gateway.metric("opsin_model_loaded", model="late") == 2, "both workers serve it")


def test_bundle_of_unserved_task_is_refused_with_reason(service, clients):
    write_unserved(service.bundles)
    with pytest.raises(InferenceServerException, match="failed to load 'sketcher', version 1: task depth is not served yet"):
        clients[0].load_model("sketcher")
    for client in clients:
        assert entry(client, "sketcher") == {
            "name": "sketcher",
            "version": "1",
            "state": "UNAVAILABLE",
            "reason": "task depth is not served yet by this version",
        }
        assert not client.is_model_ready("sketcher")
        with pytest.raises(InferenceServerException, match="'sketcher' is for depth, which this protocol does not offer"):
            client.get_model_metadata("sketcher")
        with pytest.raises(InferenceServerException, match="sketcher@1 is unavailable: task depth is not served yet by this version"):
            infer(client, "sketcher")
        assert infer(client).as_numpy("scores").shape == (1, 10)


def test_without_a_version_the_highest_one_answers(service, clients):
    write_tiny_vit(service.bundles, version="10")
    write_tiny_vit(service.bundles, version="9")
    clients[0].load_model("tiny")
    for client in clients:
        assert infer(client).get_response()["model_version"] == "10"
        assert infer(client, version="9").get_response()["model_version"] == "9"
        assert client.get_model_metadata("tiny")["versions"] == ["1", "9", "10"]
        assert [model["version"] for model in client.get_inference_statistics("tiny")["model_stats"]] == ["1", "9", "10"]


def test_damaged_bundle_is_refused_and_loads_once_repaired(service, clients):
    bundle = write_tiny_vit(service.bundles, name="damaged")
    weights = bundle.weights_path.read_bytes()
    bundle.weights_path.write_bytes(weights[:-1])

    with pytest.raises(InferenceServerException, match=f"failed to load 'damaged', version 1: .*{WEIGHTS_FILE}") as refused:
        clients[0].load_model("damaged")
    assert refused.value.status() == "400"
    for client in clients:
        assert entry(client, "damaged")["state"] == "UNAVAILABLE"
        assert WEIGHTS_FILE in entry(client, "damaged")["reason"]
        assert infer(client).as_numpy("scores").shape == (1, 10)

    bundle.weights_path.write_bytes(weights)
    clients[1].load_model("damaged")
    for client in clients:
        assert infer(client, "damaged").as_numpy("scores").shape == (1, 10)


def test_a_bundle_that_no_worker_has_is_refused(clients):
    with pytest.raises(InferenceServerException, match="failed to load 'nowhere', no worker has a bundle of that name") as refused:
        clients[0].load_model("nowhere")
    assert refused.value.status() == "400"
    with pytest.raises(InferenceServerException, match="unknown model: 'nowhere' is not found") as refused:
        clients[0].unload_model("nowhere")
    assert refused.value.status() == "404"
