"""TIFF directories: what they claim is counted before a decoder makes an object of it."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from server.media.images import CorruptImage, ImageDecoder, ImageError, NotAnImage, TooManyPixels

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
SIZES = {BYTE: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, UNDEFINED: 1}
OFFSETS, LENGTHS, TILE_OFFSETS, TILE_LENGTHS = 273, 279, 324, 325
FEW_BYTES = 300_000
"""Memory in bytes: less than a tenth of what any file here makes a decoder allocate."""
LAYOUTS = list(product("<>", (False, True)))

Entry = tuple[int, int, int | bytes]
"""Type, count, and the value or what lies elsewhere in the file."""


def tiff(entries: Mapping[int, Entry], order: str = "<", big: bool = False, size: tuple[int, int] = (4, 2), pixels: bytes = b"") -> bytes:
    """Return a grey picture with entries added to the usual ones or replacing them. The pixels, if any, come last."""
    word, width = ("Q", 8) if big else ("L", 4)
    usual = {256: size[0], 257: size[1], 258: 8, 259: 1, 262: 1, 277: 1, 278: size[1]}
    all_entries = dict(sorted({**{tag: (LONG, 1, value) for tag, value in usual.items()}, **entries}.items()))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "L", 8)
    end = len(head) + (8 if big else 2) + len(all_entries) * (4 + 2 * width) + width
    written, elsewhere = b"", b""
    for tag, (kind, count, value) in all_entries.items():
        if isinstance(value, bytes) and len(value) <= width:
            place = value.ljust(width, b"\0")
        elif isinstance(value, bytes):
            place = struct.pack(order + word, end + len(elsewhere))
            elsewhere += value
        else:
            place = struct.pack(order + ("H" if kind == SHORT else "L"), value).ljust(width, b"\0")
        written += struct.pack(order + "HH" + word, tag, kind, count) + place
    return head + struct.pack(order + ("Q" if big else "H"), len(all_entries)) + written + bytes(width) + elsewhere + pixels


def many(tag: int, kind: int, count: int) -> dict[int, Entry]:
    return {OFFSETS: (LONG, 1, 8), LENGTHS: (LONG, 1, 8), tag: (kind, count, bytes(SIZES[kind] * count))}


@pytest.fixture
def decoder() -> ImageDecoder:
    return ImageDecoder(max_pixels=1_000_000)


def check_refused(decoder: ImageDecoder, data: bytes, words: str) -> None:
    """Refuse a file that would take a decoder hundreds of megabytes, within little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(CorruptImage, match=words), decoder.decode(data):
            pass
        assert tracemalloc.get_traced_memory()[1] < FEW_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("tag", [OFFSETS, LENGTHS, TILE_OFFSETS, TILE_LENGTHS])
@pytest.mark.parametrize(("order", "big"), LAYOUTS)
def test_more_strips_or_tiles_than_the_picture_needs_are_refused(decoder: ImageDecoder, tag: int, order: str, big: bool) -> None:
    check_refused(decoder, tiff(many(tag, LONG, 1_000_000), order, big), "1,000,000 strips or tiles: at most 32,768")
    check_refused(decoder, tiff(many(tag, SHORT, 30_000), order, big), "30,000 strips or tiles, but 4 × 2 pixels need 1")


def test_a_million_honest_strips_of_one_row_are_refused(decoder: ImageDecoder) -> None:
    count = 1_000_000
    entries: dict[int, Entry] = {278: (LONG, 1, 1), OFFSETS: (LONG, count, bytes(4 * count)), LENGTHS: (LONG, count, b"\1\0\0\0" * count)}
    check_refused(decoder, tiff(entries, size=(1, count)), "at most 32,768")


@pytest.mark.parametrize(
    "entries",
    [
        many(282, RATIONAL, 2_000_000),
        many(320, SHORT, 5_000_000),
        many(40_000, LONG, 1_000_000),
        many(338, BYTE, 20_000_000),
        many(339, UNDEFINED, 20_000_000),
        many(40_000, LONG, 8) | {40_001: (99, 200_000, 8)},
    ],
    ids=["resolutions", "a colour map", "a private tag", "kinds of channels as bytes", "sample formats as bytes", "a type nobody knows"],
)
@pytest.mark.parametrize(("order", "big"), LAYOUTS)
def test_a_directory_of_too_many_values_is_refused(decoder: ImageDecoder, entries: dict[int, Entry], order: str, big: bool) -> None:
    check_refused(decoder, tiff(entries, order, big), "values: at most 131,072")


@pytest.mark.parametrize(("order", "big"), LAYOUTS)
def test_a_directory_of_too_many_entries_is_refused(decoder: ImageDecoder, order: str, big: bool) -> None:
    entries = many(OFFSETS, LONG, 1) | dict.fromkeys(range(40000, 45000), (BYTE, 1, 0))
    check_refused(decoder, tiff(entries, order, big), "entries: at most 4,096")


def test_entries_beyond_the_file_are_refused(decoder: ImageDecoder) -> None:
    intact = tiff({OFFSETS: (LONG, 1, 0), LENGTHS: (LONG, 1, 8)}, big=True)
    check_refused(decoder, intact[:16] + struct.pack("<Q", 2**63) + intact[24:], "at most 4,096")
    check_refused(decoder, intact[:8] + struct.pack("<Q", 2**63) + intact[16:], "outside of the file")
    check_refused(decoder, intact[:60], "breaks off")
    check_refused(decoder, tiff({40_000: (BYTE, 2**31, 8)}), "claims more than the file holds")


def test_a_size_that_is_given_twice_is_refused(decoder: ImageDecoder) -> None:
    """Which of the two would count?"""
    data = tiff({OFFSETS: (LONG, 1, 8), 40_000: (LONG, 1, 1_000_000)}).replace(
        struct.pack("<HH", 40_000, LONG), struct.pack("<HH", 257, LONG)
    )
    check_refused(decoder, data, "tag 257 is not there once")


@pytest.mark.parametrize("order", "<>")
def test_directories_are_read_as_decoders_read_them(decoder: ImageDecoder, order: str) -> None:
    pixels = bytes(range(0, 240, 30))
    for big in (False, True):
        entries: dict[int, Entry] = {
            278: (SHORT, 1, 1),
            LENGTHS: (SHORT, 2, struct.pack(order + "HH", 4, 4)),
            700: (BYTE, 500_000, bytes(500_000)),
        }
        start = len(tiff({**entries, OFFSETS: (LONG, 2, bytes(8))}, order, big))
        data = tiff({**entries, OFFSETS: (LONG, 2, struct.pack(order + "LL", start, start + 4))}, order, big, pixels=pixels)
        if big and order == ">":  # which Pillow takes for something else
            with pytest.raises(NotAnImage, match="BigTIFF"), decoder.decode(data):
                pass
            continue
        with decoder.decode(data) as image:
            assert np.asarray(image)[..., 0].tobytes() == pixels


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"])
def test_files_of_pillow_are_decoded_whatever_their_compression(decoder: ImageDecoder, compression: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)).resize((600, 900))
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression, tiffinfo={TiffImagePlugin.ROWSPERSTRIP: 8}, icc_profile=bytes(400_000))
    with decoder.decode(file.getvalue()) as decoded, Image.open(file) as reference:
        assert (np.asarray(decoded) == np.asarray(reference)).all()


@pytest.mark.parametrize(("tag", "value"), [(TiffImagePlugin.BITSPERSAMPLE, 12), (TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)])
def test_grey_that_pillow_would_take_for_other_grey_is_refused(decoder: ImageDecoder, tag: int, value: int) -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(8, dtype=np.uint16).reshape(2, 4)).save(file, "TIFF")
    content, entry = file.getvalue(), struct.pack("<HHIH", tag, 3, 1, {258: 16, 262: 1}[tag])
    assert content.count(entry) == 1
    with pytest.raises(NotAnImage, match="send 8 or 16 bits, black as 0"):
        decoder.open(content.replace(entry, struct.pack("<HHIH", tag, 3, 1, value)))


def test_only_an_orientation_of_one_number_counts(decoder: ImageDecoder) -> None:
    entries: dict[int, Entry] = {OFFSETS: (LONG, 1, 8), LENGTHS: (LONG, 1, 8)}
    for orientation, size in (
        ((SHORT, 1, 6), (2, 4)),
        ((LONG, 1, 6), (2, 4)),
        ((BYTE, 1, 6), (4, 2)),
        ((SHORT, 4, b"\6\0" * 4), (4, 2)),
        ((SHORT, 1, 9), (4, 2)),
    ):
        with decoder.decode(tiff({**entries, 274: orientation})) as image:
            assert image.size == size


def test_other_pages_are_not_read(decoder: ImageDecoder) -> None:
    """The next one would be refused, and names itself as the one after it."""
    first = tiff({OFFSETS: (LONG, 1, 8), LENGTHS: (LONG, 1, 8), 34665: (LONG, 1, 0)})
    bomb = tiff(many(OFFSETS, LONG, 1_000_000))[8:]
    end_of_first = first.index(bytes(4), first.index(struct.pack("<HHL", 34665, LONG, 1)) + 12)
    data = first[:end_of_first] + struct.pack("<L", len(first)) + first[end_of_first + 4 :] + bomb
    data = data.replace(struct.pack("<HHLL", 34665, LONG, 1, 0), struct.pack("<HHLL", 34665, LONG, 1, len(first)))
    tracemalloc.start()
    try:
        with decoder.decode(data) as image:
            assert image.size == (4, 2)
        assert tracemalloc.get_traced_memory()[1] < FEW_BYTES
    finally:
        tracemalloc.stop()


def test_pixels_and_tiles_are_bounded_as_in_any_file(decoder: ImageDecoder) -> None:
    with pytest.raises(TooManyPixels, match="4000 × 3000"), decoder.decode(tiff({OFFSETS: (LONG, 1, 8)}, size=(4000, 3000))):
        pass


def test_damaged_directory_raises_only_image_errors(decoder: ImageDecoder) -> None:
    rng = np.random.default_rng(3)
    for order, big in LAYOUTS:
        intact = tiff({OFFSETS: (LONG, 1, 8), LENGTHS: (LONG, 1, 8), 274: (SHORT, 1, 6)}, order, big)
        for _ in range(300):
            damaged = bytearray(intact)
            for position in rng.integers(4, len(intact), rng.integers(1, 6)):
                damaged[position] = rng.integers(256)
            try:
                with decoder.decode(bytes(damaged)):
                    pass
            except ImageError:
                pass


def test_uncompressed_16_bit_planes_are_refused(decoder: ImageDecoder) -> None:
    bits, each = struct.pack("<3H", 16, 16, 16), struct.pack("<3L", 8, 8, 8)
    planes: dict[int, Entry] = {258: (SHORT, 3, bits), 259: (SHORT, 1, 1), 262: (SHORT, 1, 2), 277: (SHORT, 1, 3), 284: (SHORT, 1, 2)}
    with pytest.raises(NotAnImage, match="uncompressed planes of 16 bits"):
        decoder.open(tiff(planes | {OFFSETS: (LONG, 3, each), LENGTHS: (LONG, 3, each)}))


def test_colours_that_are_floats_are_refused_as_a_kind(decoder: ImageDecoder) -> None:
    """Grey ones are, too, which Pillow reads."""
    colours: dict[int, Entry] = {258: (SHORT, 3, b"\x20\0" * 3), 262: (SHORT, 1, 2), 277: (SHORT, 1, 3), 339: (SHORT, 3, b"\3\0" * 3)}
    with pytest.raises(NotAnImage, match="send 8 or 16 bits per channel"):
        decoder.open(tiff(colours | {OFFSETS: (LONG, 1, 8), LENGTHS: (LONG, 1, 96)}))
