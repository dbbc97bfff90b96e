"""Restore hidden halves of flags and emoji in every way that is compared, and score them: flags by what a classifier calls them, emoji by
their distance to the truth.

The pictures of one label, or of one concept, are not independent: errors are over labels and concepts, of their means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from models import bundle, loading
from models.bundle import BundleError
from models.diffmae.model import DiffMAE
from models.merge_schedule import MergeSchedule
from models.spec import Preprocess
from models.vit.model import ViT
from training.data import pictures
from training.data.base import Augment, Preparation
from training.errors import RecipeError, TrainingError
from training.evaluation import metrics
from training.evaluation.filling import halves
from training.evaluation.filling.fillers import Diffusion, Exemplars
from training.evaluation.filling.halves import Half, Squares
from training.evaluation.filling.perceptual import PerceptualDistance
from training.evaluation.metrics import Measured
from training.evaluation.settings import RestoringQuality, Split
from training.starters.images import emoji, flags, iconify

RESTORED = "restored"
PATCHMATCH = "PatchMatch"
ON_WHITE = "visible half on white"
ON_MEAN = "visible half on its mean colour"
CUT_OUT = "visible half cut out"
MIRRORED = "mirror image"
INTACT = "nothing hidden"
_BATCH = 32
_EMOJI = 200
"""Held-out drawings at most."""

Scores = Mapping[str, npt.NDArray[np.float64]]
"""Way → scores of each picture (N, 4), without each of its halves."""


@dataclass(frozen=True)
class Restorer:
    model: DiffMAE
    steps: int
    temperature: float

    def fill(self, pixels: Tensor, half: Half, first: int) -> Tensor:
        """uint8 (N, S, S, 3); first: number of the first picture, by which it draws."""
        mask = halves.hidden(half, pixels.shape[1]).expand(len(pixels), -1, -1)
        way = Diffusion(RESTORED, self.model, "", self.steps, temperature=self.temperature)
        return torch.cat([way.fill(pixels[at : at + _BATCH], mask[at : at + _BATCH], first + at) for at in range(0, len(pixels), _BATCH)])


@dataclass(frozen=True)
class Classifier:
    model: ViT
    preprocess: Preprocess

    @staticmethod
    def of(path: Path, labels: Sequence[str]) -> Classifier:
        """Raises TrainingError."""
        try:
            found = bundle.read(path)
            network = loading.load(found).model
        except BundleError as error:
            raise TrainingError(str(error)) from error
        if not isinstance(network, ViT) or found.spec.preprocess is None or list(labels) != list(found.spec.labels):
            raise RecipeError(f"release.quality.classifier: {path} is no classifier of these flags")
        return Classifier(network, found.spec.preprocess)

    def right(self, images: Sequence[Image.Image], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """1 where the most likely label, merging off, is the picture's; else 0."""
        pixels = np.stack([pictures.to_model_size(image, self.preprocess) for image in images])
        best = metrics.logits(self.model, pixels, self.preprocess, MergeSchedule.off()).argmax(axis=1)
        return np.asarray((best == labels).astype(np.float64))


def evaluate(
    settings: RestoringQuality,
    network: nn.Module,
    preprocess: Preprocess,
    split: Split,
    cache: Path,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """network: rounded as its bundle stores it. Raises TrainingError."""
    side = preprocess.image_size
    if not isinstance(network, DiffMAE) or network.config.image_size != (side, side):
        raise RecipeError("release.quality: kind restoring is for a DiffMAE of images of preprocess.image_size")
    restorer = Restorer(network.eval(), settings.steps, settings.temperature)
    classifier = Classifier.of(settings.classifier, list(settings.flags.labels.values()))
    found: list[Scores] = []
    groups: list[npt.NDArray[np.int64]] = []
    sources = {}
    for name, (images, labels) in flag_pictures(settings, split, cache).items():
        found.append(flag_scores(restorer, classifier, halves.squares(images, side), labels))
        groups.append(labels)
        sources[name] = compared(found[-1], labels)
        progress(f"{name}: {line(sources[name], 100)}")
    scores = {way: np.concatenate([part[way] for part in found]) for way in found[0]}
    flagged = compared(scores, np.concatenate(groups))
    progress(f"flags of all sources: {line(flagged, 100)}")
    report: dict[str, Any] = {
        "split": split.value,
        "steps": settings.steps,
        "temperature": settings.temperature,
        "flags": flagged,
        "sources": sources,
        "hidden": {half.value: round(float(scores[RESTORED][:, number].mean()), 4) for number, half in enumerate(Half)},
    }
    if split is Split.TEST:
        report["emoji"] = compared(*emoji_scores(restorer, settings, preprocess, cache))
        progress(f"emoji, perceptual distance: {line(report['emoji'], 1)}")
    return report


def flag_pictures(settings: RestoringQuality, split: Split, cache: Path) -> dict[str, tuple[list[Image.Image], npt.NDArray[np.int64]]]:
    """Source → its flags on white, and their labels. Raises DataError."""
    if split is Split.VAL:
        drawn = iconify.flags(settings.validation, settings.flags.labels, cache)
        index = {code: number for number, code in enumerate(settings.flags.labels)}
        return {settings.validation.name: (list(drawn.values()), np.array([index[code] for code in drawn]))}
    galleries = flags.build(settings.flags, cache).galleries
    return {gallery.name: ([pictures.open_on_white(path) for path in gallery.paths], np.array(gallery.targets)) for gallery in galleries}


def flag_scores(restorer: Restorer, classifier: Classifier, found: Squares, labels: npt.NDArray[np.int64]) -> Scores:
    """Whether each is named correctly without each of its halves; what is intact, without any."""
    columns = []
    for number, half in enumerate(Half):
        images = {way: found.cut(pixels) for way, pixels in _filled(restorer, found.pixels, half, number * len(labels)).items()}
        images[CUT_OUT] = halves.visible(found, half)
        columns.append({way: classifier.right(filled, labels) for way, filled in images.items()})
    scores = {way: np.stack([column[way] for column in columns], axis=1) for way in columns[0]}
    return {**scores, INTACT: classifier.right(found.cut(found.pixels), labels)[:, None]}


def emoji_scores(
    restorer: Restorer, settings: RestoringQuality, preprocess: Preprocess, cache: Path
) -> tuple[Scores, npt.NDArray[np.int64]]:
    """Perceptual distance of each from the truth, without each of its halves, and the number of its concept. Raises DataError."""
    source = emoji.open_emoji(settings.emoji, Preparation(preprocess, augment=Augment(crop_scale=None), cache=cache))
    step = max(1, len(source) // _EMOJI)
    chosen = range(0, len(source), step)
    concepts = emoji.concepts_of(source.names, settings.emoji.styles[0].name)
    numbers = {concept: number for number, concept in enumerate(sorted(set(concepts.values())))}
    found = halves.squares([source.image(index) for index in chosen], preprocess.image_size)
    distance = PerceptualDistance(settings.features, cache)
    columns = []
    for number, half in enumerate(Half):
        filled = _filled(restorer, found.pixels, half, number * len(chosen))
        columns.append({way: _distances(distance, pixels, found.pixels) for way, pixels in filled.items()})
    groups = np.array([numbers[concepts[source.names[index]]] for index in chosen])
    return {way: np.stack([column[way] for column in columns], axis=1) for way in columns[0]}, groups


def compared(scores: Scores, groups: npt.NDArray[np.int64], reference: str = RESTORED) -> dict[str, Any]:
    """Each way's mean, and how much more than it the reference has; errors are over groups, numbers (N,)."""
    known = np.unique(groups)

    def mean(values: npt.NDArray[np.float64]) -> Measured:
        return metrics.mean(np.array([values[groups == group].mean() for group in known]))

    return {
        way: {"value": mean(values).to_json()}
        | (
            {}
            if way in (reference, INTACT)
            else {f"{reference}_minus_this": mean(scores[reference].mean(axis=1) - values.mean(axis=1)).to_json()}
        )
        for way, values in scores.items()
    }


def _filled(restorer: Restorer, pixels: Tensor, half: Half, first: int) -> dict[str, Tensor]:
    hole = halves.hidden(half, pixels.shape[1]).expand(len(pixels), -1, -1)
    return {
        RESTORED: restorer.fill(pixels, half, first),
        PATCHMATCH: Exemplars(PATCHMATCH).fill(pixels, hole, first),
        ON_WHITE: halves.blank(pixels, half),
        ON_MEAN: halves.blank(pixels, half, mean=True),
        MIRRORED: halves.mirrored(pixels, half),
    }


def _distances(distance: PerceptualDistance, pixels: Tensor, truth: Tensor) -> npt.NDArray[np.float64]:
    parts = zip(torch.split(pixels, _BATCH), torch.split(truth, _BATCH), strict=True)
    return np.concatenate([distance(part, true).double().numpy() for part, true in parts])


def line(report: Mapping[str, Any], unit: float, reference: str = RESTORED) -> str:
    """± is two standard errors."""
    parts = []
    for way, row in report.items():
        measured, digits = row["value"], 1 if unit > 1 else 4
        parts.append(f"{way} {unit * measured['value']:.{digits}f} ± {2 * unit * measured['standard_error']:.{digits}f}")
        if gain := row.get(f"{reference}_minus_this"):
            parts[-1] += f" ({unit * gain['value']:+.{digits}f} ± {2 * unit * gain['standard_error']:.{digits}f})"
    return "; ".join(parts)
