"""Flags by several artists: artwork to train on, and images by other artists to evaluate on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import resvg_py
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Generator, Tensor

from models.bundle_schema import Preprocess
from starters.data.images import flag_augmentation
from training.checkpoint import replacing
from training.data.augment import normalise
from training.data.packages import DebianPackage, NpmPackage, obtain
from training.data.source import DataSettings, Sample, SamplePreparation
from training.errors import DataError
from training.recipe_settings import RecipeSettings

_REGIONAL_INDICATOR_A = 0x1F1E6


class Artwork(RecipeSettings):
    """One artist's flags as SVG files named by country code."""

    name: str
    package: NpmPackage
    folder: str
    upper_case: bool = False
    without: list[str] = Field(default_factory=list)
    """Codes for which it has another country's flag."""

    def path(self, root: Path, code: str) -> Path:
        return root / self.folder / f"{code if self.upper_case else code.lower()}.svg"


class EmojiVendor(RecipeSettings):
    """One vendor's emoji as PNG files named by code points."""

    name: str
    package: NpmPackage
    folder: str

    def path(self, root: Path, code: str) -> Path:
        return root / self.folder / ("-".join(f"{ord(letter) - ord('A') + _REGIONAL_INDICATOR_A:x}" for letter in code) + ".png")


class FlagClipArt(RecipeSettings):
    """Images named after countries, from a collection by many artists."""

    name: str
    package: DebianPackage
    folder: str
    pictures: dict[str, str]
    """Image → code."""
    excluded: dict[str, str] = Field(default_factory=dict)
    """Image that is not that country's flag → the reason."""

    def path(self, root: Path, picture: str) -> Path:
        return root / self.folder / f"{picture}.png"


class Flags(DataSettings):
    """Data of the starter `flags`."""

    kind: Literal["flags"] = "flags"
    labels: dict[str, str] = Field(min_length=2)
    """Country code → name of the label, in the order of the classes."""
    left_out: dict[str, str]
    """Country codes without a label → the reason."""
    artworks: list[Artwork] = Field(min_length=1)
    held_out: str
    """Artwork whose every n-th flag is held out for validation."""
    held_out_every: int = Field(ge=2)
    emoji: list[EmojiVendor]
    clip_art: FlagClipArt
    side: int = Field(gt=0)
    """Width and height in pixels at which artwork is stored, whatever its proportions."""
    clean: float = Field(gt=0, lt=1)
    """Share of the images that are hardly distorted."""
    renderings: int = Field(default=16, gt=0)
    """Images of every drawing in an epoch."""

    @property
    def packages(self) -> tuple[NpmPackage | DebianPackage, ...]:
        """All packages, without duplicates."""
        artworks = {artwork.package.name: artwork.package for artwork in self.artworks}
        emoji = {vendor.package.name: vendor.package for vendor in self.emoji}
        return (*(artworks | emoji).values(), self.clip_art.package)

    @model_validator(mode="after")
    def _require_known_codes(self) -> Self:
        if self.held_out not in [artwork.name for artwork in self.artworks]:
            raise ValueError(f"held_out: {self.held_out} is not among the artworks")
        unknown = sorted(set(self.clip_art.pictures.values()) - set(self.labels))
        if unknown:
            raise ValueError(f"clip_art: {', '.join(unknown)}: no label has this code")
        both = sorted(set(self.labels) & set(self.left_out))
        if both:
            raise ValueError(f"left_out: {', '.join(both)}: labels have these codes")
        if len(set(self.labels.values())) != len(self.labels):
            raise ValueError("labels: two have the same name")
        return self

    def open(self, preparation: SamplePreparation) -> RenderedFlags:
        """Open the artwork to train on. Raises DataError."""
        preprocess = preparation.require_preprocess()
        return RenderedFlags(build(self, preparation.cache), self, preprocess)


@dataclass(frozen=True)
class FlagArtwork:
    """Flat artwork with the indices of its labels."""

    artwork: Tensor
    """Artwork, uint8 (N, 4, T, T), RGBA."""
    targets: Tensor
    """(N,)."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Gallery:
    """Image files of one source."""

    name: str
    paths: tuple[Path, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Corpus:
    train: FlagArtwork
    val: FlagArtwork
    """Held-out artwork."""
    galleries: tuple[Gallery, ...]
    """Test images by source."""


def build(data: Flags, cache: Path) -> Corpus:
    """Obtain the packages and render the artwork if `cache` lacks it. Raises DataError."""
    index = {code: number for number, code in enumerate(data.labels)}
    train: list[tuple[Path, int]] = []
    val: list[tuple[Path, int]] = []
    for artwork in data.artworks:
        root = obtain(artwork.package, cache)
        for code, target in index.items():
            if code not in artwork.without:
                held_out = artwork.name == data.held_out and target % data.held_out_every == 0
                (val if held_out else train).append((_existing(artwork.path(root, code)), target))
    clip_art = data.clip_art
    root = obtain(clip_art.package, cache)
    pictures = [(clip_art.path(root, picture), index[code]) for picture, code in clip_art.pictures.items()]
    galleries = (*(_emoji_gallery(emoji, index, cache) for emoji in data.emoji), _gallery(clip_art.name, pictures))
    return Corpus(_render_once(train, data.side, cache), _render_once(val, data.side, cache), galleries)


def cut_out(gallery: Gallery, side: int) -> FlagArtwork:
    """Return a gallery's images as artwork, cropped to the flag."""
    return _drawings([(_trim(path), target) for path, target in zip(gallery.paths, gallery.targets, strict=True)], side)


def _emoji_gallery(emoji: EmojiVendor, index: dict[str, int], cache: Path) -> Gallery:
    root = obtain(emoji.package, cache)
    return _gallery(emoji.name, [(emoji.path(root, code), target) for code, target in index.items()])


def _gallery(name: str, members: Sequence[tuple[Path, int]]) -> Gallery:
    return Gallery(name, tuple(_existing(path) for path, _ in members), tuple(target for _, target in members))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: the package has no such picture")
    return path


def _render_once(members: Sequence[tuple[Path, int]], side: int, cache: Path) -> FlagArtwork:
    content = "\n".join([str(side), *(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()} {target}" for path, target in members)])
    file = cache / f"flags-{hashlib.sha256(content.encode()).hexdigest()[:16]}.pt"
    if not file.is_file():
        drawings = _drawings([(rasterise(path), target) for path, target in members], side)
        with replacing(file) as partial:
            torch.save({"artwork": drawings.artwork, "targets": drawings.targets}, partial)
    stored = torch.load(file, weights_only=True)
    return FlagArtwork(stored["artwork"], stored["targets"])


def _drawings(members: Sequence[tuple[Image.Image, int]], side: int) -> FlagArtwork:
    squares = [np.array(image.resize((side, side), Image.Resampling.BICUBIC)) for image, _ in members]
    targets = torch.tensor([target for _, target in members])
    return FlagArtwork(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous(), targets)


def rasterise(path: Path) -> Image.Image:
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=512, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as image:
        return image.convert("RGBA")


def _trim(path: Path) -> Image.Image:
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    return picture.crop(picture.getchannel("A").point(_visible).getbbox() or (0, 0, *picture.size))


def _visible(alpha: int) -> int:
    return 255 if alpha > 32 else 0


@dataclass(frozen=True)
class RenderedFlags:
    """Artwork under random distortions. An epoch shows every drawing `renderings` times."""

    corpus: Corpus
    settings: Flags
    preprocess: Preprocess
    unit: str = "images"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.settings.labels.values())

    def __len__(self) -> int:
        return len(self.corpus.train) * self.settings.renderings

    def identity(self) -> Mapping[str, Any]:
        drawings = self.corpus.train
        content = hashlib.sha256(drawings.artwork.numpy().tobytes() + drawings.targets.numpy().tobytes())
        return {"drawings": len(drawings), "sha256": content.hexdigest()}

    def sample(self, index: int, draw: int) -> Sample:
        drawing = index % len(self.corpus.train)
        artwork = self.corpus.train.artwork[drawing].unsqueeze(0)
        rendered = flag_augmentation.render(artwork, self.preprocess.image_size, Generator().manual_seed(draw), self.settings.clean)
        return {"pixels": normalise(rendered[0].permute(1, 2, 0).numpy(), self.preprocess), "label": self.corpus.train.targets[drawing]}
