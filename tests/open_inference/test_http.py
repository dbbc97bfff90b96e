"""The protocol on the wire: what the clients' libraries hide."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.open_inference.conftest import PICTURES
from tests.support.images import encode
from tests.support.live_service import MAX_BODY, Service

INFER = "/v2/models/tiny/infer"
LENGTH = "Inference-Header-Content-Length"


def as_json(*pictures: bytes, **fields: Any) -> dict[str, Any]:
    data = [base64.b64encode(picture).decode() for picture in pictures]
    return {"inputs": [{"name": "image", "shape": [len(pictures)], "datatype": "BYTES", "data": data}], **fields}


def post(service: Service, body: dict[str, Any], **headers: str) -> httpx2.Response:
    return service.gateway.http.post(INFER, content=json.dumps(body), headers={"accept-encoding": "identity", **headers})


def output(response: httpx2.Response, name: str) -> np.ndarray:
    (found,) = [entry for entry in response.raise_for_status().json()["outputs"] if entry["name"] == name]
    return np.array(found["data"]).reshape(found["shape"])


@pytest.mark.parametrize("shape", [[4], [4, 1]])
def test_a_batch_is_flat_or_a_column(service, answers, shape):
    body = as_json(*PICTURES)
    body["inputs"][0]["shape"] = shape
    np.testing.assert_allclose(output(post(service, body), "scores"), answers.scores, rtol=1e-4)


def test_json_answer_has_no_header_length_and_id_only_if_given(service):
    response = post(service, as_json(PICTURES[0]))
    assert response.headers["content-type"] == "application/json"
    assert LENGTH not in response.headers
    assert response.json().keys() == {"model_name", "model_version", "outputs", "parameters"}
    assert post(service, as_json(PICTURES[0], id="7")).json()["id"] == "7"


def test_a_binary_answer_says_where_its_json_ends(service, answers):
    response = post(service, as_json(PICTURES[0], parameters={"binary_data_output": True}))
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    scores, labels = json.loads(response.content[:length])["outputs"]
    assert scores["parameters"] == {"binary_data_size": 40}
    assert len(response.content) == length + 40 + labels["parameters"]["binary_data_size"]
    np.testing.assert_allclose(np.frombuffer(response.content, "<f4", 10, length), answers.scores[0], rtol=1e-4)
    assert response.content[length + 40 :].startswith(struct.pack("<I", len(answers.labels[0][0])) + answers.labels[0][0].encode())


def test_curl_sends_one_picture_without_json(service, answers):
    response = service.gateway.http.post(INFER, content=PICTURES[2], headers={LENGTH: "0"})
    assert output(response, "labels").tolist() == [answers.labels[2]]


@pytest.mark.parametrize(
    ("accepted", "encoding"), [("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate, br", None), ("br", None), ("identity", None)]
)
def test_answer_is_compressed_if_one_encoding_is_named(service, accepted, encoding):
    response = post(service, as_json(PICTURES[0]), **{"accept-encoding": accepted})
    assert response.headers.get("content-encoding") == encoding
    assert len(output(response, "scores")) == 1


def test_nothing_but_inference_is_compressed(service):
    for response in (
        service.gateway.http.get("/v2/models/tiny", headers={"accept-encoding": "gzip"}),
        post(service, {}, **{"accept-encoding": "gzip"}),
    ):
        assert "content-encoding" not in response.headers


@pytest.mark.parametrize(("encoding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_the_header_length_counts_the_inflated_json(service, answers, encoding, squeeze):
    header = json.dumps(
        {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 4 + len(PICTURES[1])}}]}
    ).encode()
    body = squeeze(header + struct.pack("<I", len(PICTURES[1])) + PICTURES[1])
    response = service.gateway.http.post(INFER, content=body, headers={"content-encoding": encoding, LENGTH: str(len(header))})
    np.testing.assert_allclose(output(response, "scores"), answers.scores[1:2], rtol=1e-4)


def test_the_index_lists_what_is_ready_on_request(service):
    entry = {"name": "tiny", "version": "1", "state": "READY", "reason": ""}
    for body in (b"", b"{}", b'{"ready": true}'):
        assert service.gateway.http.post("/v2/repository/index", content=body).json() == [entry]
    assert service.gateway.http.get("/v2/models").json() == {"models": ["tiny"]}


def test_both_spellings_of_the_root_answer_alike(service):
    assert service.gateway.http.get("/v2").json() == service.gateway.http.get("/v2/").json()


X = {"name": "image", "shape": [1], "datatype": "BYTES"}
HUGE = encode(Image.new("L", (2000, 2000)))
GOOD = as_json(PICTURES[0])

REFUSED = {
    "no JSON": (b"{", 400, "failed to parse the request JSON"),
    "an empty body": (b"", 400, "failed to parse the request JSON"),
    "no inputs": ({"inputs": []}, 400, "expected the input 'image' for model 'tiny'"),
    "another input": ({"inputs": [{**X, "name": "pixels", "data": ["aaaa"]}]}, 400, "unexpected inference input 'pixels' for model 'tiny'"),
    "another datatype": (
        {"inputs": [{**X, "datatype": "FP32", "data": [1]}]},
        400,
        "data-type is 'FP32', but model 'tiny' expects 'BYTES'",
    ),
    "another shape": ({"inputs": [{**X, "shape": [1, 2], "data": ["aaaa", "aaaa"]}]}, 400, "unexpected shape for input 'image'"),
    "no pictures": ({"inputs": [{**X, "shape": [0], "data": []}]}, 400, "unexpected shape for input 'image'"),
    "too many pictures": (as_json(*PICTURES, PICTURES[0]), 413, "batch-size must be <= 4 for 'tiny' (OPSIN_MAX_IMAGES)"),
    "no base64": ({"inputs": [{**X, "data": ["/9j!"]}]}, 400, "element 0 is not base64"),
    "no picture": (as_json(b"hello"), 400, "image: "),
    "a truncated picture": (as_json(PICTURES[0], PICTURES[1][:-200]), 400, "image[1]: "),
    "too many pixels": (as_json(HUGE), 413, "OPSIN_MAX_PIXELS"),
    "too many bytes": (b" " * (MAX_BODY + 1), 413, "OPSIN_MAX_BODY_BYTES"),
    "another output": ({**GOOD, "outputs": [{"name": "logits"}]}, 400, "unexpected inference output 'logits' for model 'tiny'"),
    "an output twice": ({**GOOD, "outputs": [{"name": "scores"}, {"name": "scores"}]}, 400, "requested twice"),
    "classes of labels": (
        {**GOOD, "outputs": [{"name": "labels", "parameters": {"classification": 3}}]},
        400,
        "classification needs an output with labels; this model's: 'scores'",
    ),
    "no number of classes": (
        {**GOOD, "outputs": [{"name": "scores", "parameters": {"classification": "3"}}]},
        400,
        "classification must be",
    ),
    "a shape of thousands of digits": ({"inputs": [{**X, "shape": [10**4000, 10**4000], "data": ["aaaa"]}]}, 400, "not possible"),
    "a name of megabytes": ({"inputs": [{**X, "name": "x" * 300_000, "data": ["aaaa"]}]}, 413, "besides the elements"),
    "a parameter of megabytes": ({**GOOD, "parameters": {"timeout": "x" * 300_000}}, 413, "besides the elements"),
    "an unknown priority": ({**GOOD, "parameters": {"priority": 4}}, 400, "priority: 4 must be"),
    "an odd timeout": ({**GOOD, "parameters": {"timeout": -1}}, 400, "timeout: -1 must be"),
    "an unknown rung": ({**GOOD, "parameters": {"merge": "warp"}}, 400, "merge: 'warp'"),
    "an odd rung": ({**GOOD, "parameters": {"merge": True}}, 400, "merge: True must be"),
    "binary or not, in a word": ({**GOOD, "parameters": {"binary_data_output": "false"}}, 400, "binary_data_output: 'false' must be"),
    "binary or not, as a number": (
        {**GOOD, "outputs": [{"name": "scores", "parameters": {"binary_data": 1}}]},
        400,
        "binary_data: 1 must be true or false",
    ),
    "no time left": ({**GOOD, "parameters": {"timeout": 1}}, 504, "timed out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_is_refused_in_the_shape_of_the_protocol(service, case):
    body, status, message = REFUSED[case]
    content = body if isinstance(body, bytes) else json.dumps(body)
    assert_error(service.gateway.http.post(INFER, content=content), status, message)


def test_encodings_and_lengths_that_do_not_fit_are_refused(service):
    http = service.gateway.http
    assert_error(
        http.post(INFER, content=gzip.compress(bytes(MAX_BODY + 1)), headers={"content-encoding": "gzip"}), 413, "OPSIN_MAX_BODY_BYTES"
    )
    assert_error(http.post(INFER, content=b"{}", headers={"content-encoding": "gzip"}), 400, "not a valid gzip stream")
    unknown = http.post(INFER, content=b"{}", headers={"content-encoding": "br"})
    assert_error(unknown, 501, "Content-Encoding 'br' is not supported")
    assert unknown.headers["accept-encoding"] == "gzip, deflate"
    assert_error(http.post(INFER, content=b"{}", headers={LENGTH: "3"}), 400, LENGTH)
    assert_error(http.post("/v2/repository/index", content=b"{"), 400, "JSON")


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/models/nobody", 404, "Request for unknown model: 'nobody' is not found"),
        ("GET", "/v2/models/nobody/ready", 404, "unknown model"),
        ("GET", "/v2/models/nobody/stats", 404, "unknown model"),
        ("GET", "/v2/models/tiny/versions/9/config", 404, "'tiny' version 9 is not found"),
        ("POST", "/v2/models/tiny@1/infer", 404, "'tiny@1' is not found"),
        ("GET", "/v2/nothing", 404, "not found: /v2/nothing"),
        ("DELETE", "/v2/nothing/at/all", 404, "not found"),
        ("GET", "/v2/models/tiny/infer", 405, "does not answer GET"),
        ("DELETE", "/v2", 405, "does not answer DELETE"),
        ("PUT", "/v2/repository/index", 405, "does not answer PUT"),
        ("POST", "/v2/logging", 501, "logging"),
        ("POST", "/v2/models/tiny/trace/setting", 501, "trace"),
        ("GET", "/v2/cudasharedmemory/region/x/status", 501, "shared memory"),
    ],
)
def test_paths_and_verbs_that_do_not_fit_are_refused(service, method, path, status, message):
    response = service.gateway.http.request(method, path, content=json.dumps(GOOD) if path.endswith("infer") else b"")
    assert_error(response, status, message)
    assert ("allow" in response.headers) == (status == 405)


def assert_error(response: httpx2.Response, status: int, message: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    assert message in response.json()["error"]
