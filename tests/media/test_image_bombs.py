"""Small files that would take much: memory while decoding, objects for structure, passes over pixels."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.media.images import CorruptImage, ImageDecoder, NotAnImage, TooManyPixels
from tests.support.images import encode

PEAK = """
import re, sys
from pathlib import Path
from server.media.images import ImageDecoder
from server.tasks.reconstruct.inputs import read_mask_part

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

decoder = ImageDecoder(50_000_000)
data = Path(sys.argv[1]).read_bytes()
before = peak()
pixels = decoder.open(data).pixels
{}
print((peak() - before) / pixels)
"""
DECODED = PEAK.replace("{}", "with decoder.decode(data): pass")
"""Prints the bytes a pixel that decoding took at most."""
MASK = PEAK.replace("{}", "read_mask_part({'mask': data}, decoder)")
"""Prints those that the mask of an object took."""


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.fixture
def decoder() -> ImageDecoder:
    return ImageDecoder(max_pixels=1_000_000)


@pytest.mark.parametrize(
    ("mode", "kind", "options", "max_bytes"),
    [("RGBA", "PNG", {}, 9), ("LA", "PNG", {}, 9), ("P", "PNG", {"transparency": 0}, 6), ("RGB", "PNG", {}, 5), ("I;16", "PNG", {}, 7)],
)
def test_decoding_takes_few_bytes_a_pixel(tmp_path: Path, mode: str, kind: str, options: dict[str, object], max_bytes: float) -> None:
    file = tmp_path / "picture"
    file.write_bytes(encode(Image.new(mode, (4000, 2500)), kind, **options))
    measured = subprocess.run([sys.executable, "-c", DECODED, str(file)], capture_output=True, text=True, check=True)
    assert float(measured.stdout) < max_bytes


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_strip_larger_than_its_pixels_is_refused_before_decoding(size: tuple[int, int]) -> None:
    """Pillow keeps an address for each row, and as many weights as a side has pixels when it is resized."""
    decoder = ImageDecoder(50_000_000)
    with pytest.raises(TooManyPixels, match="longer than 65,535 pixels"):
        decoder.open(encode(Image.new("1", size), "PNG"))
    assert decoder.open(encode(Image.new("1", (65_535, 1)), "PNG")).size == (65_535, 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_the_mask_of_an_object_takes_few_bytes_a_pixel(tmp_path: Path, mode: str) -> None:
    (tmp_path / "picture").write_bytes(encode(Image.new(mode, (4000, 2500)), "PNG"))
    measured = subprocess.run([sys.executable, "-c", MASK, str(tmp_path / "picture")], capture_output=True, text=True, check=True)
    assert float(measured.stdout) < 6.5


TIFFS = {
    "RGB": ((8, 8, 8), 2, 3, {}),
    "16 bits": ((16, 16, 16), 2, 6, {}),
    "RGBA of 16 bits": ((16, 16, 16, 16), 2, 8, {338: (2,)}),
    "planes": ((8, 8, 8), 2, 1, {284: (2,)}),
    "YCbCr": ((8, 8, 8), 6, 3, {530: (1, 1)}),
}
"""Bits of the samples, photometric interpretation, bytes a pixel of a strip, further tags."""


def tiff_of_one_strip(side: int, bits: tuple[int, ...], photometric: int, nbytes: int, further: dict[int, tuple[int, ...]]) -> bytes:
    pixels, planes = zlib.compress(bytes(side * side * nbytes)), len(bits) if 284 in further else 1
    tags = {256: (side,), 257: (side,), 258: bits, 259: (8,), 262: (photometric,), 277: (len(bits),), 278: (side,)}
    tags |= {273: (8,) * planes, 279: (len(pixels),) * planes, **further}
    file, entries = b"II*\0" + bytes(4) + pixels, b""
    for tag, values in sorted(tags.items()):
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        value = struct.pack(f"<{len(values)}{letter}", *values)
        if len(value) > 4:
            file, value = file + value, struct.pack("<I", len(file))
        entries += struct.pack("<HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    return file[:4] + struct.pack("<I", len(file)) + file[8:] + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_of_one_strip_takes_no_more_than_is_counted(tmp_path: Path, kind: str) -> None:
    data = tiff_of_one_strip(4000, *TIFFS[kind])
    (tmp_path / "picture").write_bytes(data)
    measured = subprocess.run([sys.executable, "-c", DECODED, str(tmp_path / "picture")], capture_output=True, text=True, check=True)
    assert float(measured.stdout) * 4000**2 < 1.02 * ImageDecoder(50_000_000).open(data).memory()


def second_waits(decoder: ImageDecoder, data: bytes) -> bool:
    """Return True if nothing else is decoded while this is."""
    return not second_is_in_within(0.3, decoder, data)


def second_goes_on(decoder: ImageDecoder, data: bytes) -> bool:
    return second_is_in_within(60.0, decoder, data)


def second_is_in_within(seconds: float, decoder: ImageDecoder, data: bytes) -> bool:
    is_in = threading.Event()

    def second() -> None:
        with decoder.decode(data):
            is_in.set()

    thread = threading.Thread(target=second)
    with decoder.decode(data):
        thread.start()
        went_on = is_in.wait(seconds)
    assert is_in.wait(60)
    thread.join()
    return went_on


def test_what_counts_is_memory_and_not_pixels() -> None:
    decoder = ImageDecoder(max_pixels=40 * 20)
    assert second_waits(decoder, encode(Image.new("RGBA", (40, 20)), "PNG"))
    assert second_waits(decoder, encode(Image.new("RGB", (30, 20)), "WEBP"))
    assert second_waits(decoder, encode(Image.new("RGB", (40, 20)), "JPEG", progressive=True))
    assert second_goes_on(decoder, encode(Image.new("RGB", (40, 20)), "PNG"))
    assert second_goes_on(decoder, encode(Image.new("L", (32, 20)), "PNG"))


def test_a_large_picture_gets_its_turn_among_small_ones() -> None:
    decoder = ImageDecoder(max_pixels=40 * 20)
    small, large = encode(Image.new("RGB", (20, 10)), "PNG"), encode(Image.new("RGB", (30, 20)), "WEBP")
    stop = threading.Event()

    def decode_small_ones() -> None:
        while not stop.is_set():
            with decoder.decode(small):
                time.sleep(0.002)

    crowd = [threading.Thread(target=decode_small_ones) for _ in range(8)]
    for thread in crowd:
        thread.start()
    done = threading.Event()

    def decode_large_one() -> None:
        with decoder.decode(large):
            done.set()

    one = threading.Thread(target=decode_large_one)
    one.start()
    came = done.wait(60)
    stop.set()
    for thread in (*crowd, one):
        thread.join()
    assert came


def jpeg_of_scans(width: int, height: int, scans: list[list[int]]) -> bytes:
    """Return a sequential JPEG of one grey, each of whose scans holds the components that are listed for it."""
    components = sorted(number for scan in scans for number in scan)
    blocks = -(-width // 8) * -(-height // 8)
    frame = struct.pack(">BHHB", 8, height, width, len(components)) + b"".join(bytes([number, 0x11, 0]) for number in components)
    codes = b"".join(segment(0xC4, bytes([kind, 1, *[0] * 15, 0])) for kind in (0x00, 0x10))  # one of one bit: nothing more
    body = b""
    for scan in scans:
        chosen = b"".join(bytes([number, 0]) for number in scan)
        body += segment(0xDA, bytes([len(scan)]) + chosen + b"\x00\x3f\x00") + bytes(blocks * len(scan) // 4 + 8)
    decoy = segment(0xE4, b"\xff\xda\x00\x08\x01" * 9)  # not a scan, since it is inside a segment
    return b"\xff\xd8" + decoy + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC0, frame) + codes + body + b"\xff\xd9"


def test_sequential_jpeg_with_scan_per_component_is_progressive() -> None:
    """The decoder keeps all coefficients of these until the last scan, too."""
    decoder = ImageDecoder(max_pixels=40 * 20)
    assert second_waits(decoder, jpeg_of_scans(40, 20, [[1], [2], [3]]))
    assert second_waits(decoder, jpeg_of_scans(40, 20, [[1], [2, 3]]))
    assert second_goes_on(decoder, jpeg_of_scans(40, 20, [[1, 2, 3]]))
    assert second_goes_on(decoder, jpeg_of_scans(32, 20, [[1]]))
    with pytest.raises(TooManyPixels, match="would take"), decoder.decode(jpeg_of_scans(40, 20, [[1], [2], [3], [4]])):
        pass


@pytest.mark.parametrize("scans", [[[1, 2, 3]], [[1], [2], [3]], [[1, 2], [3]]], ids=["one scan", "three scans", "two scans"])
def test_a_jpeg_takes_no_more_than_is_counted(tmp_path: Path, scans: list[list[int]]) -> None:
    data = jpeg_of_scans(4000, 2500, scans)
    file = tmp_path / "picture"
    file.write_bytes(data)
    measured = subprocess.run([sys.executable, "-c", DECODED, str(file)], capture_output=True, text=True, check=True)
    assert float(measured.stdout) < ImageDecoder(max_pixels=10_000_000).open(data).memory() / 10_000_000 + 1


def png(*between: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + chunk(b"IDAT", zlib.compress(b"\0" * 200)) + chunk(b"IEND", b"")


def jpeg_with(segments: bytes) -> bytes:
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    return data[:2] + segments + data[2:]


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


ZEROS = zlib.compress(bytes(1_000_000))
"""A thousand bytes that a decoder may inflate."""


def progressive_with_scans(count: int) -> bytes:
    data = encode(Image.new("RGB", (8, 8)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def webp_with(*chunks: bytes) -> bytes:
    data = encode(Image.new("RGB", (8, 8)), "WEBP", exif=b"Exif\0\0" + bytes(10)) + b"".join(chunks)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def exif_of_rationals(count: int) -> bytes:
    """Return EXIF data whose orientation claims `count` rationals."""
    return b"II*\0" + struct.pack("<LHHHLLL", 8, 1, 0x0112, 5, count, 26, 0) + bytes(8 * count)


def jpeg_exif(data: bytes) -> bytes:
    """Split EXIF data into as many JPEG segments as it takes."""
    pieces = [data[at : at + 65_000] for at in range(0, len(data), 65_000)]
    return b"".join(b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece for piece in pieces)


TWO_MILLION = exif_of_rationals(2_000_000)


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"eXIf", TWO_MILLION)),
        png(*[chunk(b"eXIf", TWO_MILLION[:60_000])] * 2),
        jpeg_with(jpeg_exif(TWO_MILLION)),
        jpeg_with(b"\xff\xf0\xff\x00" + jpeg_exif(TWO_MILLION[:200_000])),
        webp_with(b"EXIF" + struct.pack("<I", len(TWO_MILLION)) + TWO_MILLION),
    ],
    ids=["a PNG chunk", "two PNG chunks", "JPEG segments", "JPEG segments behind one without a length", "a WebP chunk"],
)
def test_excessive_exif_is_refused_before_decoding(decoder: ImageDecoder, data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptImage, match="EXIF data of more than 65,536 bytes"), decoder.decode(data):
            pass
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrap", [lambda exif: png(chunk(b"eXIf", exif)), lambda exif: jpeg_with(jpeg_exif(exif))], ids=["PNG", "JPEG"])
def test_an_orientation_of_many_numbers_turns_nothing(decoder: ImageDecoder, wrap: Callable[[bytes], bytes]) -> None:
    with decoder.decode(wrap(exif_of_rationals(8_000))) as image:
        assert image.size == (8, 8)


@pytest.mark.parametrize(
    "data",
    [
        webp_with(b"prIv\0\0\0\0" * 500_000),
        png(chunk(b"prIv", b"") * 500_000),
        png(chunk(b"IDAT", b"") * 500_000),
        jpeg_with(b"\xff\xef\x00\x02" * 500_000),
        jpeg_with(b"\xff" * 5_000_000),
        jpeg_with(segment(0xDB, (b"\0" + b"\1" * 64) * 1_000) * 100),
        jpeg_with(segment(0xC0, b"\x08\0\x08\0\x08\x03" + b"\x01\x11\0" * 21_000) * 10),
        jpeg_with(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x01\0\0\0\0\0\0" * 5_000) * 20),
        png(chunk(b"iCCP", b"name\0\0" + ZEROS) * 200),
        png(chunk(b"zTXt", b"name\0\0" + ZEROS[:-4] + b"sum?") * 200),
        progressive_with_scans(200),
        b"GIF89a\x08\0\x08\0\0\0\0" + b"\x21\xfe\x01x\0" * 500_000 + b",",
        b"GIF89a\x08\0\x08\0\0\0\0" + b"\x21\xfe" + b"\x01x" * 1_000_000 + b"\0,",
        b"GIF89a\x08\0\x08\0\0\0\0" + b"y" * 1_000_000 + b",",
    ],
    ids=[
        "WebP chunks",
        "PNG chunks",
        "empty PNG data",
        "JPEG segments",
        "JPEG padding",
        "tables of a JPEG segment",
        "components of a JPEG frame",
        "Photoshop's resources",
        "PNG profiles",
        "damaged PNG texts",
        "JPEG scans",
        "GIF comments",
        "a long GIF comment",
        "GIF padding",
    ],
)
def test_file_with_more_structure_than_pixels_is_refused_at_once(decoder: ImageDecoder, data: bytes) -> None:
    with pytest.raises(CorruptImage, match="blocks"), decoder.decode(data):
        pass


def test_ordinary_structure_is_fine(decoder: ImageDecoder) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    for data in (
        encode(noise, "JPEG", progressive=True, icc_profile=bytes(300_000), comment=b"x" * 60_000),
        encode(noise, "GIF", comment=b"x" * 60_000),
        png(chunk(b"tEXt", b"key\0value") * 1_000),
    ):
        with decoder.decode(data) as image:
            assert image.mode == "RGB"


@pytest.mark.parametrize("size", [(8, 8), (900, 900)])
def test_a_png_with_two_headers_is_refused(decoder: ImageDecoder, size: tuple[int, int]) -> None:
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    with pytest.raises(CorruptImage, match="more than one header chunk"), decoder.decode(png(second)):
        pass


def test_a_text_that_names_the_header_is_none(decoder: ImageDecoder) -> None:
    with decoder.decode(png(chunk(b"tEXt", b"IHDR\0IHDR"))) as image:
        assert image.size == (8, 8)


def bmp_with_run_lengths(width: int, height: int, compression: int) -> bytes:
    """Return a BMP each of whose rows is one pixel and 'end of line'."""
    bits, data = (8 if compression == 1 else 4), b"\x01\x05\x00\x00" * height
    palette = bytes(range(1 << bits)) * 4
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 1 << bits, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(data), 0, 0, 54 + len(palette)) + header + palette + data


@pytest.mark.parametrize("compression", [1, 2], ids=["RLE8", "RLE4"])
@pytest.mark.parametrize("size", [(8, 8), (900, 900)])
def test_a_bmp_with_run_lengths_is_refused(decoder: ImageDecoder, size: tuple[int, int], compression: int) -> None:
    """Pillow decodes them in Python."""
    with pytest.raises(NotAnImage, match="run lengths"), decoder.decode(bmp_with_run_lengths(*size, compression)):
        pass


def test_text_that_inflates_is_refused(decoder: ImageDecoder) -> None:
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(60_000_000)))
    with pytest.raises(CorruptImage), decoder.decode(png(text)):
        pass


def test_directory_with_shared_entry_data_is_refused_or_cheap(decoder: ImageDecoder) -> None:
    """1,000 entries that each claim the same five megabytes."""
    entries = [struct.pack("<HHII", tag, 3, 1, 8) for tag in (256, 257)]
    entries += [struct.pack("<HHII", tag, 1, 5_000_000, 20_000) for tag in range(40_000, 41_000)]
    file = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    started = time.process_time()
    with pytest.raises(CorruptImage), decoder.decode(file.ljust(20_000, b"\0") + bytes(5_000_000)):
        pass
    assert time.process_time() - started < 5


def test_a_tile_larger_than_the_limit_is_refused(decoder: ImageDecoder) -> None:
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65536, 323: 65536, 324: 200, 325: 10}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(TooManyPixels, match="65536 × 65536"), decoder.decode(file.ljust(200, b"\0") + zlib.compress(bytes(100))):
        pass
