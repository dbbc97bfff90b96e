"""Drawings with what they are called: emoji of several artists by their names in many languages, clip art by titles and keywords.

An epoch shows each emoji once, drawn by one of its artists and called by texts that the sample draws, and one in so many drawings of clip
art, so that no two samples of an epoch are of the same thing. Every sample has two texts: of emoji an English one and one of another
language, of clip art the title and keywords. Clip art is trained on, validated on or tested on a series at a time.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageChops, ImageFilter
from pydantic import Field

from models.bundle_files import sha256_of
from starters.data.images import clip_art, emoji
from starters.data.images.clip_art import ClipArt, series_of
from starters.data.images.clip_art_titles import Titles, read_titles
from starters.data.images.emoji_names import ENGLISH, EmojiNames, Named, Texts, has_sides, read_names, slug
from starters.data.images.iconify import Style
from training.data.augment import prepared
from training.data.captions import Words, WordSettings, open_words
from training.data.source import DataSettings, Preparation, Sample
from training.errors import DataError

_COARSEST = 40
"""Pixels along the side of the smallest drawings that are shown enlarged."""
_FAINTEST = 175
"""Darkest value of 255 that is no edge: a colour that jumps by 80 beside one of its neighbours is one, a shade is none."""
_PARTS = 16
_TEST, _VAL = range(5), range(5, 6)
"""Held-out parts, of `_PARTS` parts of the series of clip art."""

RGBA = npt.NDArray[np.uint8]


class NamedDrawings(DataSettings):
    kind: Literal["named-drawings"] = "named-drawings"
    styles: list[Style] = Field(min_length=1)
    """Artists of emoji."""
    names: EmojiNames
    clip_art: ClipArt
    without: list[str] = Field(default_factory=list)
    """Beginnings of paths of clip art that is left out."""
    titles: Titles
    clip_art_every: int = Field(default=1, ge=1)
    """An epoch shows one in so many drawings of clip art."""
    words: WordSettings
    names_share: float = Field(default=0.8, ge=0, le=1)
    """Share of the texts that are names; the others are one to three keywords."""
    coloured: float = Field(default=0.3, ge=0, le=1)
    """Share of the samples whose background is a colour instead of white."""
    coarse: float = Field(default=0.3, ge=0, le=1)
    """Share of the samples that had fewer pixels once."""
    outlined: float | None = Field(default=None, ge=0, le=1)
    """Share of the samples that are drawn with black outlines, half of them in nothing else; None: none."""

    def open(self, preparation: Preparation) -> DrawingsWithNames:
        """Raises DataError."""
        if preparation.preprocess is None:
            raise DataError("preprocess: the recipe does not say how images are prepared (image_size, mean, std, …)")
        drawings = drawings_of(self, preparation.cache)
        art = drawings.clip_art[: -(-len(drawings.clip_art) // self.clip_art_every)]
        names = [drawing.texts[ENGLISH].name for drawing in (*drawings.emoji, *art)]
        return DrawingsWithNames(drawings, open_words(self.words, preparation.words, names), self, preparation)


@dataclass(frozen=True)
class Drawing:
    """One thing, by everybody who drew it."""

    images: tuple[tuple[int, int], ...]
    """(collection, row) of each artist's."""
    texts: Mapping[str, Texts]
    sided: bool
    """Whether its mirror image means something else."""


@dataclass(frozen=True)
class Drawings:
    """All that are trained on."""

    collections: tuple[RGBA, ...]
    """(N, side, side, 4) each, mapped."""
    emoji: tuple[Drawing, ...]
    clip_art: tuple[Drawing, ...]

    def texts(self) -> list[str]:
        told = [texts for drawing in (*self.emoji, *self.clip_art) for texts in drawing.texts.values()]
        return [text for texts in told for text in (texts.name, *texts.keywords)]


@dataclass(frozen=True)
class DrawingsWithNames:
    drawings: Drawings
    captions: Words
    """The name of each sample; of clip art that of the first drawing of its place."""
    settings: NamedDrawings
    preparation: Preparation
    unit: str = "pairs"

    @property
    def labels(self) -> tuple[str, ...]:
        """The English name or title of each thing."""
        return tuple(thing.texts[ENGLISH].name for thing in (*self.drawings.emoji, *self.drawings.clip_art))

    def __len__(self) -> int:
        return len(self.drawings.emoji) + -(-len(self.drawings.clip_art) // self.settings.clip_art_every)

    def identity(self) -> Mapping[str, Any]:
        emoji, art = self.drawings.emoji, self.drawings.clip_art
        told = repr([(drawing.images, sorted(drawing.texts.items()), drawing.sided) for drawing in (*emoji, *art)])
        return {
            "emoji": len(emoji),
            "clip art": len(art),
            "texts": hashlib.sha256(told.encode()).hexdigest(),
            "vocabulary": sha256_of(self.settings.words.tokenizer),
        }

    def sample(self, index: int, draw: int) -> Sample:
        dice = random.Random(f"drawing {draw}")
        label = self._thing(index, dice)
        drawing = (self.drawings.emoji + self.drawings.clip_art)[label]
        image = seen(self.drawings.collections, dice.choice(drawing.images), dice, self.settings)
        preprocess, augment = self.preparation.preprocess, self.preparation.augment
        assert preprocess is not None
        if drawing.sided:
            augment = augment.model_copy(update={"flip": False})
        pixels = prepared(image, preprocess, augment, draw)
        words = self.captions.tokenise(self._texts(drawing, dice))  # (2, length)
        return {"pixels": pixels, "words": words, "label": torch.tensor(label)}

    def _thing(self, index: int, dice: random.Random) -> int:
        """Number of an emoji or, beyond these, of a drawing of clip art."""
        emoji, art = len(self.drawings.emoji), len(self.drawings.clip_art)
        return index if index < emoji else emoji + dice.choice(range(index - emoji, art, len(self) - emoji))

    def _texts(self, drawing: Drawing, dice: random.Random) -> tuple[str, str]:
        english = drawing.texts[ENGLISH]
        others = [language for language in drawing.texts if language != ENGLISH]
        if others:
            return said(english, self.settings.names_share, dice), said(drawing.texts[dice.choice(others)], self.settings.names_share, dice)
        return said(english, 1.0, dice), said(english, 0.0, dice)


def said(texts: Texts, name: float, dice: random.Random) -> str:
    """The name, with this probability or where there are no keywords; else one to three of these."""
    if not texts.keywords or dice.random() < name:
        return texts.name
    return " ".join(dice.sample(texts.keywords, min(dice.randint(1, 3), len(texts.keywords))))


def seen(collections: Sequence[RGBA], which: tuple[int, int], dice: random.Random, settings: NamedDrawings) -> Image.Image:
    """One drawing as RGB, on white or a colour, fine or coarse."""
    collection, row = which
    coloured, coarse = dice.random() < settings.coloured, dice.random() < settings.coarse
    background = (dice.randrange(256), dice.randrange(256), dice.randrange(256)) if coloured else (255, 255, 255)
    image = on_background(collections[collection][row], background)
    if settings.outlined is not None and dice.random() < settings.outlined:
        image = outlined(image, filled=dice.random() < 0.5)
    if coarse:
        side = dice.randrange(min(_COARSEST, image.width - 1), image.width)
        image = image.resize((side, side), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    return image


def on_background(drawing: RGBA, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """(side, side, 4) → RGB."""
    side = drawing.shape[0]
    canvas = Image.new("RGBA", (side, side), (*background, 255))
    canvas.alpha_composite(Image.fromarray(np.array(drawing)))
    return canvas.convert("RGB")


def outlined(image: Image.Image, *, filled: bool) -> Image.Image:
    """Black lines, three pixels wide, where the colours of a drawing (RGB) change: over the drawing, or alone on white."""
    edges = reduce(ImageChops.darker, (band.filter(ImageFilter.CONTOUR) for band in image.split()))  # dark beside a jump
    lines = edges.point(lambda value: 255 * (value >= _FAINTEST)).filter(ImageFilter.MinFilter(3)).convert("RGB")
    return ImageChops.multiply(image, lines) if filled else lines


def drawings_of(settings: NamedDrawings, cache: Path) -> Drawings:
    """Raises DataError."""
    named = read_names(settings.names.package, settings.names.languages, cache)
    rows, drawn = emoji_of(settings.styles, settings.clip_art.side, named, cache)
    art = clip_art_of(settings, "train", cache)
    emojis = tuple(Drawing(tuple((0, row) for row in found), named[key].texts, named[key].sided) for key, found in rows.items())
    titled = tuple(Drawing(((1, row),), {ENGLISH: texts}, has_sides(texts.name)) for row, texts in art.rows)
    if not emojis or not titled:
        raise DataError(f"data: {len(emojis)} emoji and {len(titled)} drawings of clip art have names, and some of each are needed")
    return Drawings((drawn, art.drawings), emojis, titled)


def emoji_of(styles: Sequence[Style], side: int, named: Mapping[str, Named], cache: Path) -> tuple[dict[str, list[int]], RGBA]:
    """`slug` of a name → rows of the drawings (N, side, side, 4) by these artists, in the order of names. Raises DataError."""
    names, drawings = emoji.build(styles, side, cache)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        key = slug(name.partition("/")[2])
        if key in named:
            rows.setdefault(key, []).append(row)
    return dict(sorted(rows.items())), drawings


@dataclass(frozen=True)
class TitledArt:
    drawings: RGBA
    rows: tuple[tuple[int, Texts], ...]
    """Row, and what is said of it."""


def clip_art_of(settings: NamedDrawings, part: Literal["train", "val", "test"], cache: Path) -> TitledArt:
    """Clip art whose series belongs to a part. Raises DataError."""
    collection = clip_art.build(settings.clip_art, cache)
    chosen = {
        name: row
        for name, row in zip(collection.names, collection.rows, strict=True)
        if not name.startswith(tuple(settings.without)) and part_of(name) == part
    }
    texts = read_titles(settings.titles, chosen, cache)
    return TitledArt(collection.drawings(), tuple((chosen[name], said) for name, said in texts.items()))


def part_of(name: str) -> Literal["train", "val", "test"]:
    """By a hash of the series, so that it does not change with what else the package holds."""
    number = int(hashlib.sha256(series_of(name).encode()).hexdigest(), 16) % _PARTS
    return "test" if number in _TEST else "val" if number in _VAL else "train"
