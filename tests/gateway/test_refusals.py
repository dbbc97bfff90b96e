"""`POST /v1/classify`, when the request is at fault: the status and the words of every refusal."""

from __future__ import annotations

import base64
import socket
import zlib

import pytest

from tests.support.fake_worker import Worker, picture
from tests.support.gateway_process import Gateway, problem
from tests.support.images import png_that_claims

JPEG_HEAD = b"\xff\xd8\xff\xe0\x00\x10JFIF"


def test_an_empty_body(gateway: Gateway) -> None:
    assert "empty" in problem(gateway.classify(b""), 400, "invalid-body")["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xd8\xff"])
def test_json_that_is_none(gateway: Gateway, body: bytes) -> None:
    problem(gateway.classify(body, headers={"Content-Type": "application/json"}), 400, "invalid-body")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", picture(1)),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc'),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Type: image/png\r\n\r\nabc\r\n--b--\r\n"),
    ],
    ids=["no boundary", "empty", "an image instead", "cut short", "a part without a name"],
)
def test_multipart_that_is_none(gateway: Gateway, content_type: str, body: bytes) -> None:
    problem(gateway.classify(body, headers={"Content-Type": content_type}), 400, "invalid-body")


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "image"),
        ({"images": []}, "image"),
        ({"image": 5}, "image"),
        ({"image": "not base64!"}, "image"),
        ({"images": [base64.b64encode(picture(1)).decode(), "§"]}, "image[1]"),
        ({"images": "abcd"}, "images"),
        ({"image": "", "images": []}, "images"),
        ({"image": base64.b64encode(picture(1)).decode(), "top_k": 1.5}, "top_k"),
        ({"image": base64.b64encode(picture(1)).decode(), "colour": "red"}, "colour"),
    ],
)
def test_json_fields_that_cannot_be_used_are_named(gateway: Gateway, document: dict[str, object], field: str) -> None:
    assert problem(gateway.http.post("/v1/classify", json=document), 422, "invalid-option")["field"] == field


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("top_k", "0"),
        ("top_k", "11"),
        ("top_k", "-1"),
        ("top_k", "many"),
        ("top_k", "²"),
        ("merge", "-1"),
        ("merge", "fastest"),
        ("merge", "1.5"),
        ("merge", "99999999999999999999"),
        ("priority", "urgent"),
        ("colour", "red"),
    ],
)
def test_options_out_of_range_are_named_with_what_is_possible(gateway: Gateway, option: str, value: str) -> None:
    document = problem(gateway.classify(picture(1), **{option: value}), 422, "invalid-option")
    assert document["field"] == option
    assert any(
        hint in document["detail"]
        for hint in (
            "from 1 to 10",
            "positive integer",
            "gentle, strong",
            "high, normal, low",
            "model, top_k, merge, merge_sight, trace, timeline, views, crops, start_s, end_s, windows, use, priority",
        )
    )


def test_an_option_given_in_two_places(gateway: Gateway) -> None:
    response = gateway.classify_all(picture(1), fields={"top_k": "1"}, top_k=2)
    assert problem(response, 422, "invalid-option")["field"] == "top_k"
    assert problem(gateway.http.post("/v1/classify?top_k=1&top_k=2", content=picture(1)), 422, "invalid-option")["field"] == "top_k"


@pytest.mark.parametrize("body", [f'{{"top_k": {"9" * 9999}, "top_k": 3}}', '{"image": "§", "model": "reds", "im\\u0061ge": "ABCD"}'])
def test_a_field_of_json_that_is_given_twice(gateway: Gateway, body: str) -> None:
    response = gateway.classify(body.encode(), headers={"Content-Type": "application/json"})
    answer = problem(response, 422, "invalid-option")
    assert (answer["field"], answer["detail"]) == ("top_k" if "top_k" in body else "image", "given twice")


@pytest.mark.parametrize("timeout", ["0", "-1", "0.0009", "1e-300", "1_0", "nan", "inf", "1e9", "soon"])
def test_a_timeout_that_is_none(gateway: Gateway, timeout: str) -> None:
    document = problem(gateway.classify(picture(1), headers={"X-Request-Timeout": timeout}), 422, "invalid-option")
    assert document["field"] == "X-Request-Timeout"


def test_errors_repeat_little_of_what_was_sent(gateway: Gateway) -> None:
    """A client does not read kilobytes of its own request, and a log should not be filled with them."""
    long = "y" * 4000
    answers = [
        gateway.classify(picture(1), model=long),
        gateway.classify(picture(1), merge=long),
        gateway.classify(picture(1), top_k=long),
        gateway.classify(picture(1), **{long: "1"}),
        gateway.classify(picture(1), headers={"Accept": f"text/{long}"}),
        gateway.classify(picture(1), headers={"X-Request-Timeout": long}),
        gateway.http.get(f"/v1/models/{long}"),
        gateway.http.get(f"/{long}"),
        gateway.http.put(f"/v1/jobs/{long}"),
        gateway.http.get(f"/v2/models/{long}"),
        gateway.http.get(f"/v2/{long}"),
        gateway.http.post("/v2/models/reds/infer", json={"inputs": [{"name": long, "shape": [1], "datatype": long, "data": ["aaaa"]}]}),
        gateway.http.post("/v2/models/reds/infer", json={"inputs": [], "outputs": [{"name": long}]}),
    ]
    assert [answer.status_code for answer in answers if not 400 <= answer.status_code < 500] == []
    assert [answer.text.count("y") for answer in answers if answer.text.count("y") > 1024] == []


@pytest.mark.parametrize("model", ["blues", "reds@2", "@", "reds@"])
def test_an_unknown_model_is_refused_with_the_known_ones(gateway: Gateway, model: str) -> None:
    document = problem(gateway.classify(picture(1), model=model), 404, "unknown-model")
    assert "reds@1" in document["detail"] and document["field"] == "model"


@pytest.mark.parametrize(
    "body",
    [b"hello", b"%PDF-1.7 ...", b"BM" + b"x" * 60, b"\0\0\0\x18ftypheic\0\0\0\0mif1", b"\0" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_what_is_no_image(gateway: Gateway, body: bytes) -> None:
    document = problem(gateway.classify(body), 415, "not-an-image")
    assert "JPEG, PNG, WebP" in document["detail"] and document["field"] == "image"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"\0\0\0\x18ftypisom", "this is a video (MP4): it is sent as `video`, as with curl -F video=@FILE"),
        (b"\x1a\x45\xdf\xa3", "this is a video (WebM or Matroska): it is sent as `video`"),
        (b"OggS" + b"\0" * 24 + b"\x80theora", "this is a video (Ogg): it is sent as `video`"),
        (b"OggS" + b"\0" * 24 + b"\x01vorbis", "this is a sound (Ogg): it is sent as `audio`, as with curl -F audio=@FILE"),
        (b"\0\0\0\x18ftypM4A ", "this is a sound (MP4): it is sent as `audio`"),
        (b"RIFF\0\0\0\0WAVEfmt ", "this is a sound (WAV): it is sent as `audio`"),
        (b"ID3\4\0\0\0\0\0\0", "this is a sound (MP3): it is sent as `audio`"),
    ],
)
def test_misplaced_video_or_audio_is_named_before_bad_options(gateway: Gateway, body: bytes, detail: str) -> None:
    for answer in (gateway.classify(body), gateway.classify(body, views=2)):
        document = problem(answer, 415, "not-an-image")
        assert document["field"] == "image" and detail in str(document["detail"])
    form = problem(gateway.classify_all(picture(1), body, windows=2), 415, "not-an-image")
    assert form["field"] == "image[1]" and detail in str(form["detail"])


def test_an_image_with_an_option_of_videos_names_the_option(gateway: Gateway) -> None:
    assert problem(gateway.classify(picture(1), views=2), 422, "invalid-option")["field"] == "views"


def test_a_content_encoding(gateway: Gateway) -> None:
    problem(gateway.classify(zlib.compress(picture(1)), headers={"Content-Encoding": "deflate"}), 415, "unsupported-encoding")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_image(gateway: Gateway, kind: str) -> None:
    image = picture(1, (120, 90), kind)
    for share in (0.2, 0.6, 0.9):
        document = problem(gateway.classify(image[: int(len(image) * share)]), 422, "corrupt-image")
        assert "truncated or corrupt" in document["detail"] and " at 0x" not in document["detail"]


def test_a_decompression_bomb_is_known_by_its_header(gateway: Gateway) -> None:
    document = problem(gateway.classify(png_that_claims(60000, 60000)), 413, "too-large")
    assert document["detail"] == "60000 × 60000 pixels is above the limit of 1 megapixels (OPSIN_MAX_PIXELS)"


def test_a_strip_that_would_grow_beyond_the_limit(gateway: Gateway) -> None:
    assert "too thin" in problem(gateway.classify(picture(1, (60_000, 1), "PNG")), 413, "too-large")["detail"]


def test_one_bad_image_of_several_is_named_and_fails_them_all(gateway: Gateway, worker: Worker) -> None:
    before = len(worker.done)
    good, bad = picture(1), picture(1, (120, 90), "JPEG")[:300]
    assert problem(gateway.classify_all(good, good, good, bad, good), 422, "corrupt-image")["field"] == "image[3]"
    assert problem(gateway.classify_all(good, b"", good), 400, "invalid-body")["field"] == "image[1]"
    assert len(worker.done) == before


def test_too_many_images(gateway: Gateway) -> None:
    assert "OPSIN_MAX_IMAGES" in problem(gateway.classify_all(*[picture(1)] * 9), 413, "too-large")["detail"]


def test_a_form_without_an_image(gateway: Gateway) -> None:
    response = gateway.http.post("/v1/classify", files={"picture": ("a.png", b"x" * 5000)})
    assert problem(response, 422, "invalid-option")["field"] == "picture"


def test_a_body_above_the_limit_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_a_chunked_body_is_counted_while_it_streams(gateway: Gateway) -> None:
    response = gateway.http.post("/v1/classify", content=(b"\xff\xd8\xff" + b"x" * 50_000 for _ in range(100)))
    assert "OPSIN_MAX_BODY_BYTES" in problem(response, 413, "too-large")["detail"]


def test_a_chunked_body_within_the_limit_is_fine(gateway: Gateway) -> None:
    image = picture(3)
    assert gateway.http.post("/v1/classify", content=(image[start : start + 10] for start in range(0, len(image), 10))).status_code == 200


def test_paths_and_methods_that_there_are_not(gateway: Gateway) -> None:
    problem(gateway.http.get("/v1/nothing"), 404, "not-found")
    response = gateway.http.get("/v1/classify")
    problem(response, 405, "method-not-allowed")
    assert response.headers["Allow"] == "POST"
    for method in ("OPTIONS", "PUT"):
        response = gateway.http.request(method, "/v1/jobs/abc")
        problem(response, 405, "method-not-allowed")
        assert response.headers["Allow"] == "DELETE, GET"


def test_unknown_field_is_refused_before_the_rest_of_the_form(gateway: Gateway) -> None:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n"
        connection.sendall(head + b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n')
        assert connection.recv(12) == b"HTTP/1.1 422"


def test_a_task_of_which_no_bundle_is_served(gateway: Gateway) -> None:
    sent = gateway.http.post("/v1/inpaint", files={"image": picture(1), "mask": picture(2)})
    document = problem(sent, 404, "unknown-model")
    assert document["detail"] == "no bundle for inpaint is served; tasks with one: classify"
    assert "field" not in document


def test_client_that_accepts_no_json_is_refused_before_its_body(gateway: Gateway) -> None:
    document = problem(gateway.classify(picture(1), headers={"Accept": "text/html"}), 406, "not-acceptable")
    assert document["field"] == "Accept" and "application/json" in document["detail"]
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 406"
