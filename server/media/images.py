"""Encoded images → pixels at model size. Every limit is checked before anything is allocated for it.

JPEG, PNG, WebP, GIF, BMP and TIFF are decoded, recognised by their bytes; of an animation or a multi-page file the first image.
Transparency is composited on white, EXIF orientation is applied, 16-bit grey is scaled to 8 bits.
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
from models.media.image_ops import centre_box, resize_square, scaled_size
from server.media import image_headers, rgb, tiff
from server.media.limits import MediaError, MediaLimits
from server.media.memory_budget import MemoryBudget
from server.media.part_hints import suggest_recording_part


class TiffPage(TiffImagePlugin.TiffImageFile):
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
"""Formats that are decoded, apart from TIFF."""
ONE_BYTE = ("1", "L", "P")
MAX_SIDE_PIXELS = 65_535
"""Maximum side of a JPEG. Strips take more than their pixels: Pillow keeps the address of each row, and resizes with weights of each pixel
of a side."""
BYTES_PER_PIXEL = 4
"""Size of a pixel in every mode but ONE_BYTE and 16-bit grey, RGB included."""
WEBP_CANVASES = 3
"""Number of canvases of four bytes a pixel that the decoder keeps in addition to the image."""
BYTES_PER_COEFFICIENT = 2
"""Size of each channel of a pixel that the decoder of a JPEG with several scans keeps until the last one."""
MAX_FILE_NAME_BYTES = 1024
"""Maximum size of a body that may be the name of the file that was meant."""
MAX_BYTES_PER_PIXEL = 12
"""Maximum memory for decoding one image, for each of `max_pixels`."""
RUN_LENGTHS = (BmpImagePlugin.BmpImageFile.COMPRESSIONS["RLE8"], BmpImagePlugin.BmpImageFile.COMPRESSIONS["RLE4"])
"""Compressions of a BMP that Pillow decodes byte by byte in Python: seconds for a file of a few kilobytes."""
BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
READ_PIXELS = "send 8 or 16 bits per channel, grey, RGB or CMYK"
BLACK_IS_ZERO, YCBCR = 1, 6  # as TIFF calls them
IN_PLANES, UNCOMPRESSED = 2, 1
PNG_DEPTH, PNG_GREY = 24, 0
"""Offset of a PNG's bit depth, which its colour type follows, and the colour type of grey."""
PLAIN_PIXELS = 16_384
"""Maximum size of a JPEG that is decoded directly: from 128 × 128 on, its pixels cost more than its head, which Pillow reads slowly."""
RESIZED_PIXELS = 1_000_000
"""Maximum size to which any image may grow when its short side is resized."""
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
    """An image that cannot be used."""


class NotAnImage(ImageError):
    """Not a format that is decoded."""

    problem = "not-an-image"


class TooManyPixels(ImageError):
    """Above the limit on pixels."""

    problem = "too-large"


class CorruptImage(ImageError):
    """Truncated or damaged."""

    problem = "corrupt-image"


class ImageDecoder:
    """A decoder of images of at most `max_pixels`, which blocks threads while the memory of two such RGB images is in use."""

    def __init__(self, max_pixels: int, limits: MediaLimits | None = None) -> None:
        """limits: of parts other than images."""
        self.max_pixels = max_pixels
        self.limits = limits or MediaLimits()
        self.budget = MemoryBudget(2 * BYTES_PER_PIXEL * max_pixels)
        # we check the header ourselves; Pillow's own limit would overrule a higher setting
        Image.MAX_IMAGE_PIXELS = None
        # no one reads what Pillow says about damaged metadata, once for every text that a sender can make up
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

    def decode(self, data: bytes, *, transparency: bool = False) -> DecodedImage:
        """Return a context manager of the image as by `OpenedImage.load_upright`, which waits while too much is decoded at once.

        Raises ImageError."""
        return DecodedImage(self, data, transparency)

    def open(self, data: bytes) -> OpenedImage:
        """Open the image without its pixels. Raises ImageError."""
        kind = sniff(data)
        if image_headers.has_excessive_structure(kind, data):
            raise CorruptImage(f"{kind} file with more than {image_headers.MAX_BLOCKS} blocks{image_headers.LIMIT_HINTS.get(kind, '')}")
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
                _rescale_transparent_colour(image, data)
            opened = OpenedImage(image, kind, orientation, has_several_scans=kind == "JPEG" and _has_several_scans(image, data))
            self._check_memory(opened)
            return opened
        except ImageError:
            raise
        except Exception as error:
            raise _decode_error(kind, error) from error

    def _open_tiff(self, data: bytes) -> OpenedImage:
        page = tiff.first_page(data)
        self._check(page.width, page.height)
        self._check(*page.tile)
        if page.is_big and page.order == ">":  # Pillow takes it for an ordinary TIFF, with another directory than the one that was read
            raise NotAnImage("a BigTIFF with big-endian numbers: write it with little-endian ones")
        image = TiffPage(data, (page.width, page.height))
        grey = tuple(image.tag_v2.get(tag) for tag in (TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION))
        if image.mode in rgb.SIXTEEN_BIT_GREY and grey != ((16,), BLACK_IS_ZERO):  # Pillow takes all of them for that
            raise NotAnImage("TIFF file with 12 bits per channel, or with 16 bits that are 0 in white: send 8 or 16 bits, black as 0")
        stored = tuple(image.tag_v2.get(tag, 1) for tag in (TiffImagePlugin.PLANAR_CONFIGURATION, TiffImagePlugin.COMPRESSION))
        if stored == (IN_PLANES, UNCOMPRESSED) and 16 in image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, ()):
            raise NotAnImage("TIFF file with uncompressed planes of 16 bits: compress it, or interleave its channels")
        part = max(page.width * page.strip, page.tile[0] * page.tile[1])
        return OpenedImage(image, "TIFF", page.orientation, part_bytes=_bytes_of_part(image, part))

    def _check(self, width: int, height: int) -> None:
        if max(width, height) > MAX_SIDE_PIXELS:
            raise TooManyPixels(f"{width} × {height} pixels: a side is longer than {MAX_SIDE_PIXELS:,} pixels, the maximum")
        if width * height > self.max_pixels:
            raise TooManyPixels(f"{width} × {height} pixels is above the limit of {self.max_pixels / 1e6:g} megapixels (OPSIN_MAX_PIXELS)")

    def _check_memory(self, opened: OpenedImage) -> None:
        """Check the memory of a decoder. One that keeps several copies of an image is admitted alone up to half above the budget."""
        limit, needed = MAX_BYTES_PER_PIXEL * self.max_pixels, opened.memory()
        if needed > limit:
            size = opened.pixels / 1e6
            raise TooManyPixels(
                f"{opened.kind} of {size:.1f} megapixels would take {needed / 1e6:.0f} MB to decode, above the limit of "
                f"{limit / 1e6:.0f} MB ({MAX_BYTES_PER_PIXEL} bytes for each of OPSIN_MAX_PIXELS): at most "
                f"{size * limit / needed:.1f} are accepted so"
            )


@dataclass
class OpenedImage:
    """An image whose pixels are still to be decoded."""

    stored: Image.Image
    """Deleted once it is decoded: it would stay in memory."""
    kind: str
    orientation: int
    """EXIF orientation, 1 to 8."""
    part_bytes: int = 0
    """Size of a TIFF's strip or tile, which its decoder holds in addition to the image."""
    has_several_scans: bool = False
    """Whether this is a JPEG whose decoder keeps all coefficients until the last scan."""

    def __post_init__(self) -> None:
        width, height = self.stored.size
        self.size = (height, width) if self.orientation in SIDEWAYS else (width, height)
        """Width and height, upright."""
        self.pixels = width * height

    def memory(self, *, transparency: bool = False) -> int:
        """Return the maximum memory of `load_upright`, for the decoder's budget. Parts of a TIFF are freed before it is turned."""
        image = self.stored
        stored = 1 if image.mode in ONE_BYTE else 2 if image.mode in rgb.SIXTEEN_BIT_GREY else BYTES_PER_PIXEL
        if self.kind == "WebP":
            stored += WEBP_CANVASES * BYTES_PER_PIXEL
        if self.has_several_scans:
            stored += BYTES_PER_COEFFICIENT * len(image.getbands())
        is_kept = (image.mode == "RGB" and not image.has_transparency_data) or (transparency and image.mode == "RGBA")
        pixel = max(stored if is_kept else stored + BYTES_PER_PIXEL, 2 * BYTES_PER_PIXEL * (self.orientation in TRANSPOSITION))
        return max(self.pixels * pixel, self.pixels * stored + self.part_bytes)

    def load_upright(self, *, transparency: bool = False) -> Image.Image:
        """Decode as RGB; call it once. Raises ImageError.

        transparency: keep it, as RGBA, instead of compositing it on white; and the colour profile in `info`."""
        try:
            self.stored.load()
            profile = self.stored.info.get("icc_profile")
            if not rgb.is_displayable(self.stored, self.kind):
                raise NotAnImage(f"{self.kind} file with pixels of type {self.stored.mode}: {READ_PIXELS}")
            converted = rgb.convert_mode(self.stored, self.kind, transparency)
            del self.stored
            transposition = TRANSPOSITION.get(self.orientation)
            if transposition is not None:
                converted = converted.transpose(transposition)
        except ImageError:
            raise
        except Exception as error:
            raise _decode_error(self.kind, error) from error
        if transparency:
            converted.info = {"icc_profile": profile}
        return converted


@dataclass(eq=False, slots=True)
class DecodedImage:
    """The time for which one decoded image is in memory. A class, since a generator's frames cost as much as decoding a small image."""

    _decoder: ImageDecoder
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
            return opened.load_upright(transparency=self._transparency)
        except BaseException:
            self._decoder.budget.release(self._nbytes)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._nbytes:
            self._decoder.budget.release(self._nbytes)


def silence_decoders() -> None:
    """Silence decoders in this process about what clients send: the client receives an error, and a log that anyone can fill is useless.

    This covers warnings of Python and NumPy (overflow in division, damaged metadata), records of Pillow, and libtiff's output on stderr."""
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with suppress(OSError, AttributeError):  # Pillow may have another libtiff, or none
        pillow = ctypes.CDLL(_imaging.__file__)
        pillow.TIFFSetErrorHandler(None)
        pillow.TIFFSetWarningHandler(None)


def plain_jpeg(data: bytes, max_pixels: int) -> Image.Image | None:
    """Decode a small ordinary JPEG by Pillow's decoder directly: RGB, the same pixels as by `Image.open`, with no need of a `MemoryBudget`.

    Return None for others and for damaged files: Pillow says what is wrong with them. On one core, 64 × 64 pixels take 0.11 ms instead of
    0.25, 96 × 96 0.22 instead of 0.52."""
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
    """Return one of FORMATS or TIFF, from the first bytes. Raises NotAnImage, which names the part for a video or sound."""
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
    if hint := suggest_recording_part(data):
        raise NotAnImage(hint)
    name = (
        " but a short text; to send a file with curl, write @ before its name"
        if 0 < len(data) < MAX_FILE_NAME_BYTES and data.isascii()
        else ""
    )
    raise NotAnImage(f"not an image in a supported format ({', '.join(FORMATS)}, TIFF){name}")


def to_model_size(image: Image.Image, preprocess: Preprocess, max_pixels: int) -> NDArray[np.uint8]:
    """Resize the short side to `short_side`, then crop the centre: (image_size, image_size, 3), as torchvision's Resize and CenterCrop do.
    If the bundle squeezes images, resize all of the image, or its centre; for TensorFlow 1's resizing, see `models.media.image_ops`.

    Raises TooManyPixels for a strip so thin that the enlarged picture would be above the limit and above RESIZED_PIXELS.
    """
    if preprocess.interpolation == "tf1-bicubic":
        return resize_square(np.asarray(image), preprocess.image_size)
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
    if left < 0 or top < 0:  # pad with black
        return np.asarray(image.crop((left, top, right, bottom)))
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, 3)
    return pixels[top:bottom, left:right]


def _has_several_scans(image: Image.Image, data: bytes) -> bool:
    """Return whether a JPEG is progressive, or its first scan lacks components of the frame: libjpeg's `has_multiple_scans`."""
    return bool(image.info.get("progressive")) or image_headers.components_of_first_scan(data) < len(image.getbands())


def _bytes_of_part(image: TiffImagePlugin.TiffImageFile, pixels: int) -> int:
    """Return the maximum size of a strip or tile with this many pixels. An uncompressed one is read a row at a time."""
    if all(tile[0] != "libtiff" for tile in image.tile):
        return 0
    bits: int = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    samples: int = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    is_luma: bool = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == YCBCR
    return pixels * (bits * samples + 8 * BYTES_PER_PIXEL * is_luma) // 8  # libtiff makes RGBA of luma and chroma, too


def _rescale_transparent_colour(image: Image.Image, data: bytes) -> None:
    """Scale a PNG's transparent colour (tRNS), which Pillow compares with pixels that it has scaled to 8 bits. Raises NotAnImage."""
    depth, kind = data[PNG_DEPTH], data[PNG_DEPTH + 1]
    if depth == 16:
        raise NotAnImage("PNG file with 16 bits per channel and one colour that is transparent (tRNS): give it a channel for transparency")
    if kind == PNG_GREY and depth in (2, 4):
        image.info["transparency"] *= 255 // (2**depth - 1)


def _decode_error(kind: str, error: Exception) -> ImageError:
    """Convert an error of a decoder. Damaged files make decoders raise nearly anything, from struct.error to MemoryError: all of it means
    a damaged file, except Pillow's message for pixels that a TIFF may have and it does not read."""
    if str(error) == "unknown pixel mode":
        return NotAnImage(f"{kind} file with pixels of an unknown type: {READ_PIXELS}")
    if isinstance(error, SyntaxError):  # of the file, not of Python
        return CorruptImage(f"{kind} file with a header that cannot be read: truncated or corrupt")
    return CorruptImage(f"{kind} file is truncated or corrupt ({error})")
