"""`POST /v1/inpaint` on a running service: what it fills, what it keeps, in every form of request."""

from __future__ import annotations

import base64
import concurrent.futures
import io

import numpy as np
import pytest
from PIL import Image

from tests.support.images import box_mask, decode, encode, noise, outside
from tests.support.task_clients import JSON, Painter

HOLE = (20, 10, 40, 26)
IMAGE = noise(40, 60)
FILE, MASK = encode(IMAGE), box_mask(40, 60, HOLE)


def test_one_sample_is_a_png_with_what_was_decided(painter: Painter) -> None:
    answer = painter.fill(FILE, MASK, steps=3, seed=11)
    assert answer.headers["content-type"] == "image/png"
    assert (answer.headers["x-seed"], answer.headers["x-steps"], answer.headers["x-model"]) == ("11", "3", "painter@1")
    assert "total;dur=" in answer.headers["server-timing"]
    filled, outer = decode(answer.content), outside(40, 60, HOLE)
    assert np.array_equal(filled[outer], np.asarray(IMAGE)[outer])
    assert (filled[~outer] != np.asarray(IMAGE)[~outer]).any()


def test_a_small_plain_jpeg_is_filled(painter: Painter) -> None:
    image, outer = encode(IMAGE, "JPEG"), outside(40, 60, HOLE)
    assert np.array_equal(painter.fill_and_decode(image, MASK)[outer], decode(image)[outer])


def test_json_says_more(painter: Painter) -> None:
    answer = painter.fill(FILE, MASK, samples=2, seed=2**63 - 1, headers=JSON).json()
    assert {name: answer[name] for name in ("model", "version", "width", "height", "masked_pixels", "steps", "sampler")} == {
        "model": "painter",
        "version": "1",
        "width": 60,
        "height": 40,
        "masked_pixels": 320,
        "steps": 2,
        "sampler": "ddim",
    }
    assert [result["seed"] for result in answer["results"]] == [2**63 - 1, 0]
    first, second = (decode(base64.b64decode(result["image"])) for result in answer["results"])
    assert first.shape == (40, 60, 3) and not np.array_equal(first, second)
    assert answer["timing"]["inference_ms"] > 0


def test_several_samples_are_json_by_default(painter: Painter) -> None:
    answer = painter.fill(FILE, MASK, samples=2)
    assert answer.headers["content-type"] == "application/json"


def test_the_same_seed_fills_the_same_and_another_does_not(painter: Painter) -> None:
    first, again, other = (painter.fill_and_decode(FILE, MASK, seed=seed, sampler="ancestral", steps=5) for seed in (3, 3, 4))
    assert np.abs(first.astype(int) - again).max() <= 2
    assert not np.array_equal(first, other)


def test_without_noise_all_seeds_fill_the_same(painter: Painter) -> None:
    first, other = (painter.fill_and_decode(FILE, MASK, seed=seed, sampler="ancestral", steps=5, temperature=0) for seed in (3, 4))
    assert np.abs(first.astype(int) - other).max() <= 2
    assert not np.array_equal(first, painter.fill_and_decode(FILE, MASK, seed=3, sampler="ancestral", steps=5))


def test_a_drawn_seed_is_reported_and_can_be_used_again(painter: Painter) -> None:
    answer = painter.fill(FILE, MASK, deterministic=True)
    seed = int(answer.headers["x-seed"])
    assert 0 <= seed < 2**53
    assert painter.fill(FILE, MASK, deterministic=True, seed=seed).content == answer.content


def test_a_result_does_not_depend_on_other_jobs_in_the_batch(painter: Painter) -> None:
    """Jobs of other samplers, steps and holes share its batches. Equal within 2 of 255 grey levels, or in all bytes if deterministic."""
    alone = {exact: painter.fill_and_decode(FILE, MASK, seed=5, steps=20, deterministic=exact) for exact in (True, False)}
    crowd = [
        {"words": "center:0.6", "sampler": "ancestral", "steps": 30},
        {"words": "random:0.5", "steps": 40, "samples": 3},
        {"words": "box:0,0,1,1", "preset": "draft", "steps": 1},
        {"words": "center", "steps": 25, "eta": 0.5, "spacing": "logsnr"},
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        others = [pool.submit(painter.fill, FILE, **options) for options in crowd * 2]
        shared = {exact: pool.submit(painter.fill_and_decode, FILE, MASK, seed=5, steps=20, deterministic=exact) for exact in (True, False)}
        assert all(other.result().status_code == 200 for other in others)
        assert np.array_equal(shared[True].result(), alone[True])
        assert np.abs(shared[False].result().astype(int) - alone[False]).max() <= 2


@pytest.mark.parametrize("words", ["box:20,10,20,16", "center", "center:0.5", "random:0.25"])
def test_the_mask_in_words(painter: Painter, words: str) -> None:
    filled = painter.fill_and_decode(FILE, words=words, seed=1)
    share = (filled != np.asarray(IMAGE)).any(axis=2).mean()
    assert 0.05 < share < 0.6


def test_options_may_be_in_url_and_image_alone_in_body(painter: Painter) -> None:
    answer = painter.gateway.http.post("/v1/inpaint", params={"mask": "box:20,10,20,16", "steps": 2, "seed": 1}, content=FILE)
    assert np.abs(decode(answer.content).astype(int) - painter.fill_and_decode(FILE, MASK, seed=1)).max() <= 2


def test_parts_and_words_in_json(painter: Painter) -> None:
    parts = {"image": base64.b64encode(FILE).decode(), "mask": base64.b64encode(MASK).decode()}
    expected = painter.fill_and_decode(FILE, MASK, seed=1)
    for body in (parts, {**parts, "mask": "box:20,10,20,16"}):
        answer = painter.gateway.http.post("/v1/inpaint", json={**body, "steps": 2, "seed": 1})
        assert np.abs(decode(answer.content).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**63 - 1])
def test_seeds_stay_exact_in_json(painter: Painter, seed: int) -> None:
    body = {"image": base64.b64encode(FILE).decode(), "mask": "center", "steps": 1, "seed": seed}
    answer = painter.gateway.http.post("/v1/inpaint", json=body, headers=JSON).json()
    assert [result["seed"] for result in answer["results"]] == [seed]


@pytest.mark.parametrize("size", ["fit", "crop", "tile"])
@pytest.mark.parametrize("extra", [{}, {"grow": 2}, {"feather": 3}, {"inject_known": False}], ids=str)
def test_what_is_outside_stays_whatever_the_network_sees(painter: Painter, size: str, extra: dict[str, object]) -> None:
    grown = (HOLE[0] - 2, HOLE[1] - 2, HOLE[2] + 2, HOLE[3] + 2) if "grow" in extra else HOLE
    filled = painter.fill_and_decode(FILE, MASK, size=size, **extra)
    outer = outside(40, 60, grown)
    assert np.array_equal(filled[outer], np.asarray(IMAGE)[outer])
    assert (filled[~outer] != np.asarray(IMAGE)[~outer]).any(axis=1).mean() > 0.9


def test_images_and_masks_of_every_kind(painter: Painter) -> None:
    depth = Image.fromarray((np.asarray(noise(40, 60))[..., 0].astype(np.uint16) << 8) + 77)
    images = [IMAGE.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA")] + [depth]
    for image in images:
        filled = painter.fill_and_decode(encode(image), MASK)
        assert filled.shape == (40, 60, 4 if image.mode in ("LA", "RGBA") else 3)
    assert painter.fill_and_decode(encode(IMAGE.convert("CMYK"), "TIFF"), MASK).shape == (40, 60, 3)
    animated = encode(IMAGE.quantize(), "GIF", save_all=True, append_images=[noise(40, 60, seed=1).quantize()])
    assert painter.fill_and_decode(animated, MASK).shape == (40, 60, 3)

    mask = Image.open(io.BytesIO(MASK))
    cut = Image.new("RGBA", mask.size, (9, 9, 9, 255))
    cut.paste((0, 0, 0, 0), HOLE)
    expected = painter.fill_and_decode(FILE, MASK, seed=1)
    for other in (mask.convert("1"), mask.convert("RGB"), mask.convert("RGBA"), mask.convert("P"), cut):
        assert np.abs(painter.fill_and_decode(FILE, encode(other), seed=1).astype(int) - expected).max() <= 2, other.mode


def test_a_turned_image_and_its_mask_are_those_that_people_see(painter: Painter) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(IMAGE, "PNG", exif=exif)
    upright = np.asarray(IMAGE.transpose(Image.Transpose.ROTATE_270))
    filled = painter.fill_and_decode(turned, box_mask(60, 40, (1, 2, 9, 9)))
    outer = outside(60, 40, (1, 2, 9, 9))
    assert np.array_equal(filled[outer], upright[outer])


def test_the_image_s_own_holes_are_filled_without_a_mask(painter: Painter) -> None:
    pixels = np.array(noise(40, 60, 4))
    pixels[..., 3] = 255
    pixels[10:26, 20:40, 3] = 0
    filled = painter.fill_and_decode(encode(Image.fromarray(pixels)))
    hole = pixels[..., 3] == 0
    assert np.array_equal(filled[~hole], pixels[~hole]) and (filled[hole][:, 3] == 255).all()


def test_a_mask_that_marks_nothing_gives_the_image_back(painter: Painter) -> None:
    assert np.array_equal(painter.fill_and_decode(FILE, encode(Image.new("L", (60, 40), 0))), np.asarray(IMAGE))


def test_everything_and_a_single_pixel_can_be_filled(painter: Painter) -> None:
    assert painter.fill_and_decode(FILE, encode(Image.new("L", (60, 40), 255))).shape == (40, 60, 3)
    filled = painter.fill_and_decode(FILE, box_mask(40, 60, (7, 8, 8, 9)))
    assert np.argwhere((filled != np.asarray(IMAGE)).any(axis=2)).tolist() in ([[8, 7]], [])


@pytest.mark.parametrize("size", ["fit", "crop", "tile"])
def test_a_strip_of_one_pixel_s_height(painter: Painter, size: str) -> None:
    strip = noise(1, 5000)
    filled = painter.fill_and_decode(encode(strip), box_mask(1, 5000, (4000, 0, 4010, 1)), size=size)
    outer = outside(1, 5000, (4000, 0, 4010, 1))
    assert np.array_equal(filled[outer], np.asarray(strip)[outer])


def test_classification_goes_on_during_inpainting(painter: Painter) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        long = [pool.submit(painter.fill, FILE, MASK, steps=300, seed=seed) for seed in range(2)]
        answers = [painter.gateway.classify(FILE, model="tiny") for _ in range(3)]
        assert all(answer.status_code == 200 for answer in answers)
        assert all(answer.result().status_code == 200 for answer in long)
