from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.bundle import Preprocess
from server.media import images
from training.data import openclipart, packages, pictures
from training.data.openclipart import Category, Picture

PREPROCESS = Preprocess(image_size=8, short_side=10, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 2), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "picture.png")
    pixels = np.asarray(pictures.open_on_white(tmp_path / "picture.png"))
    assert pixels[2, 1].tolist() == [0, 0, 0]
    assert (pixels.sum(axis=(1, 2)) == [12 * 255, 12 * 255, 9 * 255, 12 * 255]).all()


def test_evaluation_crops_the_centre_after_scaling_the_short_side() -> None:
    image = Image.new("RGB", (60, 20), "white")
    image.paste((255, 0, 0), (20, 0, 40, 20))
    pixels = pictures.to_model_size(image, PREPROCESS)
    assert pixels.shape == (8, 8, 3)
    assert pixels[:, 1:7].tolist() == np.full((8, 6, 3), (255, 0, 0)).tolist()


@pytest.mark.parametrize("size", [(50, 30), (37, 71), (33, 32)])
def test_evaluation_sees_the_pixels_that_the_service_shows_a_model(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    assert np.array_equal(pictures.to_model_size(image, PREPROCESS), images.to_model_size(image, PREPROCESS, 10**6))


def test_decoded_pictures_come_back_from_the_cache_as_they_were(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    for name, shape in (("wide.png", (20, 90, 3)), ("high.png", (50, 30, 3))):
        Image.fromarray(numbers.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    first = pictures.load_for_training(tmp_path, ["wide.png", "high.png"], 10, tmp_path / "cache")
    (tmp_path / "wide.png").unlink()
    again = pictures.load_for_training(tmp_path, ["wide.png", "high.png"], 10, tmp_path / "cache")
    assert [picture.shape for picture in first] == [(10, 20, 3), (17, 10, 3)]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_titles_and_keywords_come_from_the_svg_of_the_same_name(tiny_recipe: dict[str, Any], cache: Path) -> None:
    png, svg = (
        packages.obtain(packages.DebianPackage(**tiny_recipe["data"][part]), cache) / "usr/share/openclipart" / kind
        for part, kind in (("pictures", "png"), ("titles", "svg"))
    )
    collection = openclipart.read_collection(png, svg)
    assert len(collection) == 72
    assert {(Path(p.path).parent.name, p.title, *p.keywords) for p in collection} == {
        ("balls", "A ball", "ball"),
        ("boxes", "A box", "box"),
        ("sticks", "A stick", "stick"),
    }


def test_the_first_category_that_covers_a_picture_names_it() -> None:
    categories = [
        Category(label="sign", folders=["transport"], keywords=["roadsign"]),
        Category(label="vehicle", folders=["transport/", "transport/cars"], without=["advert"]),
    ]

    def label(path: str, *keywords: str) -> int | None:
        return openclipart.label_of(Picture(path, keywords=frozenset(keywords)), categories)

    assert label("transport/stop.png", "roadsign", "red") == 0
    assert label("transport/cars/van.png", "car") == 1
    assert label("transport/van.png") == 1
    assert label("transport/boats/ship.png") is None
    assert label("transport/van.png", "advert") is None
    assert label("transportation/van.png") is None
