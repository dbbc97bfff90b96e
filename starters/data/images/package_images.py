"""Images that packages ship, decoded once: grounds, which fill a frame, and cutouts, which are placed in front of one."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from models.arrays import UInt8Array
from starters.data.renders.furniture import unpack
from training.data.packages import LicensedPackage, obtain
from training.errors import DataError
from training.recipe_settings import RecipeSettings

Part = Literal["train", "val", "test"]
Role = Literal["ground", "cutout"]

_REVISION = 1
"""Revision of the cached files: those of other revisions are not read."""
_MIN_CONTRAST = 12.0
"""Minimum standard deviation of a ground's grey levels; flatter ones do not show movement."""
_MIN_SIDE = 24
"""Minimum longer side in pixels."""
_MAX_PIXELS = 40_000_000


class ImageFiles(RecipeSettings):
    """Files of one package with the same role and part."""

    files: list[str] = Field(min_length=1)
    """Patterns below the package's folder, or below `library`."""
    without: list[str] = Field(default_factory=list)
    """Patterns of paths that are left out."""
    library: str | None = None
    """Path of a Sweet Home 3D library in the package, which is unpacked."""
    role: Role
    part: Part = "train"
    side: int = Field(gt=0)
    """Maximum longer side in pixels, to which larger images are shrunk."""
    most: int | None = Field(default=None, gt=0)
    """Maximum number of images, evenly spread over the files in the order of their names."""


class StillPackage(LicensedPackage):
    pictures: list[ImageFiles] = Field(min_length=1)


@dataclass(frozen=True)
class StillEntry:
    """Position of an image in the file of all images."""

    name: str
    """Name of the package, and path."""
    role: Role
    part: Part
    shape: tuple[int, int, int]
    """Height, width and channels: RGB of a ground, premultiplied RGBA of a cutout."""
    first: int
    """Offset in bytes."""


@dataclass(frozen=True)
class Stills:
    pixels: UInt8Array
    """All images (bytes,), shared with forked processes."""
    entries: tuple[StillEntry, ...]

    def entries_of(self, part: Part, role: Role) -> tuple[StillEntry, ...]:
        """Return the images of a part and role. Raises DataError if there are none."""
        found = self._sorted.get((part, role))
        if found is None:
            raise DataError(f"data.packages: no {role} belongs to {part}")
        return found

    def counts(self) -> dict[str, int]:
        """Count images by `PART ROLE`."""
        return {f"{part} {role}": len(entries) for (part, role), entries in sorted(self._sorted.items())}

    @cached_property
    def _sorted(self) -> Mapping[tuple[Part, Role], tuple[StillEntry, ...]]:
        found: dict[tuple[Part, Role], list[StillEntry]] = defaultdict(list)
        for entry in self.entries:
            found[entry.part, entry.role].append(entry)
        return {key: tuple(entries) for key, entries in found.items()}

    def read(self, entry: StillEntry) -> UInt8Array:
        """Return an image (height, width, channels)."""
        height, width, channels = entry.shape
        return np.asarray(self.pixels[entry.first : entry.first + height * width * channels]).reshape(entry.shape)

    def identity(self) -> Mapping[str, Any]:
        listing = "\n".join(f"{entry.part} {entry.role} {entry.name} {entry.shape}" for entry in self.entries)
        return {"files": len(self.entries), "listing": hashlib.sha256(listing.encode()).hexdigest()}


def open_stills(packages: Sequence[StillPackage], cache: Path) -> Stills:
    """Obtain the packages and decode each once; later they come from `cache`. Raises DataError."""
    entries: list[StillEntry] = []
    parts: list[UInt8Array] = []
    first = 0
    for package in packages:
        content, index = _decode_once(package, cache)
        stored = json.loads(index.read_text(encoding="utf-8"))
        entries += [StillEntry(row["name"], row["role"], row["part"], tuple(row["shape"]), first + row["first"]) for row in stored]
        parts.append(np.fromfile(content, np.uint8))
        first += len(parts[-1])
    return Stills(np.concatenate(parts), tuple(entries))


def _decode_once(package: StillPackage, cache: Path) -> tuple[Path, Path]:
    """Return the files of a package's pixels and of their index, decoding them if they are missing. Raises DataError."""
    settings = json.dumps([_REVISION, package.package.sha256, [chosen.model_dump() for chosen in package.pictures]])
    base = cache / f"stills-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    content, index = base.with_suffix(".pixels"), base.with_suffix(".json")
    if not index.is_file():
        root, rows, first = obtain(package.package, cache), [], 0
        partial = content.with_suffix(f".{os.getpid()}")  # processes may decode at once
        with partial.open("wb") as target:
            for chosen, name, pixels in _decode(package, root):
                target.write(pixels.tobytes())
                rows.append({"name": name, "role": chosen.role, "part": chosen.part, "shape": pixels.shape, "first": first})
                first += pixels.size
        partial.replace(content)
        index.write_text(json.dumps(rows), encoding="utf-8")
    return content, index


def _decode(package: StillPackage, root: Path) -> Iterator[tuple[ImageFiles, str, UInt8Array]]:
    for chosen in package.pictures:
        folder = unpack(root / chosen.library) if chosen.library else root
        files = _list_files(chosen, folder)
        if not files:
            raise DataError(f"data.packages: {package.package.name} has no file like {', '.join(chosen.files)}")
        for file in files:
            pixels = _read(file, chosen)
            if pixels is not None:
                yield chosen, f"{package.package.name}/{file.relative_to(root).as_posix()}", pixels


def _list_files(chosen: ImageFiles, folder: Path) -> list[Path]:
    found = sorted({file for pattern in chosen.files for file in folder.glob(pattern)})
    found = [file for file in found if not any(fnmatchcase(file.relative_to(folder).as_posix(), one) for one in chosen.without)]
    if chosen.most is None or len(found) <= chosen.most:
        return found
    return [found[number * len(found) // chosen.most] for number in range(chosen.most)]


def _read(file: Path, chosen: ImageFiles) -> UInt8Array | None:
    """Read an image. Return None if it cannot be read, is too small or shows nothing."""
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning), Image.open(file) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                return None
            opened.draft("RGB", (2 * chosen.side, 2 * chosen.side))
            image = opened.convert("RGB" if chosen.role == "ground" else "RGBA")
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError):
        return None
    if chosen.role == "cutout":
        image = image.crop(image.getchannel("A").getbbox() or (0, 0, 1, 1)).convert("RGBa")
    image.thumbnail((chosen.side, chosen.side), Image.Resampling.BICUBIC, reducing_gap=3.0)
    if max(image.size) < _MIN_SIDE:
        return None
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)
    return None if chosen.role == "ground" and pixels.mean(axis=2).std() < _MIN_CONTRAST else pixels
