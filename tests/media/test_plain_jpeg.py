"""Small plain JPEGs have the same pixels as by Pillow's own way, and everything else goes that way."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.media.images import ImageDecoder, ImageError, plain_jpeg

LIMIT = 1_000_000
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))


def jpeg(image: Image.Image = NOISE, **saved: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **saved)
    return file.getvalue()


def rotated_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    "saved", [{}, {"quality": 20}, {"subsampling": 0}, {"optimize": True}, {"comment": b"a word"}, {"dpi": (300, 300)}]
)
def test_the_pixels_are_those_of_pillow(saved: dict[str, Any]) -> None:
    data = jpeg(**saved)
    image = plain_jpeg(data, LIMIT)
    assert image is not None
    assert np.array_equal(image, Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    "data",
    [
        jpeg(progressive=True),
        jpeg(exif=rotated_exif()),
        jpeg(NOISE.convert("L")),
        jpeg(NOISE.convert("CMYK")),
        jpeg(icc_profile=bytes(200)),
        jpeg(NOISE.resize((200, 200))),
        jpeg()[:-200],
        jpeg()[:30],
        b"\xff\xd8\xff\xda" + bytes(100),
        b"no image",
    ],
    ids=["progressive", "turned", "grey", "inks", "profile", "large", "truncated", "no frame", "no tables", "text"],
)
def test_whatever_is_unusual_or_damaged_is_left_to_pillow(data: bytes) -> None:
    assert plain_jpeg(data, LIMIT) is None


def test_the_limit_on_pixels_holds_and_pillow_says_so() -> None:
    with pytest.raises(ImageError, match="above the limit"), ImageDecoder(32 * 24 - 1).decode(jpeg()):
        pass


def test_transparent_decode_reports_no_profile() -> None:
    with ImageDecoder(LIMIT).decode(jpeg(), transparency=True) as image:
        assert image.info["icc_profile"] is None
