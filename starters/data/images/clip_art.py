"""Open Clip Art as Debian ships it (public domain): thousands of drawings by many artists, cleaned, some of them held out.

Cleaning leaves out files that cannot be read or are too small, and all but one of drawings that look alike. Files of one series (`star_1`,
`star_2`) are either all trained on or all held out, so that no test drawing has a near copy in training.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field

from models.arrays import UInt8Array
from training.checkpoint import replacing, write_atomically
from training.data.augment import prepare_image
from training.data.packages import DebianPackage, obtain
from training.data.source import DataSettings, Sample, SamplePreparation
from training.errors import DataError

_MAX_PIXELS = 16_000_000
"""Maximum number of pixels; a few posters would take longer to decode than all other drawings."""
_THUMBNAIL = 16
_OPAQUE = 16
"""Minimum alpha of a pixel that belongs to the drawing."""


class ClipArt(DataSettings):
    kind: Literal["clip-art"] = "clip-art"
    package: DebianPackage
    folder: str
    """Folder of the package's PNG files."""
    smallest: int = Field(default=96, gt=0)
    """Minimum longer side of a drawing without its margin, in pixels."""
    alike: float = Field(default=0.02, ge=0, lt=1)
    """Squared difference of two thumbnails relative to their power, below which they count as one drawing."""
    side: int = Field(default=112, gt=0)
    """Width and height in pixels at which drawings are stored."""
    held_out_every: int = Field(default=10, ge=2)
    """One series in this many is held out."""
    part: Literal["train", "test"] = "train"
    coloured: float = Field(default=0.3, ge=0, le=1)
    """Share of training samples with a coloured instead of a white background."""

    def open(self, preparation: SamplePreparation) -> ClipArtImages:
        """Open the drawings of the part. Raises DataError."""
        preparation.require_preprocess()
        collection = build(self, preparation.cache)
        held_out = self.part == "test"
        chosen = [n for n, name in enumerate(collection.names) if is_held_out(name, self.held_out_every) == held_out]
        if not chosen:
            raise DataError(f"data.part: none of the {len(collection.names)} drawings belongs to {self.part}")
        names, rows = tuple(collection.names[n] for n in chosen), tuple(collection.rows[n] for n in chosen)
        return ClipArtImages(collection.drawings(), names, rows, self, preparation)


@dataclass(frozen=True)
class Collection:
    """Drawings that are left after cleaning, in the order of their names."""

    file: Path
    """All decoded drawings, uint8 (decoded, side, side, 4)."""
    names: tuple[str, ...]
    """Paths below the package's folder."""
    rows: tuple[int, ...]
    """Rows of `file`, one for each name."""
    side: int
    left_out: Mapping[str, int]
    """Reason → number of files."""

    def drawings(self) -> UInt8Array:
        """Map all decoded drawings (decoded, side, side, 4), shared between processes."""
        return np.memmap(self.file, np.uint8, "r").reshape(-1, self.side, self.side, 4)


@dataclass(frozen=True)
class ClipArtImages:
    drawings: UInt8Array
    names: tuple[str, ...]
    rows: tuple[int, ...]
    settings: ClipArt
    preparation: SamplePreparation
    unit: str = "images"
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def identity(self) -> Mapping[str, Any]:
        return {"files": len(self.names), "listing": hashlib.sha256("\n".join(self.names).encode()).hexdigest()}

    def sample(self, index: int, draw: int) -> Sample:
        dice = random.Random(f"background {draw}")
        coloured = self.settings.part == "train" and dice.random() < self.settings.coloured
        background = (dice.randrange(256), dice.randrange(256), dice.randrange(256)) if coloured else (255, 255, 255)
        return {"pixels": prepare_image(self.image(index, background), self.preparation, draw)}

    def image(self, index: int, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
        """Return one drawing as RGB."""
        canvas = Image.new("RGBA", (self.settings.side, self.settings.side), (*background, 255))
        canvas.alpha_composite(Image.fromarray(np.array(self.drawings[self.rows[index]])))
        return canvas.convert("RGB")


def is_held_out(name: str, every: int) -> bool:
    """Return whether the series of a file is held out: by a hash, so that it does not depend on the package's other files."""
    return int(hashlib.sha256(series_of(name).encode()).hexdigest(), 16) % every == 0


def series_of(name: str) -> str:
    """Return the path without digits and the artist's name, which differ within a series."""
    path = Path(name)
    stem = re.sub(r"\d+", "", path.stem)
    words = [word for word in re.split(r"[^a-z]+", stem.lower()) if len(word) > 1]
    return "/".join((path.parent.as_posix(), words[0] if words else stem))


def build(settings: ClipArt, cache: Path) -> Collection:
    """Return the drawings; obtain and decode the package if `cache` lacks them. Raises DataError."""
    digest_of = json.dumps([settings.package.sha256, settings.folder, settings.smallest, settings.alike, settings.side])
    base = cache / f"clip-art-{hashlib.sha256(digest_of.encode()).hexdigest()[:16]}"
    drawings, index = base.with_suffix(".rgba"), base.with_suffix(".json")
    if not index.is_file():
        root = obtain(settings.package, cache) / settings.folder
        files = sorted(root.rglob("*.png"))
        if not files:
            raise DataError(f"data.folder: {root} has no PNG files")
        _decode(root, files, settings, drawings, index)
    stored = json.loads(index.read_text(encoding="utf-8"))
    return Collection(drawings, tuple(stored["names"]), tuple(stored["rows"]), settings.side, stored["left_out"])


def _decode(root: Path, files: Sequence[Path], settings: ClipArt, drawings: Path, index: Path) -> None:
    """Write the drawings, then the index, which marks them as complete."""
    names: list[str] = []
    thumbnails: list[npt.NDArray[np.float32]] = []
    left_out = {"unreadable": 0, "too small": 0, "too large": 0, "alike": 0}
    with replacing(drawings) as partial, partial.open("wb") as target:
        for file in files:
            try:
                drawing = _read(file, settings)
            except (OSError, ValueError, SyntaxError, struct.error):
                left_out["unreadable"] += 1
                continue
            if isinstance(drawing, str):
                left_out[drawing] += 1
                continue
            target.write(np.asarray(drawing).tobytes())
            names.append(file.relative_to(root).as_posix())
            thumbnails.append(_thumbnail(drawing))
        if not names:
            raise DataError(f"data: none of the {len(files)} files of {root} can be used: {left_out}")
    rows = distinct(np.stack(thumbnails), settings.alike)
    left_out["alike"] = len(names) - len(rows)
    write_atomically(index, json.dumps({"names": [names[row] for row in rows], "rows": rows, "left_out": left_out}))


def _read(file: Path, settings: ClipArt) -> Image.Image | Literal["too small", "too large"]:
    """Read a drawing without its margin, centred in a transparent square."""
    with file.open("rb") as opened:
        width, height = struct.unpack(">II", opened.read(24)[16:])  # header of the first chunk
    if width * height > _MAX_PIXELS:
        return "too large"
    if max(width, height) < settings.smallest:
        return "too small"
    with Image.open(file) as opened_image:
        image = opened_image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(_opaque).getbbox() or (0, 0, 1, 1))
    if max(image.size) < settings.smallest:
        return "too small"
    scale = settings.side / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    # Premultiplied: invisible pixels have any colour, and must not shine through at the edges.
    shrunk = image.convert("RGBa").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0).convert("RGBA")
    square = Image.new("RGBA", (settings.side, settings.side))
    square.paste(shrunk, ((settings.side - width) // 2, (settings.side - height) // 2))
    return square


def _opaque(alpha: int) -> int:
    return 255 if alpha >= _OPAQUE else 0


def _thumbnail(drawing: Image.Image) -> npt.NDArray[np.float32]:
    """Return the difference of a small copy from white, (values,)."""
    canvas = Image.new("RGBA", drawing.size, "white")
    canvas.alpha_composite(drawing)
    small = canvas.convert("RGB").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return 1 - np.asarray(small, np.float32).ravel() / np.float32(255)


def distinct(thumbnails: npt.NDArray[np.float32], alike: float) -> list[int]:
    """Return indices of thumbnails (N, values) that are not similar to an earlier one; white ones are left out."""
    values = torch.from_numpy(thumbnails)
    power = values.square().sum(dim=1)  # (N,)
    chosen: list[int] = []
    for number in range(len(values)):
        if power[number] < 1e-3 * values.shape[1]:
            continue
        others = torch.tensor(chosen, dtype=torch.int64)
        squared = power[others] + power[number] - 2 * (values[others] @ values[number])
        if not bool((squared < alike * (power[others] + power[number])).any()):
            chosen.append(number)
    return chosen
