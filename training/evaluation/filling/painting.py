"""Fill holes of drawings and photographs in every way that is compared, at the network's size, and measure how far from the truth they are.

Crops of one photograph are not independent, and neither are several holes of one picture: errors are over drawings and over photographs.
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

from models.diffmae.model import DiffMAE
from models.spec import Preprocess
from training.data.pictures import to_model_size
from training.errors import RecipeError, TrainingError
from training.evaluation.filling import fillers, holes, photographs, restoring
from training.evaluation.filling.fillers import Diffusion, Exemplars, Filler, MeanColour
from training.evaluation.filling.perceptual import PerceptualDistance
from training.evaluation.filling.restoring import PATCHMATCH, Scores, compared, line
from training.evaluation.settings import Hole, PaintingQuality, Split

NETWORK, NETWORK_EXEMPLAR = "network", "network-exemplar"
HOLES = (Hole.BOXES, Hole.STROKES)
_EACH = {Split.VAL: 3, Split.TEST: 1}
"""Holes of each kind in a picture: few series of drawings, and few photographs, are for choices."""
_BATCH = 32


@dataclass(frozen=True)
class Pictures:
    """Pictures of one kind."""

    pixels: Tensor
    """uint8 (N, S, S, 3)."""
    groups: npt.NDArray[np.int64]
    """(N,), the drawing or the photograph that each shows."""


def evaluate(
    settings: PaintingQuality,
    network: nn.Module,
    preprocess: Preprocess,
    split: Split,
    cache: Path,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """network: rounded as its bundle stores it. Raises TrainingError."""
    report = filled(settings, network, preprocess, split, cache, progress)
    return {**report, "restoring": restoring.evaluate(settings.restoring, network, preprocess, split, cache, progress)}


def filled(
    settings: PaintingQuality, network: nn.Module, preprocess: Preprocess, split: Split, cache: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The report of filled holes. Raises TrainingError."""
    side = preprocess.image_size
    if not isinstance(network, DiffMAE) or network.config.image_size != (side, side):
        raise RecipeError("release.quality: kind painting is for a DiffMAE of images of preprocess.image_size")
    distance, ways = PerceptualDistance(settings.features, cache), _ways(network.eval(), settings)
    report: dict[str, Any] = {
        "split": split.value,
        "steps": settings.restoring.steps,
        "temperature": settings.restoring.temperature,
        "holes": {},
    }
    for kind, asked in pictures(settings, preprocess, split, cache).items():
        found = {hole: _scores(asked.pixels, hole, _EACH[split], ways, distance) for hole in HOLES}
        report["holes"][kind] = {hole.value: compared(scores, asked.groups, NETWORK) for hole, scores in found.items()}
        every = {way.name: np.concatenate([scores[way.name] for scores in found.values()], axis=1) for way in ways}
        report[kind] = compared(every, asked.groups, NETWORK)
        progress(f"{kind}, perceptual distance: {line(report[kind], 1, NETWORK)}")
    report["met"] = all(_meets(report[kind][PATCHMATCH][f"{NETWORK}_minus_this"], settings.target) for kind in report["holes"])
    progress(f"target of {settings.target:g} on drawings and on photographs: {'met' if report['met'] else 'missed'}")
    return report


def pictures(settings: PaintingQuality, preprocess: Preprocess, split: Split, cache: Path) -> dict[str, Pictures]:
    """Drawings and photographs of a split. Raises DataError."""
    chosen = slice(settings.images) if split is Split.TEST else slice(settings.images, None)
    drawn = holes.drawings(settings.drawings, preprocess, cache, chosen).pixels
    asked = settings.photographs
    names = asked.test if split is Split.TEST else asked.validation
    crops = photographs.crops(asked.package, asked.folder, names, asked.crops, cache)
    taken = [to_model_size(Image.fromarray(crop), preprocess) for made in crops.values() for crop in made]
    groups = np.repeat(np.arange(len(crops)), asked.crops)
    return {"drawings": Pictures(drawn, np.arange(len(drawn))), "photographs": Pictures(torch.from_numpy(np.stack(taken)), groups)}


def _ways(model: DiffMAE, settings: PaintingQuality) -> tuple[Filler, ...]:
    network = Diffusion(NETWORK, model, "", settings.restoring.steps, temperature=settings.restoring.temperature)
    simple = [filler for filler in fillers.simple() if not isinstance(filler, MeanColour)]
    return (network, Exemplars(NETWORK_EXEMPLAR, network), Exemplars(PATCHMATCH), *simple)


def _scores(pixels: Tensor, hole: Hole, each: int, ways: Sequence[Filler], distance: PerceptualDistance) -> Scores:
    """Way → distances (N, each)."""
    columns: dict[str, list[npt.NDArray[np.float64]]] = {way.name: [] for way in ways}
    for seed in range(each):
        mask = holes.cut(hole, pixels, seed)
        for way in ways:
            columns[way.name].append(_distances(pixels, mask, way, seed * len(pixels), distance))
    return {name: np.stack(column, axis=1) for name, column in columns.items()}


def _distances(pixels: Tensor, mask: Tensor, way: Filler, first: int, distance: PerceptualDistance) -> npt.NDArray[np.float64]:
    """(N,). Raises TrainingError."""
    parts = []
    for at in range(0, len(pixels), _BATCH):
        truth, hole = pixels[at : at + _BATCH], mask[at : at + _BATCH]
        filled = way.fill(truth, hole, first + at)
        if not torch.equal(filled[~hole], truth[~hole]):
            raise TrainingError(f"{way.name} changed pixels outside of the hole")
        parts.append(distance(filled, truth).double().numpy())
    return np.concatenate(parts)


def _meets(difference: Mapping[str, float], target: float) -> bool:
    value, error = difference["value"], difference["standard_error"]
    return value <= target and value + 2 * error < 0
