"""Pictures as people have them: odd modes, rotations, animations, bombs and damage."""

from __future__ import annotations

import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageCms
from torchvision import transforms

from models.bundle_schema import Preprocess
from server.media.images import CorruptImage, ImageDecoder, NotAnImage, TooManyPixels, sniff, to_model_size
from tests.support.images import encode

PREPROCESS = Preprocess(image_size=64, short_side=72, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def decoder() -> ImageDecoder:
    return ImageDecoder(max_pixels=1_000_000)


def decode(decoder: ImageDecoder, data: bytes) -> np.ndarray:
    with decoder.decode(data) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def quadrants() -> Image.Image:
    """Red, green / blue, white: every rotation and reflection of it differs. 40 wide, 20 high."""
    image = Image.new("RGB", (40, 20))
    for corner, colour in (((0, 0), RED), ((20, 0), GREEN), ((0, 10), BLUE), ((20, 10), WHITE)):
        image.paste(colour, (*corner, corner[0] + 20, corner[1] + 10))
    return image


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Return the colours near the four corners, rounded to 0 or 255."""
    height, width, _ = pixels.shape
    points = ((2, 2), (2, width - 3), (height - 3, 2), (height - 3, width - 3))
    return [tuple(255 if value > 127 else 0 for value in pixels[point]) for point in points]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_give_back_every_pixel(decoder: ImageDecoder, kind: str) -> None:
    image = quadrants()
    assert (decode(decoder, encode(image, kind)) == np.asarray(image)).all()


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 90}, {"lossless": True, "exif": Image.Exif()}])
def test_webp_in_all_its_containers(decoder: ImageDecoder, options: dict[str, object]) -> None:
    assert corners(decode(decoder, encode(quadrants(), "WEBP", **options))) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_jpeg_and_tiff_modes_become_rgb(decoder: ImageDecoder, mode: str) -> None:
    image = quadrants().convert(mode)
    reference = np.asarray(image.convert("RGB"))
    assert (decode(decoder, encode(image, "TIFF")) == reference).all()


def test_a_cmyk_jpeg_of_adobes_kind_is_no_negative(decoder: ImageDecoder) -> None:
    assert corners(decode(decoder, encode(quadrants().convert("CMYK"), "JPEG", quality=95))) == [RED, GREEN, BLUE, WHITE]


def test_a_cmyk_jpeg_without_adobes_marker_is_no_negative_either(decoder: ImageDecoder) -> None:
    inks_as_they_are = encode(ImageChops.invert(quadrants().convert("CMYK")), "JPEG", quality=95)
    marker = inks_as_they_are.index(b"\xff\xee")
    length = int.from_bytes(inks_as_they_are[marker + 2 : marker + 4], "big")
    data = inks_as_they_are[:marker] + inks_as_they_are[marker + 2 + length :]
    assert corners(decode(decoder, data)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(decoder: ImageDecoder, kind: str) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = decode(decoder, encode(Image.fromarray(values), kind))
    assert (pixels[..., 0] == np.rint(values / 257).astype(np.uint8)).all()


def test_16_bit_colour_is_scaled(decoder: ImageDecoder) -> None:
    samples = np.array([[[65535, 0, 0], [0, 32768, 65535]]], ">u2")
    raw = b"\0" + samples.tobytes()

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert decode(decoder, png).tolist() == [[[255, 0, 0], [0, 128, 255]]]


def with_transparent_left_half(mode: str) -> Image.Image:
    image = quadrants().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.where(np.arange(40) < 20, 0, 255)[None].astype(np.uint8), 20, 0)))
    return image.convert(mode)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_transparency_lies_on_white(decoder: ImageDecoder, kind: str, options: dict[str, object]) -> None:
    data = encode(with_transparent_left_half("RGBA"), kind, **options)
    assert corners(decode(decoder, data)) == [WHITE, GREEN, WHITE, WHITE]


def test_grey_with_transparency_lies_on_white(decoder: ImageDecoder) -> None:
    data = encode(with_transparent_left_half("LA"), "PNG")
    pixels = decode(decoder, data)
    assert (pixels[:, :20] == 255).all() and (pixels[:10, 20:] < 200).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_lies_on_white(decoder: ImageDecoder, kind: str) -> None:
    image = quadrants().quantize(4)
    red = image.getpixel((0, 0))
    assert corners(decode(decoder, encode(image, kind, transparency=red))) == [WHITE, GREEN, BLUE, WHITE]


def test_a_transparent_colour_of_an_rgb_png_lies_on_white(decoder: ImageDecoder) -> None:
    assert corners(decode(decoder, encode(quadrants(), "PNG", transparency=BLUE))) == [RED, GREEN, WHITE, WHITE]


def png(depth: int, kind: int, transparent: tuple[int, ...], rows: bytes, width: int) -> bytes:
    """Return a row as a PNG, with a colour that is transparent."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    key = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    return b"\x89PNG\r\n\x1a\n" + head + key + chunk(b"IDAT", zlib.compress(b"\0" + rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("depth", "rows"), [(1, b"\x40"), (2, b"\x1b"), (4, b"\x01\x23")])
def test_a_transparent_grey_of_few_bits_is_that_grey(decoder: ImageDecoder, depth: int, rows: bytes) -> None:
    with decoder.decode(png(depth, 0, (1,), rows, 4), transparency=True) as image:
        assert np.asarray(image)[0, :, 3].tolist() == [255, 0, 255, 255]


@pytest.mark.parametrize(("kind", "transparent"), [(0, (0x8000,)), (2, (0x8000, 0x9000, 0xA000))])
def test_transparent_colour_of_16_bits_is_refused(decoder: ImageDecoder, kind: int, transparent: tuple[int, ...]) -> None:
    with pytest.raises(NotAnImage, match="one colour that is transparent"):
        decoder.open(png(16, kind, transparent, bytes(2 * len(transparent) * 4), 4))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(decoder: ImageDecoder, kind: str, orientation: int) -> None:
    # what a camera held that way writes: the inverse of what a viewer has to do
    turned = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](quadrants())
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(decoder, encode(turned, kind, exif=exif))
    assert pixels.shape == (20, 40, 3)
    assert corners(pixels) == [RED, GREEN, BLUE, WHITE]


def test_damaged_exif_does_not_spoil_a_picture(decoder: ImageDecoder) -> None:
    data = encode(quadrants(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\xff\xff", quality=95)
    assert corners(decode(decoder, data)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_picture_counts(decoder: ImageDecoder, kind: str) -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert corners(decode(decoder, data)) == [RED] * 4


def test_colours_that_cannot_be_shown_are_refused(decoder: ImageDecoder) -> None:
    lab = ImageCms.applyTransform(
        quadrants(), ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    )
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    for image in (lab, floats):
        with pytest.raises(NotAnImage, match="send 8 or 16 bits per channel"):
            decode(decoder, encode(image, "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_no_damage_raises_anything_but_an_image_error(decoder: ImageDecoder, kind: str) -> None:
    intact = encode(Image.fromarray(noise(40, 30)), kind)
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(300):
        damaged = bytearray(intact)
        for position in rng.integers(4 if kind != "BMP" else 20, len(intact), rng.integers(1, 8)):
            damaged[position] = rng.integers(256)
        try:
            decode(decoder, bytes(damaged[: rng.integers(len(intact) // 2, len(intact) + 1)]))
        except (CorruptImage, NotAnImage, TooManyPixels):
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_refused_by_header_if_too_large(kind: str) -> None:
    small, exact = ImageDecoder(max_pixels=59 * 40), ImageDecoder(max_pixels=60 * 40)
    data = encode(Image.fromarray(noise(60, 40)), kind)
    with pytest.raises(TooManyPixels, match="60 × 40 pixels"):
        decode(small, data)
    if kind == "WEBP":  # whose decoder's memory ends earlier
        return
    assert decode(exact, data).shape == (40, 60, 3)


def webp_that_claims(width: int, height: int) -> bytes:
    canvas = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def test_a_webp_canvas_is_not_even_opened(decoder: ImageDecoder) -> None:
    with pytest.raises(TooManyPixels, match="16383 × 16383"):
        decode(decoder, webp_that_claims(16383, 16383))


def test_a_decoder_that_keeps_copies_ends_at_fewer_pixels() -> None:
    """WebP's decoder holds three canvases and the picture: 16 bytes a pixel, where 12 for each of the pixels are the most."""
    decoder = ImageDecoder(max_pixels=64 * 64)
    with pytest.raises(TooManyPixels, match=r"WebP of 0\.0 megapixels would take 0 MB to decode.*OPSIN_MAX_PIXELS"):
        decode(decoder, encode(Image.new("RGB", (64, 64)), "WEBP"))
    assert decode(decoder, encode(Image.new("RGB", (48, 64)), "WEBP")).shape == (64, 48, 3)
    assert decode(decoder, encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True)).shape == (64, 64, 3)
    with pytest.raises(TooManyPixels, match="JPEG"):
        decode(decoder, encode(Image.new("CMYK", (64, 64)), "JPEG", progressive=True))


def test_only_these_formats_are_opened() -> None:
    for data in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encode(quadrants(), "PPM"),
        encode(quadrants(), "ICO"),
        b"8BPS\0\1",
    ):
        with pytest.raises(NotAnImage):
            sniff(data)


def test_a_file_name_sent_as_a_file_is_recognised() -> None:
    with pytest.raises(NotAnImage, match="a short text; to send a file with curl, write @ before its name"):
        sniff(b"photos/cat.jpg")
    for other in (b"", b"\x89PN", b"A" * 2000):
        with pytest.raises(NotAnImage, match=r"TIFF\)$"):
            sniff(other)


def test_pixels_in_flight_are_bounded() -> None:
    decoder = ImageDecoder(max_pixels=40 * 20)
    data = encode(quadrants(), "PNG")
    third_is_in = threading.Event()

    def third() -> None:
        with decoder.decode(data):
            third_is_in.set()

    with decoder.decode(data):
        with decoder.decode(data):
            thread = threading.Thread(target=third)
            thread.start()
            assert not third_is_in.wait(0.2)
        assert third_is_in.wait(60)
        thread.join()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (72, 72), (64, 64), (73, 72), (100, 50), (51, 200), (1000, 71), (33, 30), (601, 401), (10, 3)]
)
@pytest.mark.parametrize("target", [(64, 72), (64, 64), (33, 40)])
def test_pixels_equal_torchvisions_bit_for_bit(size: tuple[int, int], interpolation: str, target: tuple[int, int]) -> None:
    image_size, short_side = target
    preprocess = PREPROCESS.model_copy(update={"image_size": image_size, "short_side": short_side, "interpolation": interpolation})
    image = Image.fromarray(noise(*size))
    reference = transforms.Compose(
        [transforms.Resize(short_side, transforms.InterpolationMode(interpolation)), transforms.CenterCrop(image_size)]
    )(image)
    assert (to_model_size(image, preprocess, 10_000_000) == np.asarray(reference)).all()


def test_a_thin_strip_is_refused_before_it_grows() -> None:
    with pytest.raises(TooManyPixels, match="too thin"):
        to_model_size(Image.new("RGB", (500_000, 1)), PREPROCESS, 1_000_000)


def test_small_images_may_grow_beyond_the_limit_of_their_decoder() -> None:
    """The event loop decodes small images with a lower limit than threads do."""
    preprocess = PREPROCESS.model_copy(update={"image_size": 256, "short_side": 256})
    assert to_model_size(Image.new("RGB", (400, 100)), preprocess, 400 * 100).shape == (256, 256, 3)
