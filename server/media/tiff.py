"""First directory of a TIFF file (revision 6.0, section 2; BigTIFF), read before any decoder sees it.

A decoder makes an object of each value that a directory claims, long before a pixel is read. EXIF data is such a directory, too (CIPA
DC-008, 4.5.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, ORIENTATION, SAMPLES, ROWS_PER_STRIP, PLANES, TILE_WIDTH, TILE_HEIGHT = 256, 257, 274, 277, 278, 284, 322, 323
MAX_TIFF_PARTS = 32_768
"""Maximum number of strips or tiles."""
MAX_TIFF_VALUES = 131_072
"""Maximum number of values of all entries of a directory, apart from texts and bytes."""
MAX_TIFF_ENTRIES = 4096
SHORT, LONG = 3, 4
# tables by tag or type, since `numpy.isin` imports half a megabyte at its first call
IS_PARTS = np.zeros(65_536, np.bool_)
"""Tags of offsets and lengths, of strips and of tiles."""
IS_PARTS[[273, 279, 324, 325]] = True
IS_NUMBER = np.zeros(65_536, np.bool_)
"""Tags whose values a decoder takes as numbers, whatever their type."""
IS_NUMBER[[*range(254, 270), *range(273, 285), 296, 320, *range(322, 326), 338, 339, 530, 532]] = True
IS_BYTES = np.zeros(65_536, np.bool_)
"""BYTE, ASCII and UNDEFINED, which a decoder does not convert."""
IS_BYTES[[1, 2, 7]] = True
SIZES = np.zeros(65_536, np.int64)
"""Size of a value in bytes by type; 0 for unknown types."""
SIZES[1:19] = (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
INTEGERS = {1: "u1", SHORT: "u2", LONG: "u4", 16: "u8"}
"""NumPy's names of BYTE, SHORT, LONG and LONG8."""
HUGE = 2**40
PLANAR = 2


class BadDirectory(ValueError):
    """A damaged or excessive directory. The message says what is wrong."""


@dataclass(frozen=True)
class Page:
    """The image as the first directory describes it."""

    width: int
    height: int
    tile: tuple[int, int]
    """Width and height; (0, 0) if there are none. A tile may be larger than the image."""
    strip: int
    """Rows per strip, at most those of the image."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    is_big: bool
    """BigTIFF."""
    order: str
    """Byte order: < or >."""


@dataclass(frozen=True)
class _TiffDirectory:
    data: bytes
    order: str
    is_big: bool
    entries: NDArray[Any]
    """(N,) of tag, type, count and value, which is an offset if it does not fit."""

    def find(self, tag: int) -> NDArray[Any]:
        found: NDArray[Any] = self.entries[self.entries["tag"] == tag]
        return found

    def number(self, tag: int, default: int | None = None) -> int:
        """Value of an entry that holds one integer. Raises BadDirectory."""
        found = self.find(tag)
        if not len(found) and default is not None:
            return default
        if len(found) != 1 or found["count"][0] != 1 or int(found["type"][0]) not in INTEGERS:
            raise BadDirectory(f"tag {tag} is not there once, with one integer")
        kind = np.dtype(self.order + INTEGERS[int(found["type"][0])])
        value = found["value"][0].tobytes()
        if kind.itemsize > len(value):
            offset = int.from_bytes(value, "little" if self.order == "<" else "big")
            value = self.data[offset : offset + kind.itemsize]
        if len(value) < kind.itemsize:
            raise BadDirectory(f"tag {tag} lies outside of the file")
        return int(np.frombuffer(value, kind, 1)[0])


def first_page(data: bytes) -> Page:
    """Read the first page. Raises BadDirectory if it is damaged, or if its structure would take a decoder more than its pixels do."""
    directory = _first_directory(data)
    width, height = directory.number(WIDTH), directory.number(HEIGHT)
    tile = directory.number(TILE_WIDTH, 0), directory.number(TILE_HEIGHT, 0)
    _check(directory, _parts(directory, width, height, tile), f"{width} × {height} pixels")
    rows = min(height, _rows(directory, height))
    return Page(width, height, tile, rows, _orientation(directory), directory.is_big, directory.order)


def orientation(exif: bytes) -> int:
    """Return the orientation of EXIF data, 1 to 8; 1 if it has none or is damaged."""
    try:
        return _orientation(_first_directory(exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")))
    except BadDirectory:
        return 1


def _orientation(directory: _TiffDirectory) -> int:
    """Return the orientation. The standard says SHORT; LONG is written by some programs and read by others."""
    found = directory.find(ORIENTATION)
    if len(found) != 1 or found["type"][0] not in (SHORT, LONG) or found["count"][0] != 1:
        return 1
    value = directory.number(ORIENTATION)
    return value if 1 <= value <= 8 else 1


def _first_directory(data: bytes) -> _TiffDirectory:
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    word = order + ("u8" if is_big else "u4")
    head = 16 if is_big else 8
    if len(data) < head:
        raise BadDirectory("no directory")
    at = int(np.frombuffer(data, word, 1, head - (8 if is_big else 4))[0])
    counter = np.dtype(order + ("u8" if is_big else "u2"))
    if at + counter.itemsize > len(data):
        raise BadDirectory("the directory lies outside of the file")
    count = int(np.frombuffer(data, counter, 1, at)[0])
    if count > MAX_TIFF_ENTRIES:
        raise BadDirectory(f"a directory of {count:,} entries: at most {MAX_TIFF_ENTRIES:,} are read")
    entry = np.dtype([("tag", order + "u2"), ("type", order + "u2"), ("count", word), ("value", "V8" if is_big else "V4")])
    if at + counter.itemsize + count * entry.itemsize > len(data):
        raise BadDirectory("the directory breaks off")
    return _TiffDirectory(data, order, is_big, np.frombuffer(data, entry, count, at + counter.itemsize))


def _parts(directory: _TiffDirectory, width: int, height: int, tile: tuple[int, int]) -> int:
    """Return the number of strips or tiles that the image needs."""
    rows = _rows(directory, height)
    planes = directory.number(SAMPLES, 1) if directory.number(PLANES, 1) == PLANAR else 1
    tiles = math.ceil(width / tile[0]) * math.ceil(height / tile[1]) if all(tile) else 0
    return max(-(-height // rows), tiles) * planes


def _rows(directory: _TiffDirectory, height: int) -> int:
    """Return the rows of a strip, as the directory says."""
    return max(1, directory.number(ROWS_PER_STRIP, height))


def _check(directory: _TiffDirectory, parts: int, size: str) -> None:
    entries = directory.entries
    counts = np.minimum(entries["count"].astype(np.uint64), HUGE).astype(np.int64)
    count = int(counts[IS_PARTS[entries["tag"]]].max(initial=0))
    if count > MAX_TIFF_PARTS:
        raise BadDirectory(f"{count:,} strips or tiles: at most {MAX_TIFF_PARTS:,} are read")
    if count > parts:
        raise BadDirectory(f"{count:,} strips or tiles, but {size} need {parts:,}")
    values = int(counts[~IS_BYTES[entries["type"]] | IS_NUMBER[entries["tag"]]].sum())
    if values > MAX_TIFF_VALUES:
        raise BadDirectory(f"a directory of {values:,} values: at most {MAX_TIFF_VALUES:,} are read")
    if int((counts * SIZES[entries["type"]]).sum()) > len(directory.data):
        raise BadDirectory("the directory claims more than the file holds")
