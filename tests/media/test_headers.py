"""Which images are decoded on the spot, judged by their first bytes."""

from __future__ import annotations

import pytest
from PIL import Image, PngImagePlugin

from server.media.image_headers import is_small
from tests.support.images import encode, png_that_claims


def noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_small_images_are_known_by_their_header(kind: str) -> None:
    assert is_small(encode(noise(32, 24), kind))
    assert is_small(encode(Image.new("RGB", (400, 250)), kind))
    assert not is_small(encode(Image.new("RGB", (401, 250)), kind))


@pytest.mark.parametrize("options", [{"progressive": True}, {"exif": b"Exif\0\0" + b"x" * 500}, {"quality": 10, "optimize": True}])
def test_jpegs_of_every_kind_are_read(options: dict[str, object]) -> None:
    assert is_small(encode(noise(64, 64), "JPEG", **options))


def test_many_bytes_are_not_small_however_few_the_pixels() -> None:
    assert not is_small(encode(noise(200, 200), "PNG") + bytes(70_000))


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (90_000, 1)])
def test_thin_strips_grow_when_resized_and_are_not_small(size: tuple[int, int]) -> None:
    assert not is_small(encode(Image.new("RGB", size), "PNG"))


def test_what_takes_longer_than_its_pixels_promise_is_not_small() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 500_000, zip=True)
    assert not is_small(encode(Image.new("RGB", (8, 8)), "PNG", pnginfo=text))
    assert not is_small(png_that_claims(60_000, 60_000))
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    assert not is_small(encode(Image.new("RGB", (300, 300)), "JPEG")[:-2] + scan * 1000 + b"\xff\xd9")


def jpeg_with(segments: bytes) -> bytes:
    """Return a JPEG of 32 × 24 pixels that begins with these segments."""
    data = encode(noise(32, 24), "JPEG")
    return data[:2] + segments + data[2:]


FRAME = b"\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00"
"""Length and content of a frame of 8 × 8 grey pixels."""


@pytest.mark.parametrize("marker", [0xC0, 0xC2], ids=["sequential", "progressive"])
def test_a_jpeg_with_two_frames_is_not_small(marker: int) -> None:
    assert not is_small(jpeg_with(bytes([0xFF, marker]) + FRAME))


@pytest.mark.parametrize("marker", [0xD0, 0xD8, 0xD9, 0xDE, 0xF0, 0xFF, 0x01])
def test_jpeg_with_ambiguous_segments_is_not_small(marker: int) -> None:
    """A parser that takes the next two bytes for a length skips the frame that a decoder reads, and finds another one."""
    assert not is_small(jpeg_with(bytes([0xFF, marker]) + b"\x00\x02"))


def test_a_jpeg_with_segments_of_applications_is_small() -> None:
    assert is_small(jpeg_with(b"\xff\xed\x00\x04ab"))


def test_a_png_with_two_headers_is_not_small() -> None:
    first, second = (encode(noise(*size), "PNG") for size in ((10, 10), (200, 100)))
    assert is_small(second) and not is_small(first[:33] + second[8:])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\xff\xd8" + b"\xff" * 100, b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20)])
def test_what_is_none_of_them_is_not_small(data: bytes) -> None:
    assert not is_small(data)
