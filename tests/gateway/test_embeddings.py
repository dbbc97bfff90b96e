"""`POST /v1/embeddings` over HTTP: what it answers, and the words of every refusal in OpenAI's shape."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.gateway.openai import read_embedding_request
from server.http.problems import Problem
from server.supervisor.private_valkey import PrivateValkey
from tests.gateway.test_connections import length
from tests.support.fake_vectors import BROKEN, DIM, MAX_TEXT_BYTES, answer, color_vector, make_encoder, make_pair, text_vector
from tests.support.fake_worker import Worker, make_spec, picture, unbearable
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.raw_http import Raw, post
from tests.support.redis import private_valkey
from tests.support.waiting import eventually

MAX_IMAGES = 4
MAX_BODY = 200_000
SETTINGS: dict[str, Any] = {"max_images": MAX_IMAGES, "max_body_bytes": MAX_BODY, "default_models": {"embed": "words"}}


@pytest.fixture(scope="module")
def embedder() -> Iterator[Worker]:
    """Serves a pair, which is the default, a pair that reads no texts, and an encoder of images."""
    with (
        private_valkey() as server,
        Worker(server.url, [make_pair(), make_pair("mute", reads_texts=False), make_encoder()], answer) as worker,
    ):
        yield worker


@pytest.fixture(scope="module")
def gateway(embedder: Worker) -> Iterator[Gateway]:
    with gateway_process(embedder.url, **SETTINGS) as running:
        yield running


@pytest.fixture
def worker(embedder: Worker) -> Iterator[Worker]:
    """A worker that has finished the jobs of earlier tests."""
    embedder.finish_all()
    yield embedder
    embedder.resume()


def ask(gateway: Gateway, input_: object, **fields: object) -> httpx2.Response:
    return gateway.http.post("/v1/embeddings", json={"input": input_, **fields})


def vectors(response: httpx2.Response) -> NDArray[np.float32]:
    """Return the vectors of a response, in the order of the input: (n, DIM)."""
    document = response.raise_for_status().json()
    assert [(one["object"], one["index"]) for one in document["data"]] == [("embedding", index) for index in range(len(document["data"]))]
    return np.array([one["embedding"] for one in document["data"]], np.float32)


def to_base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def data_uri(image: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{to_base64(image)}"


def picture_vector(step: int) -> NDArray[np.float32]:
    return color_vector(step * 28, 40, 90)


def refusal(response: httpx2.Response, status: int, code: str, param: str | None) -> str:
    """Check all of an error but its message, which is returned."""
    document = response.json()
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), document
    assert document.keys() == {"error"} and document["error"].keys() == {"message", "type", "param", "code"}
    error = document["error"]
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    assert (error["code"], error["param"], error["type"]) == (code, param, kind), error
    assert response.headers["X-Request-ID"]
    message: str = error["message"]
    return message


def test_a_text_has_a_vector(gateway: Gateway) -> None:
    document = ask(gateway, "a dog", model="words", user="u-1").json()
    (one,) = document.pop("data")
    assert document == {"object": "list", "model": "words@1", "usage": {"prompt_tokens": 5, "total_tokens": 5}, "truncated": 0}
    assert (one["object"], one["index"]) == ("embedding", 0)
    np.testing.assert_array_equal(np.array(one["embedding"], np.float32), text_vector("a dog"))


def test_texts_of_all_lengths_are_answered_in_their_order(gateway: Gateway) -> None:
    texts = [f"{'long ' * (number % 7 * 3)}text {number} é🙂" for number in range(256)]
    np.testing.assert_array_equal(vectors(ask(gateway, texts)), [text_vector(text) for text in texts])


def test_vectors_come_as_base64_of_little_endian_float32(gateway: Gateway) -> None:
    document = ask(gateway, ["a dog", "a cat"], encoding_format="base64").json()
    for text, one in zip(("a dog", "a cat"), document["data"], strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), text_vector(text))


@pytest.mark.parametrize(
    ("input_", "fields"),
    [
        ([{"image": to_base64(picture(1))}, {"image": data_uri(picture(2))}], {}),
        ([data_uri(picture(1)), to_base64(picture(2))], {"modality": "image"}),
        ([{"image": data_uri(picture(1), "")}, {"image": data_uri(picture(2), "IMAGE/PNG;charset=x")}], {"modality": "text"}),
    ],
    ids=["Jina's", "infinity's", "odd data URIs"],
)
def test_images_have_vectors_however_they_come(gateway: Gateway, input_: list[object], fields: dict[str, str]) -> None:
    np.testing.assert_array_equal(vectors(ask(gateway, input_, **fields)), [picture_vector(1), picture_vector(2)])


def test_one_image_may_come_without_a_list(gateway: Gateway) -> None:
    large = picture(3, size=(200, 150), kind="BMP")
    assert len(large) > 64 * 1024, "its body is taken apart in a thread"
    for one in ({"image": data_uri(large)}, {"image": to_base64(large)}):
        np.testing.assert_array_equal(vectors(ask(gateway, one, model="encoder")), [picture_vector(3)])


def test_images_and_texts_of_one_request_keep_their_order(gateway: Gateway, worker: Worker) -> None:
    before = len(worker.done)
    inputs = ["a dog", {"image": to_base64(picture(5))}, {"text": "a cat " * 20}, {"image": to_base64(picture(2))}, "a bird"]
    expected = [text_vector("a dog"), picture_vector(5), text_vector("a cat " * 20), picture_vector(2), text_vector("a bird")]
    np.testing.assert_array_equal(vectors(ask(gateway, inputs)), expected)
    assert len(worker.done) - before == 4, "two images, and texts of two lengths"


def test_vectors_are_those_of_embed(gateway: Gateway) -> None:
    texts = gateway.http.post("/v1/embed", json={"texts": ["a dog", "a cat"]}).json()["embeddings"]
    np.testing.assert_array_equal(vectors(ask(gateway, ["a dog", "a cat"])), np.array(texts, np.float32))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": None, "dimensions": None, "encoding_format": None, "modality": None},
        {"model": "words@1", "dimensions": DIM},
        {"model": "default/not-specified", "dimensions": 0, "modality": "text"},
        {"user": "me", "task": "retrieval.query", "late_chunking": {"nested": [1, "x" * 30_000]}},
    ],
    ids=["nothing", "null", "the bundle's own", "infinity's defaults", "unknown fields"],
)
def test_what_is_left_open_is_the_services_choice(gateway: Gateway, fields: dict[str, object]) -> None:
    response = ask(gateway, "a dog", **fields)
    np.testing.assert_array_equal(vectors(response), [text_vector("a dog")])
    assert response.json()["model"] == "words@1"


def test_the_answer_counts_texts_that_lost_their_end(gateway: Gateway) -> None:
    assert ask(gateway, ["short", "x" * (MAX_TEXT_BYTES + 1), "y" * 2048]).json()["truncated"] == 2


@pytest.mark.parametrize(
    ("input_", "fields", "status", "code", "param", "words"),
    [
        (None, {}, 422, "invalid-option", "input", "missing"),
        ([], {}, 422, "invalid-option", "input", "an empty list"),
        ("", {}, 422, "invalid-option", "input", "empty: send at least one character"),
        (["a", " \n"], {}, 422, "invalid-option", "input[1]", "empty: send at least one character"),
        (["a", "x" * 2049], {}, 413, "too-large", "input[1]", "2049 characters: at most 2048"),
        ("x" * 100_000, {}, 413, "too-large", "input", "100000 characters: at most 2048"),
        ("é" * 20_000, {}, 413, "too-large", "input", "20000 characters: at most 2048"),
        (["a"] * 257, {}, 413, "too-large", "input[256]", "more than 256 texts"),
        ([{"image": to_base64(picture(1))}] * 5, {}, 413, "too-large", "input[4]", "more than 4 images in one request (OPSIN_MAX_IMAGES)"),
        ([1, 2, 3], {}, 400, "invalid-body", "input", "check_embedding_ctx_length=False"),
        ([[1, 2], [3]], {}, 400, "invalid-body", "input", "send the text itself"),
        (7, {}, 400, "invalid-body", "input", "send the text itself"),
        (["a", None], {}, 422, "invalid-option", "input[1]", "None is not a string"),
        (["a", True], {}, 422, "invalid-option", "input[1]", "True is not a string"),
        (["a", {}], {}, 422, "invalid-option", "input[1]", "neither text nor image"),
        ({"text": "a", "image": "b"}, {}, 422, "invalid-option", "input", "text and image"),
        ({"text": ["a"]}, {}, 422, "invalid-option", "input", "is not a string"),
        ({"image": "https://example.org/cat.jpg"}, {}, 400, "invalid-body", "input", "URLs are not fetched: send the image's bytes"),
        (["file:///etc/passwd"], {"modality": "image"}, 400, "invalid-body", "input", "URLs are not fetched"),
        ({"image": "data:image/png,abc"}, {}, 422, "invalid-option", "input", "must be in base64"),
        ({"image": "data:" + "x" * 300 + ";base64,abcd"}, {}, 422, "invalid-option", "input", "must be in base64"),
        ({"image": "data:bild/é;base64,abcd"}, {}, 422, "invalid-option", "input", "must be in base64"),
        (["a", {"image": "!"}], {}, 422, "invalid-option", "input[1]", "not valid base64"),
        ({"image": ""}, {}, 400, "invalid-body", "input", "no bytes of an image"),
        (["a", data_uri(picture(1))], {}, 400, "invalid-body", "input[1]", '"modality": "image"'),
        (["a", {"image": to_base64(b"GIF? no image")}], {}, 415, "not-an-image", "input[1]", "not an image"),
        (["a", {"image": to_base64(picture(1, (64, 64), "JPEG")[:400])}], {}, 422, "corrupt-image", "input[1]", "truncated"),
        ("a", {"modality": "audio"}, 422, "invalid-option", "modality", "must be one of text, image"),
        ("a", {"modality": ["image"]}, 422, "invalid-option", "modality", "must be one of text, image"),
        ("a", {"encoding_format": "int8"}, 422, "invalid-option", "encoding_format", "'int8' must be one of float, base64"),
        ("a", {"dimensions": 3}, 422, "invalid-option", "dimensions", "vectors of words@1 have 4 numbers"),
        ("a", {"dimensions": -1}, 422, "invalid-option", "dimensions", "must be a positive integer"),
        ("a", {"dimensions": 2**70}, 422, "invalid-option", "dimensions", ""),
        ("a", {"model": "nobody"}, 404, "unknown-model", "model", "'nobody' is not served; known for embed: encoder@1, mute@1, words@1"),
        ("a", {"model": ["words"]}, 422, "invalid-option", "model", "must be text"),
        ("a", {"model": "m" * 20_000}, 422, "invalid-option", "model", "longer than 4096"),
        (["a", "b"], {"model": "mute"}, 422, "invalid-option", "input", "opsin bundles tokenizer mute FILE"),
        ("a", {"model": "encoder"}, 422, "invalid-option", "input", "encoder@1 takes image, and no text"),
        (
            [{"image": to_base64(picture(1))}, "a"],
            {"model": "encoder"},
            422,
            "invalid-option",
            "input[1]",
            "encoder@1 takes image, and no text",
        ),
    ],
)
def test_bad_input_is_refused_with_its_field(
    gateway: Gateway, worker: Worker, input_: object, fields: dict[str, object], status: int, code: str, param: str, words: str
) -> None:
    before = len(worker.done)
    assert words in refusal(ask(gateway, input_, **fields), status, code, param)
    assert len(worker.done) == before, "nothing of it was computed"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([data_uri(picture(1)), "x" * 20_000, "é\\" * 9000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "image", "url"]), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    fields=st.fixed_dictionaries({"input": VALUES}, optional=dict.fromkeys(("model", "modality", "dimensions", "encoding_format"), VALUES))
)
def test_whatever_json_says_it_is_read_or_refused(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode("utf-8", "surrogatepass")
    try:
        read = read_embedding_request(body, MAX_IMAGES)
    except Problem as problem:
        assert 400 <= problem.kind.status < 500 and problem.detail
    else:
        assert sorted(at for indices in read.indices.values() for at in indices) == list(range(read.count))


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "invalid-body", None),
        (b"{", 400, "invalid-body", None),
        (b'["a dog"]', 400, "invalid-body", None),
        (b'{"input": "\xff"}', 400, "invalid-body", None),
        (b'{"input": "\\ud800"}', 400, "invalid-body", None),
        (b'{"input": ["\\udc00 \\ud800"]}', 400, "invalid-body", None),
        (b'{"input": ' + b"[" * 100 + b"]" * 100 + b"}", 400, "invalid-body", None),
        (b'{"input": "' + b"x" * MAX_BODY + b'"}', 413, "too-large", None),
        (picture(1), 400, "invalid-body", None),
    ],
    ids=["empty", "cut short", "a list", "no UTF-8", "a lone surrogate", "two of them", "nested", "too long", "an image"],
)
def test_a_body_that_is_none_is_refused(gateway: Gateway, body: bytes, status: int, code: str, param: str | None) -> None:
    refusal(gateway.http.post("/v1/embeddings", content=body), status, code, param)


@pytest.mark.parametrize(
    ("headers", "status", "code", "param"),
    [
        ({"Accept": "text/html"}, 406, "not-acceptable", "Accept"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported-encoding", None),
        ({"X-Request-Timeout": "soon"}, 422, "invalid-option", "X-Request-Timeout"),
    ],
)
def test_headers_that_cannot_be_served_are_refused(gateway: Gateway, headers: dict[str, str], status: int, code: str, param: str) -> None:
    refusal(gateway.http.post("/v1/embeddings", json={"input": "a dog"}, headers=headers), status, code, param)


@pytest.mark.parametrize(
    ("input_", "param"),
    [
        ([BROKEN, "a dog"], "input"),
        (BROKEN, "input"),
        (["a dog", {"image": to_base64(picture(1))}, {"image": to_base64(unbearable())}], "input[2]"),
        ([{"image": to_base64(picture(1))}, BROKEN], "input"),
    ],
    ids=["one of two texts", "the text", "the second image", "a text next to an image"],
)
def test_a_model_that_fails_is_an_error_of_the_service(gateway: Gateway, input_: object, param: str) -> None:
    assert "does not like this" in refusal(ask(gateway, input_), 500, "model-error", param)


def test_requests_are_counted_like_others(gateway: Gateway) -> None:
    def count_requests(outcome: str, model: str) -> float:
        return gateway.metric("opsin_requests_total", protocol="rest", outcome=outcome, model=model)

    before = count_requests("ok", "words"), count_requests("client_error", "words")
    ask(gateway, "a dog").raise_for_status()
    ask(gateway, "a dog", dimensions=3)
    assert (count_requests("ok", "words"), count_requests("client_error", "words")) == (before[0] + 1, before[1] + 1)
    assert gateway.count_in_flight() == 0


def test_an_answer_that_comes_too_late_is_a_deadline(gateway: Gateway, worker: Worker) -> None:
    worker.pause()
    late = gateway.http.post("/v1/embeddings", json={"input": "a dog"}, headers={"X-Request-Timeout": "0.1"})
    refusal(late, 504, "deadline", None)


def test_the_work_of_a_client_that_leaves_is_cancelled(gateway: Gateway, worker: Worker) -> None:
    worker.pause()
    body = json.dumps({"input": ["a dog", {"image": to_base64(picture(1))}]}).encode()
    with Raw(gateway) as raw:
        raw.send(post("/v1/embeddings", length(len(body)), "Content-Type: application/json", body=body))
        eventually(lambda: not worker.all_cancelled(), "its jobs wait")
    eventually(worker.all_cancelled, "they are cancelled")
    eventually(lambda: gateway.count_in_flight() == 0, "the request has ended")


def test_a_full_queue_says_when_to_come_back(embedder: Worker, worker: Worker) -> None:
    worker.pause()
    with gateway_process(embedder.url, queue_max_items=2, **SETTINGS) as small:
        answer = ask(small, [{"image": to_base64(picture(step))} for step in range(4)])
        refusal(answer, 429, "queue-full", None)
        assert int(answer.headers["Retry-After"]) >= 1


def test_a_gateway_that_drains_says_so(embedder: Worker, worker: Worker) -> None:
    worker.pause()
    with gateway_process(embedder.url, **SETTINGS) as leaving, Raw(leaving) as raw:
        body = b'{"input": "a dog"}'
        raw.send(post("/v1/embeddings", length(len(body)), body=body))
        eventually(lambda: leaving.count_in_flight() == 1, "a request is under way")
        leaving.terminate()
        eventually(lambda: leaving.http.get("/health/ready").status_code == 503, "it drains")
        refused = ask(leaving, "a cat")
        refusal(refused, 503, "draining", None)
        assert int(refused.headers["Retry-After"]) >= 1
        worker.resume()
        assert raw.answer().status == 200


def test_behind_trusted_proxy_excess_client_gets_openai_error(valkey: PrivateValkey) -> None:
    with (
        Worker(valkey.url, [make_pair()], answer) as worker,
        gateway_process(valkey.url, max_connections=4, trusted_proxies=["127.0.0.7"]) as gateway,
    ):
        worker.pause()
        body = b'{"input": "a dog"}'
        request = post("/v1/embeddings", length(len(body)), "X-Forwarded-For: 192.0.2.1", body=body)
        with Raw(gateway, "127.0.0.7") as first, Raw(gateway, "127.0.0.7") as second:
            first.send(request)
            eventually(lambda: gateway.count_in_flight() == 1, "a quarter is under way")
            refused = second.send(request).answer()
            assert (refused.status, json.loads(refused.body)["error"]["type"]) == (429, "rate_limit_error")
            worker.resume()
            assert first.answer().status == 200


def test_other_methods_are_refused(gateway: Gateway) -> None:
    refused = gateway.http.get("/v1/embeddings")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")


def test_openapi_describes_what_comes_and_goes(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    operation = document["paths"]["/v1/embeddings"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    for good in ("a dog", ["a dog"], {"text": "a dog"}, ["a dog", {"image": "aGk="}]):
        jsonschema.validate({"input": good, "model": "words", "user": "me"}, body)
    for bad in (None, [], 7, [[1]], {"url": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"input": bad}, body)
    responses = {"200": ask(gateway, ["a dog"]), "404": ask(gateway, "a dog", model="nobody"), "422": ask(gateway, "")}
    for status, response in responses.items():
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        jsonschema.validate(response.json(), {**schema, "components": document["components"]})


def test_models_are_listed_as_openais_clients_expect(gateway: Gateway) -> None:
    document = gateway.http.get("/v1/models").json()
    assert document["object"] == "list"
    assert document["data"] == [
        {"id": f"{name}@1", "object": "model", "created": 0, "owned_by": "opsin"} for name in ("encoder", "mute", "words")
    ]
    assert [f"{model['name']}@{model['version']}" for model in document["models"]] == [model["id"] for model in document["data"]]
    for name in ("words", "words@1"):
        one = gateway.http.get(f"/v1/models/{name}").json()
        assert {key: one[key] for key in ("id", "object", "created", "owned_by")} == document["data"][2]


def test_a_service_without_vectors_says_what_it_has(valkey: PrivateValkey) -> None:
    with Worker(valkey.url, [make_spec()]), gateway_process(valkey.url) as gateway:
        assert "no bundle for embed is served; tasks with one: classify" in refusal(ask(gateway, "a"), 404, "unknown-model", None)


def test_a_pair_that_reads_no_texts_is_no_default_for_labels(gateway: Gateway, worker: Worker) -> None:
    answer = gateway.http.post("/v1/zero-shot", files={"image": picture(1)}, data={"label": ["a dog", "a cat"]})
    assert (answer.status_code, answer.json()["model"]) == (200, "words"), answer.text
