"""Emoji as several artists drew them, and some of their concepts kept for tests.

A concept is what an emoji shows, whoever drew it: it is trained on in every style or held out in every style. The first style lists the
concepts by its names; what another style calls otherwise is left out, since it could be a held-out concept under a name of its own. Skin
tones are left out, and who does a thing (man, woman, person) makes no concept. No flag is among them.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from training.checkpoint import replacing, write_atomically
from training.data.base import Preparation, Sample
from training.data.images import prepared
from training.errors import DataError
from training.settings import Settings
from training.starters.images.iconify import Style, drawn, icons

_LEFT_OUT = frozenset({"flag", "flags", "tone", "skin", *(f"tone{number}" for number in range(1, 6))})
"""Words of the names that are left out: flags are others' matter, and a skin tone makes no other drawing."""
_WHO = frozenset({"man", "men", "woman", "women", "person", "people", "boy", "girl", "boys", "girls"})
_COARSEST = 48
"""Pixels along the side of the smallest emoji that are shown enlarged."""

RGBA = npt.NDArray[np.uint8]


class Emoji(Settings):
    kind: Literal["emoji"] = "emoji"
    styles: list[Style] = Field(min_length=1)
    """The first one's names say which concepts there are."""
    held_out_every: int = Field(default=10, ge=2)
    """One concept in so many is held out."""
    part: Literal["train", "test"] = "train"
    side: int = Field(default=128, gt=0)
    """Width and height at which drawings are kept."""
    coloured: float = Field(default=0.3, ge=0, le=1)
    """Share of the samples in training whose background is a colour instead of white."""
    coarse: float = Field(default=0.3, ge=0, le=1)
    """Share of the samples in training that had fewer pixels once."""


@dataclass(frozen=True)
class EmojiImages:
    drawings: RGBA
    """(all drawings, side, side, 4), mapped."""
    names: tuple[str, ...]
    """`STYLE/NAME` of the samples."""
    rows: tuple[int, ...]
    """Rows of `drawings`, one for each name."""
    settings: Emoji
    preparation: Preparation
    unit: str = "images"
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def identity(self) -> Mapping[str, Any]:
        return {"files": len(self.names), "listing": hashlib.sha256("\n".join(self.names).encode()).hexdigest()}

    def sample(self, index: int, draw: int) -> Sample:
        preprocess = self.preparation.preprocess
        assert preprocess is not None
        image, settings = None, self.settings
        if settings.part == "train":
            dice = random.Random(f"background {draw}")
            coloured, coarse = dice.random() < settings.coloured, dice.random() < settings.coarse
            background = (dice.randrange(256), dice.randrange(256), dice.randrange(256))
            image = self.image(index, background if coloured else (255, 255, 255))
            if coarse:
                side = dice.randrange(_COARSEST, settings.side)
                image = image.resize((side, side), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
        return {"pixels": prepared(image or self.image(index), preprocess, self.preparation.augment, draw)}

    def image(self, index: int, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
        """One drawing as RGB."""
        canvas = Image.new("RGBA", (self.settings.side, self.settings.side), (*background, 255))
        canvas.alpha_composite(Image.fromarray(np.array(self.drawings[self.rows[index]])))
        return canvas.convert("RGB")


def open_emoji(settings: Emoji, preparation: Preparation) -> EmojiImages:
    """Raises DataError."""
    if preparation.preprocess is None:
        raise DataError("preprocess: the recipe does not say how images are prepared (image_size, mean, std, …)")
    names, drawings = build(settings, preparation.cache)
    concepts = concepts_of(names, settings.styles[0].name)
    chosen = [
        number
        for number, name in enumerate(names)
        if name in concepts and is_held_out(concepts[name], settings.held_out_every) == (settings.part == "test")
    ]
    if not chosen:
        raise DataError(f"data.part: none of the {len(names)} drawings belongs to {settings.part}")
    return EmojiImages(drawings, tuple(names[number] for number in chosen), tuple(chosen), settings, preparation)


def is_held_out(concept: str, every: int) -> bool:
    """By a hash, so that it does not change with what else the packages hold."""
    return int(hashlib.sha256(concept.encode()).hexdigest(), 16) % every == 0


def concepts_of(names: Sequence[str], first: str) -> dict[str, str]:
    """`STYLE/NAME` → its concept, without names that are left out. first: the style whose names list the concepts."""
    known = {_plain(name): _concept(name) for style, name in map(_parts, names) if style == first and not _is_left_out(name)}
    return {f"{style}/{name}": known[_plain(name)] for style, name in map(_parts, names) if _plain(name) in known}


def _parts(name: str) -> tuple[str, str]:
    style, _, rest = name.partition("/")
    return style, rest


def _plain(name: str) -> str:
    """Letters and digits alone: some styles write their names without hyphens."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_left_out(name: str) -> bool:
    return not _LEFT_OUT.isdisjoint(name.split("-"))


def _concept(name: str) -> str:
    """The name without who it shows, and without the hour of a clock."""
    if name.endswith(("-oclock", "-thirty")):
        return "clock-face"
    return "-".join(word for word in name.split("-") if word not in _WHO) or "person"


def build(settings: Emoji, cache: Path) -> tuple[tuple[str, ...], RGBA]:
    """Obtain the packages and draw what they hold, once; later it comes from `cache`: names, and drawings (N, side, side, 4), mapped.
    Raises DataError."""
    how = json.dumps([settings.side, *((style.name, style.package.sha256) for style in settings.styles)])
    base = cache / f"emoji-{hashlib.sha256(how.encode()).hexdigest()[:16]}"
    drawings, index = base.with_suffix(".rgba"), base.with_suffix(".json")
    if not index.is_file():
        names: list[str] = []
        with replacing(drawings) as partial, partial.open("wb") as target:
            for style in settings.styles:
                for name, svg in icons(style, cache).items():
                    if not _is_left_out(name):
                        target.write(np.asarray(drawn(svg, settings.side)).tobytes())
                        names.append(f"{style.name}/{name}")
        write_atomically(index, json.dumps(names))
    stored = tuple(json.loads(index.read_text(encoding="utf-8")))
    return stored, np.memmap(drawings, np.uint8, "r").reshape(-1, settings.side, settings.side, 4)
