"""Bad requests to `/v1/inpaint` end in a 4xx that names the field."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.support.images import box_mask, encode, noise
from tests.support.raw_http import Raw
from tests.support.task_clients import Painter

FILE, MASK = encode(noise(40, 60)), box_mask(40, 60, (20, 10, 40, 26))


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"steps": 0}, "steps", "from 1 to 1000"),
        ({"steps": 10**6}, "steps", "from 1 to 1000"),
        ({"seed": -1}, "seed", "from 0 to 9223372036854775807"),
        ({"seed": 2**63}, "seed", "from 0 to 9223372036854775807"),
        ({"samples": 9}, "samples", "from 1 to 8"),
        ({"samples": 0}, "samples", "from 1 to 8"),
        ({"sampler": "euler"}, "sampler", "one of ddim, ancestral, one-step"),
        ({"sampler": "one-step", "steps": 2}, "steps", "the sampler one-step takes 1"),
        ({"spacing": "cosine"}, "spacing", "one of uniform, logsnr"),
        ({"eta": 2}, "eta", "from 0 to 1"),
        ({"eta": 0.5, "sampler": "ancestral"}, "eta", "it is for the sampler `ddim`"),
        ({"grow": -1}, "grow", "from 0 to 512"),
        ({"feather": 1000}, "feather", "from 0 to 128"),
        ({"preset": "best"}, "preset", "one of draft, fast, standard, full"),
        ({"size": "stretch"}, "size", "one of fit, crop, tile"),
        ({"strength": 1}, "strength", "unknown; the parts are `image`, `mask`"),
        ({"deterministic": "perhaps"}, "deterministic", "true or false"),
    ],
    ids=str,
)
def test_options_that_are_not_understood(painter: Painter, options: dict[str, Any], field: str, reason: str) -> None:
    named, detail = painter.refusal(422, FILE, MASK, **options)
    assert named == field and reason in detail


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("box:50,30,20,20", "leaves the image of 60 × 40 pixels"),
        ("box:1,2,3", "use `box:X,Y,W,H` in pixels"),
        ("box:0,0,0,5", "use `box:X,Y,W,H` in pixels"),
        ("center:7", "use `box:X,Y,W,H` in pixels"),
        ("everything", "must be `box:X,Y,W,H` in pixels"),
    ],
)
def test_words_that_are_no_mask(painter: Painter, words: str, reason: str) -> None:
    named, detail = painter.refusal(422, FILE, words=words)
    assert named == "mask" and reason in detail


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA"])
def test_a_missing_mask_is_refused(painter: Painter, kind: str) -> None:
    """An image without transparency would come back unchanged after all the steps, without an explanation."""
    named, detail = painter.refusal(422, encode(noise(40, 60).convert(kind)))
    assert named == "mask" and "missing" in detail and "box:X,Y,W,H" in detail


PNG_ALONE = {"Accept": "image/png"}


@pytest.mark.parametrize("place", ["url", "form"])
def test_several_samples_are_refused_as_a_png(painter: Painter, place: str) -> None:
    url, files = "/v1/inpaint" + ("?samples=2" if place == "url" else ""), {"image": ("i", FILE), "mask": ("m", MASK)}
    refused = painter.gateway.http.post(url, files=files, data={"samples": 2} if place == "form" else {}, headers=PNG_ALONE)
    assert (refused.status_code, refused.json()["field"]) == (406, "Accept")
    assert "application/json" in refused.json()["detail"]


def test_samples_in_url_are_refused_before_body_is_read(painter: Painter) -> None:
    with Raw(painter.gateway) as raw:
        raw.send(b"POST /v1/inpaint?samples=2 HTTP/1.1\r\nHost: x\r\nAccept: image/png\r\nContent-Length: 100000\r\n\r\n")
        assert raw.answer().status == 406


def test_a_mask_of_another_size(painter: Painter) -> None:
    named, detail = painter.refusal(422, FILE, box_mask(60, 40, (0, 0, 5, 5)))
    assert (named, detail) == ("mask", "40 × 60 pixels, but the image, upright, has 60 × 40")


def test_a_mask_given_twice(painter: Painter) -> None:
    assert painter.refusal(422, FILE, MASK, words="center")[0] == "mask"


def test_files_that_are_no_images_are_named(painter: Painter) -> None:
    assert painter.refusal(415, b"no image", MASK)[0] == "image"
    assert painter.refusal(415, FILE, b"no image")[0] == "mask"
    assert painter.refusal(422, FILE[: len(FILE) // 2], MASK)[0] == "image"
    assert painter.refusal(422, FILE, encode(noise(40, 60))[:2000])[0] == "mask"
    assert painter.refusal(400, FILE, b"")[0] == "mask"


def test_more_steps_than_one_request_may_take(painter: Painter) -> None:
    named, detail = painter.refusal(413, FILE, MASK, steps=1000, samples=5)
    assert named == "steps" and "at most 4000 steps in one request" in detail
    named, detail = painter.refusal(413, FILE, words="center:1", size="tile", steps=400)
    assert named == "size" and "at most 4000 steps" in detail


def test_more_pixels_than_one_answer_may_have(painter: Painter) -> None:
    """The service's limit is one megapixel here."""
    large = encode(Image.new("L", (1000, 1001), 9))
    assert painter.refusal(413, large, MASK)[0] == "image"
    assert painter.refusal(413, FILE, large)[0] == "mask"
    named, detail = painter.refusal(413, encode(Image.new("L", (500, 500), 9)), words="center", samples=5)
    assert named == "image" and "5 samples of 500 × 500 pixels are together above the limit" in detail


def test_an_image_is_needed(painter: Painter) -> None:
    answer = painter.gateway.http.post("/v1/inpaint", files={"mask": MASK})
    assert (answer.status_code, answer.json()["field"]) == (422, "image")


def test_a_model_of_another_task(painter: Painter) -> None:
    answer = painter.fill(FILE, MASK, model="tiny")
    assert (answer.status_code, answer.json()["detail"]) == (404, "'tiny' is for classify; known for inpaint: painter@1")


def test_a_media_type_that_is_not_offered(painter: Painter) -> None:
    assert painter.fill(FILE, MASK, headers={"Accept": "image/jpeg"}).status_code == 406
