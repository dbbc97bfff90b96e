"""Drawings with texts: emoji of several artists with names in many languages, clip art with titles and keywords.

An epoch has each emoji once, by a random artist and with random texts, and one in `clip_art_every` drawings of clip art, so that no two
samples of an epoch show the same thing. Every sample has two texts: of emoji an English one and one in another language, of clip art the
title and keywords. Training, validation and test share no series of clip art.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter
from pydantic import Field

from models.arrays import UInt8Array
from models.bundle_files import sha256_of
from starters.data.images import clip_art
from starters.data.images.clip_art import ClipArt, series_of
from starters.data.images.drawing_names import ENGLISH, EmojiEntry, EmojiNames, Texts, Titles, has_sides, read_names, read_titles, slug
from starters.data.images.iconify import Style, build_emoji
from training.data.augment import prepare_image
from training.data.captions import CaptionTokens, WordSettings, open_words
from training.data.source import DataSettings, Sample, SamplePreparation
from training.errors import DataError

_MIN_COARSE_SIDE = 40
"""Minimum side in pixels of drawings that are shown enlarged."""
_EDGE_VALUE = 175
"""Value of 255 below which a pixel is an edge: its colour differs from a neighbour's by more than 80."""
_PARTS = 16
_TEST, _VAL = range(5), range(5, 6)
"""Held-out parts, of the `_PARTS` parts of clip art's series."""


class NamedDrawings(DataSettings):
    kind: Literal["named-drawings"] = "named-drawings"
    styles: list[Style] = Field(min_length=1)
    """Artists of emoji."""
    names: EmojiNames
    clip_art: ClipArt
    without: list[str] = Field(default_factory=list)
    """Prefixes of paths of clip art that is left out."""
    titles: Titles
    clip_art_every: int = Field(default=1, ge=1)
    """An epoch has one in this many drawings of clip art."""
    words: WordSettings
    names_share: float = Field(default=0.8, ge=0, le=1)
    """Share of the texts that are names; the others are one to three keywords."""
    coloured: float = Field(default=0.3, ge=0, le=1)
    """Share of the samples with a coloured instead of a white background."""
    coarse: float = Field(default=0.3, ge=0, le=1)
    """Share of the samples at a lower resolution."""
    outlined: float | None = Field(default=None, ge=0, le=1)
    """Share of the samples with black outlines, half of them with nothing else; None: none."""

    def open(self, preparation: SamplePreparation) -> DrawingsWithNames:
        """Open the drawings to train on. Raises DataError."""
        preparation.require_preprocess()
        drawings = drawings_of(self, preparation.cache)
        art = drawings.clip_art[: -(-len(drawings.clip_art) // self.clip_art_every)]
        names = [drawing.texts[ENGLISH].name for drawing in (*drawings.emoji, *art)]
        return DrawingsWithNames(drawings, open_words(self.words, preparation.words, names), self, preparation)


@dataclass(frozen=True)
class NamedDrawing:
    """One thing, drawn by one or more artists."""

    images: tuple[tuple[int, int], ...]
    """(collection, row) of each artist's drawing."""
    texts: Mapping[str, Texts]
    sided: bool
    """Whether its mirror image has another meaning."""


@dataclass(frozen=True)
class NamedDrawingSet:
    """Drawings that are trained on."""

    collections: tuple[UInt8Array, ...]
    """(N, side, side, 4) each, mapped."""
    emoji: tuple[NamedDrawing, ...]
    clip_art: tuple[NamedDrawing, ...]

    def texts(self) -> list[str]:
        names = [texts for drawing in (*self.emoji, *self.clip_art) for texts in drawing.texts.values()]
        return [text for texts in names for text in (texts.name, *texts.keywords)]


@dataclass(frozen=True)
class DrawingsWithNames:
    drawings: NamedDrawingSet
    captions: CaptionTokens
    """Name of each sample; of clip art that of the first drawing at its index."""
    settings: NamedDrawings
    preparation: SamplePreparation
    unit: str = "pairs"

    @property
    def labels(self) -> tuple[str, ...]:
        """English name or title of each thing."""
        return tuple(thing.texts[ENGLISH].name for thing in (*self.drawings.emoji, *self.drawings.clip_art))

    def __len__(self) -> int:
        return len(self.drawings.emoji) + -(-len(self.drawings.clip_art) // self.settings.clip_art_every)

    def identity(self) -> Mapping[str, Any]:
        emoji, art = self.drawings.emoji, self.drawings.clip_art
        content = repr([(drawing.images, sorted(drawing.texts.items()), drawing.sided) for drawing in (*emoji, *art)])
        return {
            "emoji": len(emoji),
            "clip art": len(art),
            "texts": hashlib.sha256(content.encode()).hexdigest(),
            "vocabulary": sha256_of(self.settings.words.tokenizer),
        }

    def sample(self, index: int, draw: int) -> Sample:
        dice = random.Random(f"drawing {draw}")
        label = self._thing(index, dice)
        drawing = (self.drawings.emoji + self.drawings.clip_art)[label]
        image = render_drawing(self.drawings.collections, dice.choice(drawing.images), dice, self.settings)
        preparation = self.preparation
        if drawing.sided:
            preparation = replace(preparation, augment=preparation.augment.model_copy(update={"flip": False}))
        pixels = prepare_image(image, preparation, draw)
        words = self.captions.tokenise(self._texts(drawing, dice))  # (2, length)
        return {"pixels": pixels, "words": words, "label": torch.tensor(label)}

    def _thing(self, index: int, dice: random.Random) -> int:
        """Draw the number of an emoji or, beyond these, of a drawing of clip art."""
        emoji, art = len(self.drawings.emoji), len(self.drawings.clip_art)
        return index if index < emoji else emoji + dice.choice(range(index - emoji, art, len(self) - emoji))

    def _texts(self, drawing: NamedDrawing, dice: random.Random) -> tuple[str, str]:
        english = drawing.texts[ENGLISH]
        others = [language for language in drawing.texts if language != ENGLISH]
        if not others:
            return draw_text(english, 1.0, dice), draw_text(english, 0.0, dice)
        share = self.settings.names_share
        return draw_text(english, share, dice), draw_text(drawing.texts[dice.choice(others)], share, dice)


def draw_text(texts: Texts, name: float, dice: random.Random) -> str:
    """Draw a text: the name, with this probability or if there are no keywords; else one to three keywords."""
    if not texts.keywords or dice.random() < name:
        return texts.name
    return " ".join(dice.sample(texts.keywords, min(dice.randint(1, 3), len(texts.keywords))))


def render_drawing(collections: Sequence[UInt8Array], place: tuple[int, int], dice: random.Random, settings: NamedDrawings) -> Image.Image:
    """Render a drawing as RGB, on white or a colour, at a random resolution."""
    collection, row = place
    coloured, coarse = dice.random() < settings.coloured, dice.random() < settings.coarse
    background = (dice.randrange(256), dice.randrange(256), dice.randrange(256)) if coloured else (255, 255, 255)
    image = on_background(collections[collection][row], background)
    if settings.outlined is not None and dice.random() < settings.outlined:
        image = draw_outlines(image, filled=dice.random() < 0.5)
    if coarse:
        side = dice.randrange(min(_MIN_COARSE_SIDE, image.width - 1), image.width)
        image = image.resize((side, side), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    return image


def on_background(drawing: UInt8Array, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Composite a drawing (side, side, 4) over a background as RGB."""
    side = drawing.shape[0]
    canvas = Image.new("RGBA", (side, side), (*background, 255))
    canvas.alpha_composite(Image.fromarray(np.array(drawing)))
    return canvas.convert("RGB")


def draw_outlines(image: Image.Image, *, filled: bool) -> Image.Image:
    """Draw black lines, three pixels wide, at the edges of a drawing (RGB): over the drawing, or alone on white."""
    edges = reduce(ImageChops.darker, (band.filter(ImageFilter.CONTOUR) for band in image.split()))  # dark at edges
    lines = edges.point(lambda value: 255 * (value >= _EDGE_VALUE)).filter(ImageFilter.MinFilter(3)).convert("RGB")
    return ImageChops.multiply(image, lines) if filled else lines


def drawings_of(settings: NamedDrawings, cache: Path) -> NamedDrawingSet:
    """Read the drawings that are trained on. Raises DataError."""
    named = read_names(settings.names.package, settings.names.languages, cache)
    rows, drawn = emoji_of(settings.styles, settings.clip_art.side, named, cache)
    art = clip_art_of(settings, "train", cache)
    emojis = tuple(NamedDrawing(tuple((0, row) for row in found), named[key].texts, named[key].sided) for key, found in rows.items())
    titled = tuple(NamedDrawing(((1, row),), {ENGLISH: texts}, has_sides(texts.name)) for row, texts in art.rows)
    if not emojis or not titled:
        raise DataError(f"data: {len(emojis)} emoji and {len(titled)} drawings of clip art have names, and some of each are needed")
    return NamedDrawingSet((drawn, art.drawings), emojis, titled)


def emoji_of(styles: Sequence[Style], side: int, named: Mapping[str, EmojiEntry], cache: Path) -> tuple[dict[str, list[int]], UInt8Array]:
    """Return rows by `slug` of the name, in the order of names, and drawings (N, side, side, 4) by these artists. Raises DataError."""
    names, drawings = build_emoji(styles, side, cache)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        key = slug(name.partition("/")[2])
        if key in named:
            rows.setdefault(key, []).append(row)
    return dict(sorted(rows.items())), drawings


@dataclass(frozen=True)
class TitledArt:
    drawings: UInt8Array
    rows: tuple[tuple[int, Texts], ...]
    """Row and texts of each drawing."""


def clip_art_of(settings: NamedDrawings, part: Literal["train", "val", "test"], cache: Path) -> TitledArt:
    """Read the clip art whose series belongs to a part. Raises DataError."""
    collection = clip_art.build(settings.clip_art, cache)
    chosen = {
        name: row
        for name, row in zip(collection.names, collection.rows, strict=True)
        if not name.startswith(tuple(settings.without)) and part_of(name) == part
    }
    titled = read_titles(settings.titles, chosen, cache)
    return TitledArt(collection.drawings(), tuple((chosen[name], texts) for name, texts in titled.items()))


def part_of(name: str) -> Literal["train", "val", "test"]:
    """Return the part of a file's series: by a hash, so that it does not depend on the package's other files."""
    number = int(hashlib.sha256(series_of(name).encode()).hexdigest(), 16) % _PARTS
    return "test" if number in _TEST else "val" if number in _VAL else "train"
