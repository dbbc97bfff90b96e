"""The clients of others against the running service: NVIDIA's tritonclient (sync and asyncio) and KServe's REST client."""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from tritonclient.utils import InferenceServerException

from tests.open_inference.conftest import PICTURES
from tests.support.live_service import Service

COMPRESSIONS = (None, "gzip", "deflate")


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.address, concurrency=4) as client:
        yield client


@pytest.fixture
async def aio(service: Service) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(service.address) as client:
        yield client


@pytest.fixture
async def kserve() -> AsyncIterator[InferenceRESTClient]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60, retries=0))
    yield client
    await client.close()


def image(*pictures: bytes, binary: bool = True) -> triton.InferInput:
    """Build the input of these images: (n, 1) BYTES; in JSON as base64."""
    elements = pictures if binary else [base64.b64encode(picture) for picture in pictures]
    array = np.array(elements, object).reshape(-1, 1)
    return triton.InferInput("image", list(array.shape), "BYTES").set_data_from_numpy(array, binary_data=binary)


# --- tritonclient


def test_triton_sees_a_server_and_a_model_that_are_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nobody")


def test_triton_reads_the_metadata(client):
    assert {"binary_tensor_data", "statistics"} <= set(client.get_server_metadata()["extensions"])
    assert not any(
        "trace" in name or "shared_memory" in name or "model_repository" in name for name in client.get_server_metadata()["extensions"]
    )
    assert client.get_model_metadata("tiny") == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "pytorch_vit",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}, {"name": "labels", "datatype": "BYTES", "shape": [-1, 5]}],
    }
    assert client.get_model_metadata("tiny", "1") == client.get_model_metadata("tiny")


def test_triton_reads_the_configuration(client):
    config = client.get_model_config("tiny")
    assert config["max_batch_size"] == len(PICTURES)
    assert config["input"] == [{"name": "image", "data_type": "TYPE_STRING", "dims": [1]}]
    assert [(output["name"], output["data_type"], output["dims"]) for output in config["output"]] == [
        ("scores", "TYPE_FP32", [10]),
        ("labels", "TYPE_STRING", [5]),
    ]


@pytest.mark.parametrize("binary_input", [True, False], ids=["binary in", "json in"])
@pytest.mark.parametrize(("way_in", "way_out"), list(itertools.product(COMPRESSIONS, COMPRESSIONS)))
def test_triton_classifies_a_batch_however_it_is_sent(answers, client, binary_input, way_in, way_out):
    requested = {
        "by default": None,
        "binary": [triton.InferRequestedOutput("labels"), triton.InferRequestedOutput("scores")],
        "json": [triton.InferRequestedOutput("labels", binary_data=False), triton.InferRequestedOutput("scores", binary_data=False)],
        "mixed": [triton.InferRequestedOutput("labels", binary_data=False), triton.InferRequestedOutput("scores", binary_data=True)],
    }
    for outputs in requested.values():
        result = client.infer(
            "tiny",
            [image(*PICTURES, binary=binary_input)],
            outputs=outputs,
            request_id="abc",
            request_compression_algorithm=way_in,
            response_compression_algorithm=way_out,
        )
        assert result.get_response()["id"] == "abc"
        assert (result.get_response()["model_name"], result.get_response()["model_version"]) == ("tiny", "1")
        np.testing.assert_allclose(result.as_numpy("scores"), answers.scores, rtol=1e-4)
        assert as_text(result.as_numpy("labels")) == answers.labels


def as_text(labels: np.ndarray) -> list[list[str]]:
    """JSON brings text, binary data bytes."""
    return [[label.decode() if isinstance(label, bytes) else label for label in row] for row in labels]


def test_the_pictures_of_these_tests_have_different_scores(answers):
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(answers.scores, 2)) > 1e-3


def test_triton_gets_only_the_output_that_it_asks_for(client):
    result = client.infer("tiny", [image(PICTURES[0])], outputs=[triton.InferRequestedOutput("labels")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["labels"]


def test_triton_gets_the_best_classes_as_strings(answers, client):
    requested = [triton.InferRequestedOutput("scores", class_count=3)]
    best = client.infer("tiny", [image(*PICTURES)], outputs=requested).as_numpy("scores")
    assert best.shape == (len(PICTURES), 3)
    for row, scores, labels in zip(best, answers.scores, answers.labels, strict=True):
        for element, label in zip(row, labels, strict=False):
            score, index, name = element.decode().split(":")
            assert name == label
            assert float(score) == pytest.approx(scores[int(index)], abs=1e-5)


def test_triton_sends_many_requests_and_each_gets_its_answer(answers, client):
    pending = [client.async_infer("tiny", [image(picture)]) for picture in PICTURES * 5]
    for request, scores in zip(pending, [*answers.scores] * 5, strict=True):
        np.testing.assert_allclose(request.get_result().as_numpy("scores")[0], scores, rtol=1e-4)


def test_triton_chooses_priority_deadline_and_merging(service, client):
    result = client.infer("tiny", [image(PICTURES[0])], priority=1, timeout=20_000_000, parameters={"merge": "fast"})
    np.testing.assert_allclose(result.as_numpy("scores")[0], service.scores(PICTURES[0], merge="fast"), rtol=1e-4)
    assert result.get_response()["parameters"] == {"rung": "fast", "tokens_in": 17, "tokens_out": 9}


def test_triton_counts_grow_with_what_was_inferred(client):
    def statistics_of_tiny():
        (statistics,) = client.get_inference_statistics("tiny")["model_stats"]
        return statistics

    before = statistics_of_tiny()
    client.infer("tiny", [image(*PICTURES)])
    after = statistics_of_tiny()

    assert (after["name"], after["version"]) == ("tiny", "1")
    assert after["inference_count"] - before["inference_count"] == len(PICTURES)
    assert 1 <= after["execution_count"] - before["execution_count"] <= len(PICTURES)
    assert sum(entry["compute_infer"]["count"] for entry in after["batch_stats"]) == after["execution_count"]
    assert sum(entry["batch_size"] * entry["compute_infer"]["count"] for entry in after["batch_stats"]) == after["inference_count"]
    parts = after["inference_stats"]
    assert parts["success"]["count"] == after["inference_count"]
    assert parts["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert parts["success"]["ns"] == pytest.approx(
        sum(parts[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output")), rel=0.01
    )
    assert client.get_inference_statistics()["model_stats"] == [after]


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        (lambda c: c.infer("nobody", [image(PICTURES[0])]), "404", "Request for unknown model: 'nobody' is not found"),
        (lambda c: c.infer("tiny", [image(PICTURES[0])], model_version="7"), "404", "'tiny' version 7 is not found"),
        (lambda c: c.infer("tiny", [image(b"no picture")]), "400", "image"),
        (lambda c: c.infer("tiny", [image(*PICTURES, PICTURES[0])]), "413", "batch-size must be <= 4 for 'tiny'"),
        (lambda c: c.infer("tiny", [image(PICTURES[0])], priority=9), "400", "priority"),
        (lambda c: c.get_model_metadata("nobody"), "404", "unknown model"),
        (lambda c: c.get_trace_settings(), "501", "trace settings"),
        (lambda c: c.update_trace_settings("tiny", {"trace_rate": "1"}), "501", "trace settings"),
        (lambda c: c.get_log_settings(), "501", "logging"),
        (lambda c: c.update_log_settings({"log_info": False}), "501", "logging"),
        (lambda c: c.get_system_shared_memory_status(), "501", "shared memory"),
        (lambda c: c.register_system_shared_memory("r", "/k", 8), "501", "shared memory"),
        (lambda c: c.unregister_system_shared_memory(), "501", "shared memory"),
        (lambda c: c.get_cuda_shared_memory_status("r"), "501", "shared memory"),
    ],
)
def test_triton_shows_why_it_was_refused(client, call, status, message):
    with pytest.raises(InferenceServerException) as refused:
        call(client)
    assert refused.value.status() == status
    assert message in refused.value.message()


async def test_asyncio_triton_sees_server_model_and_index(aio):
    assert await aio.is_server_live()
    assert await aio.is_server_ready()
    assert await aio.is_model_ready("tiny")
    assert (await aio.get_server_metadata())["name"] == "opsin"
    assert (await aio.get_model_metadata("tiny"))["name"] == "tiny"
    assert (await aio.get_model_config("tiny"))["name"] == "tiny"
    assert await aio.get_model_repository_index() == [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
    assert (await aio.get_inference_statistics())["model_stats"][0]["name"] == "tiny"


@pytest.mark.parametrize("way", COMPRESSIONS)
async def test_asyncio_triton_classifies(answers, aio, way):
    result = await aio.infer("tiny", [image(*PICTURES)], request_compression_algorithm=way, response_compression_algorithm=way)
    np.testing.assert_allclose(result.as_numpy("scores"), answers.scores, rtol=1e-4)


async def test_asyncio_triton_shows_why_it_was_refused(aio):
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
        await aio.infer("nobody", [image(PICTURES[0])])


# --- KServe


async def test_kserve_sees_a_server_and_a_model_that_are_ready(service, kserve):
    base = service.gateway.url
    assert await kserve.is_server_live(base)
    assert await kserve.is_server_ready(base)
    assert await kserve.is_model_ready(base, "tiny")


@pytest.mark.parametrize("binary_input", [True, False], ids=["binary in", "json in"])
@pytest.mark.parametrize("binary_output", [True, False], ids=["binary out", "json out"])
async def test_kserve_classifies(service, answers, kserve, binary_input, binary_output):
    elements = PICTURES if binary_input else [base64.b64encode(picture).decode() for picture in PICTURES]
    tensor = InferInput("image", [len(PICTURES), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(elements, object).reshape(-1, 1), binary_data=binary_input)
    outputs = [RequestedOutput(name, {"binary_data": binary_output}) for name in ("scores", "labels")]
    request = InferRequest("tiny", [tensor], request_id="k", request_outputs=outputs)

    response = await kserve.infer(service.gateway.url, request, model_name="tiny")

    assert (response.model_name, response.id) == ("tiny", "k")
    np.testing.assert_allclose(response.get_output_by_name("scores").as_numpy(), answers.scores, rtol=1e-4)
    assert as_text(response.get_output_by_name("labels").as_numpy()) == answers.labels


async def test_kserve_shows_why_it_was_refused(service, kserve):
    tensor = InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"no picture"]], object), binary_data=True)
    with pytest.raises(Exception, match="image"):
        await kserve.infer(service.gateway.url, InferRequest("tiny", [tensor]), model_name="tiny")
