"""Encoded pictures → pixels at model size. Every limit is checked before anything is allocated for it.

Decoded are JPEG, PNG, WebP, GIF, BMP and TIFF, recognised by their bytes; of an animation or a multi-page file the first picture.
Transparency is laid on white, EXIF orientation is applied, 16-bit grey is scaled to 8 bits.
"""

from __future__ import annotations

import ctypes
import io
import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

# each plug-in registers its format; Image.init() would import all of Pillow's, some of which run other programs
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from models.bundle_schema import Preprocess
from models.media import tf1_resize
from models.media.image_ops import centre_box, scaled_size
from server.media import image_headers, rgb, tiff
from server.media.limits import Limits, MediaError
from server.media.memory_budget import MemoryBudget
from server.media.part_hints import as_recording


class FirstPage(TiffImagePlugin.TiffImageFile):
    """A TIFF as it is stored. Pillow would turn it, and read further directories, once it is decoded."""

    def __init__(self, data: bytes, size: tuple[int, int]) -> None:
        super().__init__(io.BytesIO(data))
        self._size = size

    def load_end(self) -> None:
        pass


FORMATS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
"""All that are decoded here, apart from TIFF."""
ONE_BYTE = ("1", "L", "P")
LONGEST_SIDE = 65_535
"""A JPEG's. Strips take more than their pixels: Pillow keeps the address of each row, and resizes with weights of each pixel of a side."""
PIXEL = 4
"""Bytes of a pixel of every other mode, RGB included."""
WEBP_CANVASES = 3
"""Canvases of four bytes a pixel that the decoder keeps beside the image."""
COEFFICIENT = 2
"""Bytes that the decoder of a JPEG with several scans keeps of a pixel in each channel until the last one."""
LONGEST_NAME = 1024
"""A body as short as this may be the name of a file that was meant, in bytes."""
MOST_BYTES = 12
"""For each of `max_pixels`, that decoding one picture may take."""
RUN_LENGTHS = (BmpImagePlugin.BmpImageFile.COMPRESSIONS["RLE8"], BmpImagePlugin.BmpImageFile.COMPRESSIONS["RLE4"])
"""Compressions of a BMP that Pillow decodes byte by byte in Python: seconds for a file of a few kilobytes."""
BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
READ_PIXELS = "send 8 or 16 bits per channel, grey, RGB or CMYK"
BLACK_IS_ZERO, YCBCR = 1, 6  # as TIFF calls them
IN_PLANES, UNCOMPRESSED = 2, 1
PNG_DEPTH, PNG_GREY = 24, 0
"""Where a PNG says how many bits its samples have, before its kind of colours; and that kind."""
PLAIN_PIXELS = 16_384
"""From 128 × 128 on, the pixels of a JPEG cost more than its head, which Pillow reads slowly."""
RESIZED_PIXELS = 1_000_000
"""Any image may grow to this many pixels when its short side is resized."""
# EXIF orientation → what undoes it
TRANSPOSITION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)


class ImageError(MediaError):
    """A picture that we cannot use."""


class NotAnImage(ImageError):
    """No format that we decode."""

    problem = "not-an-image"


class TooManyPixels(ImageError):
    """Above the limit on pixels."""

    problem = "too-large"


class CorruptImage(ImageError):
    """Truncated or damaged."""

    problem = "corrupt-image"


class Decoder:
    """Decodes pictures of at most `max_pixels`, and holds back threads while the memory of two such RGB pictures is in use."""

    def __init__(self, max_pixels: int, limits: Limits | None = None) -> None:
        """limits: of what comes beside pictures."""
        self.max_pixels = max_pixels
        self.limits = limits or Limits()
        self.budget = MemoryBudget(2 * PIXEL * max_pixels)
        # we check the header ourselves; Pillow's own limit would overrule a higher setting
        Image.MAX_IMAGE_PIXELS = None
        # nobody here reads what Pillow says about damaged metadata, once for every text that a sender can make up
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

    def decoded(self, data: bytes, *, transparency: bool = False) -> Decoded:
        """The picture as `Opened.upright` gives it, for the time of a `with` block, which waits while too much is decoded at once.

        Raises ImageError."""
        return Decoded(self, data, transparency)

    def open(self, data: bytes) -> Opened:
        """The picture without its pixels. Raises ImageError."""
        kind = sniff(data)
        if image_headers.too_many(kind, data):
            raise CorruptImage(f"{kind} file with more than {image_headers.MOST_BLOCKS} blocks{image_headers.MOST_OF_A_KIND.get(kind, '')}")
        if kind == "PNG" and image_headers.has_late_header(data):
            raise CorruptImage("PNG file with more than one header chunk (IHDR)")
        if kind == "WebP":
            self._check(*image_headers.webp_size(data))  # opening one allocates the canvas
        try:
            if kind == "TIFF":
                return self._open_tiff(data)
            orientation = image_headers.orientation(kind, data)
            image = FORMATS[kind](io.BytesIO(data))
            self._check(*image.size)
            if kind == "BMP" and image.info["compression"] in RUN_LENGTHS:
                raise NotAnImage("a BMP with run lengths (RLE): save it without compression, or as PNG")
            if kind == "PNG" and "transparency" in image.info:
                _read_transparent_colour(image, data)
            opened = Opened(image, kind, orientation, has_several_scans=kind == "JPEG" and _has_several_scans(image, data))
            self._check_memory(opened)
            return opened
        except ImageError:
            raise
        except Exception as error:
            raise _damaged(kind, error) from error

    def _open_tiff(self, data: bytes) -> Opened:
        page = tiff.first_page(data)
        self._check(page.width, page.height)
        self._check(*page.tile)
        if page.is_big and page.order == ">":  # Pillow takes it for an ordinary TIFF, with another directory than the one that was read
            raise NotAnImage("a BigTIFF with big-endian numbers: write it with little-endian ones")
        image = FirstPage(data, (page.width, page.height))
        grey = tuple(image.tag_v2.get(tag) for tag in (TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION))
        if image.mode in rgb.SIXTEEN_BIT_GREY and grey != ((16,), BLACK_IS_ZERO):  # Pillow takes all of them for that
            raise NotAnImage("TIFF file with 12 bits per channel, or with 16 bits that are 0 in white: send 8 or 16 bits, black as 0")
        stored = tuple(image.tag_v2.get(tag, 1) for tag in (TiffImagePlugin.PLANAR_CONFIGURATION, TiffImagePlugin.COMPRESSION))
        if stored == (IN_PLANES, UNCOMPRESSED) and 16 in image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, ()):
            raise NotAnImage("TIFF file with uncompressed planes of 16 bits: compress it, or store its channels beside each other")
        part = max(page.width * page.strip, page.tile[0] * page.tile[1])
        return Opened(image, "TIFF", page.orientation, part_bytes=_bytes_of_part(image, part))

    def _check(self, width: int, height: int) -> None:
        if max(width, height) > LONGEST_SIDE:
            raise TooManyPixels(f"{width} × {height} pixels: a side is longer than {LONGEST_SIDE:,} pixels, the most that is decoded")
        if width * height > self.max_pixels:
            raise TooManyPixels(f"{width} × {height} pixels is above the limit of {self.max_pixels / 1e6:g} megapixels (OPSIN_MAX_PIXELS)")

    def _check_memory(self, opened: Opened) -> None:
        """A decoder that keeps several copies of a picture is let in alone up to a half more than the budget."""
        most, needed = MOST_BYTES * self.max_pixels, opened.memory()
        if needed > most:
            size = opened.pixels / 1e6
            raise TooManyPixels(
                f"{opened.kind} of {size:.1f} megapixels would take {needed / 1e6:.0f} MB to decode, above the limit of "
                f"{most / 1e6:.0f} MB ({MOST_BYTES} bytes for each of OPSIN_MAX_PIXELS): at most {size * most / needed:.1f} are accepted so"
            )


@dataclass
class Opened:
    """A picture whose pixels are still to be decoded."""

    stored: Image.Image
    """Gone once it is decoded: it would stay in memory."""
    kind: str
    orientation: int
    """As EXIF has it, 1 to 8."""
    part_bytes: int = 0
    """Size of a TIFF's strip or tile, which its decoder holds beside the image."""
    has_several_scans: bool = False
    """Whether this is a JPEG whose decoder keeps all coefficients until the last scan."""

    def __post_init__(self) -> None:
        width, height = self.stored.size
        self.size = (height, width) if self.orientation in SIDEWAYS else (width, height)
        """Width and height, upright."""
        self.pixels = width * height

    def memory(self, *, transparency: bool = False) -> int:
        """Bytes that `upright` takes at most, to be asked for of the decoder's budget. Parts of a TIFF are gone when it is turned."""
        image = self.stored
        stored = 1 if image.mode in ONE_BYTE else 2 if image.mode in rgb.SIXTEEN_BIT_GREY else PIXEL
        if self.kind == "WebP":
            stored += WEBP_CANVASES * PIXEL
        if self.has_several_scans:
            stored += COEFFICIENT * len(image.getbands())
        is_kept = (image.mode == "RGB" and not image.has_transparency_data) or (transparency and image.mode == "RGBA")
        pixel = max(stored if is_kept else stored + PIXEL, 2 * PIXEL * (self.orientation in TRANSPOSITION))
        return max(self.pixels * pixel, self.pixels * stored + self.part_bytes)

    def upright(self, *, transparency: bool = False) -> Image.Image:
        """As RGB; to be called once. Raises ImageError.

        transparency: keep it, as RGBA, in place of laying it on white; and the colour profile in `info`."""
        try:
            self.stored.load()
            profile = self.stored.info.get("icc_profile")
            if not rgb.is_displayable(self.stored, self.kind):
                raise NotAnImage(f"{self.kind} file with pixels of type {self.stored.mode}: {READ_PIXELS}")
            converted = rgb.converted(self.stored, self.kind, transparency)
            del self.stored
            transposition = TRANSPOSITION.get(self.orientation)
            if transposition is not None:
                converted = converted.transpose(transposition)
        except ImageError:
            raise
        except Exception as error:
            raise _damaged(self.kind, error) from error
        if transparency:
            converted.info = {"icc_profile": profile}
        return converted


@dataclass(eq=False, slots=True)
class Decoded:
    """The time for which one decoded picture is in memory. A class, since a generator's frames cost as much as decoding a small picture."""

    _decoder: Decoder
    _data: bytes
    _transparency: bool
    _nbytes: int = 0

    def __enter__(self) -> Image.Image:
        plain = plain_jpeg(self._data, self._decoder.max_pixels)
        if plain is not None:
            if self._transparency:
                plain.info = {"icc_profile": None}
            return plain
        opened = self._decoder.open(self._data)
        self._nbytes = opened.memory(transparency=self._transparency)
        self._decoder.budget.acquire(self._nbytes)
        try:
            return opened.upright(transparency=self._transparency)
        except BaseException:
            self._decoder.budget.release(self._nbytes)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._nbytes:
            self._decoder.budget.release(self._nbytes)


def silence_decoders() -> None:
    """Let decoders say nothing in this process about what strangers send: whoever sent it is told, and a log that anybody can fill is of no
    use. Silent are warnings of Python and NumPy (a division that overflows, damaged metadata), records of Pillow, and what libtiff
    writes to stderr by itself."""
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with suppress(OSError, AttributeError):  # where Pillow has another libtiff, or none
        pillow = ctypes.CDLL(_imaging.__file__)
        pillow.TIFFSetErrorHandler(None)
        pillow.TIFFSetWarningHandler(None)


def plain_jpeg(data: bytes, max_pixels: int) -> Image.Image | None:
    """A small JPEG without anything unusual, given to Pillow's decoder directly: RGB, the same pixels as by `Image.open`. None for others,
    and for damaged files: Pillow says what is wrong with them. So few pixels need nothing of a `MemoryBudget`.

    On one core, 64 × 64 pixels take 0.11 ms in place of 0.25, 96 × 96 0.22 in place of 0.52."""
    if len(data) > image_headers.SMALL_BYTES:
        return None
    frame = image_headers.jpeg_frame(data)
    if frame is None or not frame.is_plain or not 0 < frame.width * frame.height <= min(PLAIN_PIXELS, max_pixels):
        return None
    try:
        return Image.frombytes("RGB", (frame.width, frame.height), data, "jpeg", "RGB", "")
    except (ValueError, OSError):
        return None


def sniff(data: bytes) -> str:
    """One of FORMATS or TIFF, from the first bytes. Raises NotAnImage, which says as which part a video or a sound is sent."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in BMP_HEADER_SIZES:
        return "BMP"
    if mistaken := as_recording(data):
        raise NotAnImage(mistaken)
    name = " but a short text; to send a file with curl, write @ before its name" if 0 < len(data) < LONGEST_NAME and data.isascii() else ""
    raise NotAnImage(f"not an image in a format that is decoded here ({', '.join(FORMATS)}, TIFF){name}")


def to_model_size(image: Image.Image, preprocess: Preprocess, max_pixels: int) -> NDArray[np.uint8]:
    """Short side to `short_side`, then the centre: (image_size, image_size, 3). The same pixels as torchvision's Resize and CenterCrop.
    Where the bundle wants pictures squeezed, all of it, or the centre of it; where it wants TensorFlow 1's, `models.media.tf1_resize`.

    Raises TooManyPixels for a strip so thin that the enlarged picture would be above the limit and above RESIZED_PIXELS.
    """
    if preprocess.interpolation == "tf1-bicubic":
        return tf1_resize.resize_square(np.asarray(image), preprocess.image_size)
    if preprocess.fit == "squeeze":
        return np.asarray(image.resize((preprocess.image_size, preprocess.image_size), RESAMPLING[preprocess.interpolation]))
    if preprocess.fit == "squeeze-crop":
        squeezed = image.resize((preprocess.short_side, preprocess.short_side), RESAMPLING[preprocess.interpolation])
        return np.asarray(squeezed.crop(centre_box(*squeezed.size, preprocess.image_size)))
    width, height = scaled_size(image.width, image.height, preprocess.short_side)
    if width * height > max(max_pixels, RESIZED_PIXELS):
        raise TooManyPixels(
            f"{image.width} × {image.height} pixels is too thin: with a short side of {preprocess.short_side} it would grow to "
            f"{width} × {height} pixels, above the limit of {max_pixels / 1e6:g} megapixels (OPSIN_MAX_PIXELS)"
        )
    if (width, height) != image.size:
        image = image.resize((width, height), RESAMPLING[preprocess.interpolation])
    left, top, right, bottom = centre_box(width, height, preprocess.image_size)
    if left < 0 or top < 0:  # what is missing around it is black
        return np.asarray(image.crop((left, top, right, bottom)))
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, 3)
    return pixels[top:bottom, left:right]


def _has_several_scans(image: Image.Image, data: bytes) -> bool:
    """Whether a JPEG is progressive, or its first scan lacks components of the frame: libjpeg's `has_multiple_scans`."""
    return bool(image.info.get("progressive")) or image_headers.components_of_first_scan(data) < len(image.getbands())


def _bytes_of_part(image: TiffImagePlugin.TiffImageFile, pixels: int) -> int:
    """Bytes of a strip or tile of so many pixels, at most. What is not compressed is read a row at a time."""
    if all(tile[0] != "libtiff" for tile in image.tile):
        return 0
    bits: int = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    samples: int = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    is_luma: bool = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == YCBCR
    return pixels * (bits * samples + 8 * PIXEL * is_luma) // 8  # libtiff makes RGBA of luma and chroma, beside them


def _read_transparent_colour(image: Image.Image, data: bytes) -> None:
    """Pillow compares the colour that a PNG says is transparent (tRNS) with pixels that it has scaled to 8 bits. Raises NotAnImage."""
    depth, kind = data[PNG_DEPTH], data[PNG_DEPTH + 1]
    if depth == 16:
        raise NotAnImage("PNG file with 16 bits per channel and one colour that is transparent (tRNS): give it a channel for transparency")
    if kind == PNG_GREY and depth in (2, 4):
        image.info["transparency"] *= 255 // (2**depth - 1)


def _damaged(kind: str, error: Exception) -> ImageError:
    """The error to tell of one inside a decoder. Damaged files make decoders raise nearly anything, from struct.error to MemoryError: to us
    all of it means a damaged file, save for Pillow's words for pixels that a TIFF may have and it does not read."""
    if str(error) == "unknown pixel mode":
        return NotAnImage(f"{kind} file with pixels of an unknown type: {READ_PIXELS}")
    if isinstance(error, SyntaxError):  # of the file, not of Python
        return CorruptImage(f"{kind} file with a header that cannot be read: truncated or corrupt")
    return CorruptImage(f"{kind} file is truncated or corrupt ({error})")
