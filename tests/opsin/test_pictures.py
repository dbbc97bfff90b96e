"""Images that the client accepts, checked by an independent decoder."""

from __future__ import annotations

from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.image_encoding import encode


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1, 3)])
def test_an_array_becomes_a_png_of_the_same_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(BytesIO(encode(pixels))) as decoded:
        assert decoded.format == "PNG"
        np.testing.assert_array_equal(np.asarray(decoded), pixels.squeeze(2) if shape[2:] == (1,) else pixels)


def test_a_view_of_an_array_is_encoded_as_it_reads() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    view = pixels[::-2, ::2, ::-1]
    with Image.open(BytesIO(encode(view))) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), view)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 5), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_that_is_no_picture_is_refused_with_its_shape(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a uint8 array \(H, W\)"):
        encode(wrong)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "YCbCr"])
def test_a_pillow_image_is_accepted_in_any_mode(mode: str) -> None:
    image = Image.new("RGB", (9, 4), (200, 30, 30)).convert(mode)
    with Image.open(BytesIO(encode(image))) as decoded:
        assert decoded.size == (9, 4)
        np.testing.assert_array_equal(np.asarray(decoded.convert("RGB")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "stored"), [("I", "=i4"), ("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")])
def test_sixteen_bits_of_grey_of_a_pillow_image_are_kept(mode: str, stored: str) -> None:
    grey = np.array([[0, 255, 256, 0x1234, 65535]])
    with Image.open(BytesIO(encode(Image.frombytes(mode, (5, 1), grey.astype(stored).tobytes())))) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), grey)


def test_transparency_of_a_pillow_image_with_a_palette_is_kept() -> None:
    image = Image.new("RGBA", (1, 1), (40, 50, 60, 128)).convert("PA")
    with Image.open(BytesIO(encode(image))) as decoded:
        assert np.asarray(decoded.convert("RGBA"))[0, 0, 3] == 128


def test_pillow_image_of_unsupported_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask: a Pillow image of mode F; convert it to one of 1, L, LA, I;16, P, RGB, RGBA"):
        encode(Image.new("F", (2, 2)), "mask")


def test_a_pillow_image_of_values_beyond_sixteen_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="a Pillow image of mode I with values from -5 to 70000; 0 to 65535 are taken"):
        encode(Image.fromarray(np.array([[-5, 70_000]], np.int32)))


def test_paths_bytes_and_files_are_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "picture.jpg"
    file.write_bytes(b"whatever it holds")
    with file.open("rb") as opened:
        assert {encode(source) for source in (file, str(file), opened, b"whatever it holds", bytearray(b"whatever it holds"))} == {
            b"whatever it holds"
        }


def test_what_is_no_picture_is_named() -> None:
    with pytest.raises(TypeError, match="not int"):
        encode(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="binary mode"):
        encode(StringIO("text"))  # type: ignore[arg-type]
