from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.bundle_schema import Preprocess
from server.media import images
from training.data import load_image

PREPROCESS = Preprocess(image_size=8, short_side=10, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 2), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "picture.png")
    pixels = np.asarray(load_image.open_on_white(tmp_path / "picture.png"))
    assert pixels[2, 1].tolist() == [0, 0, 0]
    assert (pixels.sum(axis=(1, 2)) == [12 * 255, 12 * 255, 9 * 255, 12 * 255]).all()


@pytest.mark.parametrize("kind", ["turned", "16 bits", "a transparent colour"])
def test_a_picture_is_what_the_service_makes_of_it(tmp_path: Path, kind: str) -> None:
    file, dice = tmp_path / "picture.png", np.random.default_rng(0)
    colours = Image.fromarray(dice.integers(0, 256, (6, 9, 3), np.uint8))
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        colours.save(file, exif=exif)
    elif kind == "16 bits":
        Image.fromarray(dice.integers(0, 65536, (6, 9)).astype(np.uint16)).save(file)
    else:
        colours.save(file, transparency=colours.getpixel((2, 3)))
    with images.ImageDecoder(1_000_000).decode(file.read_bytes()) as served:
        assert np.array_equal(load_image.open_on_white(file), served)


def test_evaluation_scales_short_side_and_crops_centre() -> None:
    image = Image.new("RGB", (60, 20), "white")
    image.paste((255, 0, 0), (20, 0, 40, 20))
    pixels = load_image.to_model_size(image, PREPROCESS)
    assert pixels.shape == (8, 8, 3)
    assert pixels[:, 1:7].tolist() == np.full((8, 6, 3), (255, 0, 0)).tolist()


@pytest.mark.parametrize("fit", ["crop", "squeeze"])
@pytest.mark.parametrize("size", [(50, 30), (37, 71), (33, 32)])
def test_evaluation_uses_pixels_of_the_service(size: tuple[int, int], fit: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    preprocess = PREPROCESS.model_copy(update={"fit": fit})
    assert np.array_equal(load_image.to_model_size(image, preprocess), images.to_model_size(image, preprocess, 10**6))
