"""Near-duplicates and the split that keeps them together, so that no test picture has a twin in training.

Two pictures belong together if their names are of one numbered series (`hummer_01`, `hummer_02`; also `crab_bw` and `crab`),
or if they look alike: the same gradients and nearly the same colours once white margins are cut away.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from training.data.pictures import Pixels

_HASH_SIDE = 16  # 16 x 16 horizontal and 16 x 16 vertical gradient signs
_HASH_DISTANCE = 40  # of 512 bits
_COLOUR_SIDE = 4
_COLOUR_DISTANCE = 24.0  # mean absolute difference in grey levels
_VARIANTS = re.compile(r"(?<![a-z])(bw|b_w|colou?r|black|white|outline|shaded|r|a|b|c|d)(?![a-z])")


@dataclass(frozen=True)
class Look:
    """What is compared of a picture: gradient signs as packed bits, and a 4 x 4 thumbnail."""

    gradients: npt.NDArray[np.uint8]  # (64,)
    colours: npt.NDArray[np.float32]  # (48,)


def look_of(picture: Pixels) -> Look:
    image = Image.fromarray(picture)
    drawn = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    drawing = image.crop(drawn) if drawn else image
    side = _HASH_SIDE + 1
    grey = np.asarray(drawing.convert("L").resize((side, side), Image.Resampling.BOX), dtype=np.int16)
    signs = [grey[:-1, 1:] > grey[:-1, :-1], grey[1:, :-1] > grey[:-1, :-1]]
    colours = np.asarray(drawing.resize((_COLOUR_SIDE, _COLOUR_SIDE), Image.Resampling.BOX), dtype=np.float32)
    return Look(np.packbits(np.stack(signs).ravel()), colours.ravel())


def series_of(path: str) -> str:
    """The name without numbers, variants and punctuation: what the pictures of one series share."""
    name = re.sub(r"[\d_.\-]+", " ", Path(path).stem.lower())
    return " ".join(_VARIANTS.sub(" ", name).split()) or Path(path).stem


def group(paths: Sequence[str], pictures: Sequence[Pixels]) -> dict[str, str]:
    """Path → the name of its group, the first of its members' paths."""
    looks = [look_of(picture) for picture in pictures]
    parents = list(range(len(paths)))

    def leader(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    def join(one: int, other: int) -> None:
        first, second = sorted((leader(one), leader(other)))
        parents[second] = first

    series: dict[str, int] = {}
    for index, path in enumerate(paths):
        join(series.setdefault(series_of(path), index), index)
    for one, other in _alike(looks):
        join(one, other)
    return {path: paths[leader(index)] for index, path in enumerate(paths)}


def split_of(group_name: str, shares: Mapping[str, float]) -> str:
    """A group's split, from a fixed hash of its name: adding pictures to the collection moves no group. `shares` sum to 1."""
    split, reached = "", 0.0
    point = int.from_bytes(hashlib.sha256(group_name.encode()).digest()[:8]) / 2**64
    for split, share in shares.items():
        reached += share
        if point < reached:
            return split
    return split


def _alike(looks: Sequence[Look]) -> list[tuple[int, int]]:
    gradients = np.stack([look.gradients for look in looks])
    colours = np.stack([look.colours for look in looks])
    pairs: list[tuple[int, int]] = []
    for index in range(len(looks) - 1):
        later = slice(index + 1, None)
        differing_bits = np.bitwise_count(gradients[later] ^ gradients[index]).sum(axis=1, dtype=np.int64)
        off_colour = np.abs(colours[later] - colours[index]).mean(axis=1)
        alike = (differing_bits <= _HASH_DISTANCE) & (off_colour <= _COLOUR_DISTANCE)
        pairs.extend((index, index + 1 + int(other)) for other in np.flatnonzero(alike))
    return pairs
