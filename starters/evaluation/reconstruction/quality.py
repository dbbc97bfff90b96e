"""Evaluation of reconstructed surfaces of held-out objects, compared with the visible points alone and extruded."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from models.bundle_schema import QuerySpace
from models.systems.mcc.model import MCC, MEAN, STD
from starters.data.renders.scenes import RenderedScenes, Renders
from starters.evaluation.credits import credit
from starters.evaluation.reconstruction.shapes import (
    EXTRUDED,
    JOINED,
    SEEN,
    extruded_points,
    front_of,
    occupancies,
    sample_joined_surface,
    views_of,
)
from starters.evaluation.reconstruction.surfaces import Match, Truth
from starters.evaluation.starter_quality import StarterQuality
from training import phase_runner
from training.data.source import Sample
from training.errors import RecipeError
from training.evaluation import metrics
from training.evaluation.report import Measurement, round_weights
from training.evaluation.settings import DataSplit
from training.evaluation.trained_classifier import Look, Report, SplitQuality, TrainedNetwork

NETWORK = "MCC"
METHODS = (NETWORK, JOINED, SEEN, EXTRUDED)
_LOGITS = np.arange(-2.0, 2.01, 0.25)
"""Logits of candidate thresholds."""


class ReconstructionQuality(StarterQuality, SplitQuality):
    """F1 of reconstructed surfaces of held-out objects."""

    kind: Literal["reconstruction"] = "reconstruction"
    primary: list[str] = Field(min_length=1)
    """Categories of the test split that are evaluated."""
    views: int = Field(default=2, gt=0)
    """Maximum number of views of each object."""
    validation_views: int = Field(default=1, gt=0)
    """Maximum number of views of each validation object."""
    distance: float = Field(default=0.1, gt=0)
    """Maximum distance of matching points of two surfaces, in normalised units."""
    spacing: float = Field(default=0.1, gt=0)
    """Spacing of the grid of queries."""
    threshold: float = Field(default=0.1, gt=0, lt=1)
    """Default threshold of occupancy of the service, to which the best one on validation objects is shifted."""
    depths: list[float] = Field(default=[0.25, 0.5, 1.0, 1.5, 2.0, 3.0], min_length=1)
    """Candidate depths of extrusion, in normalised units."""

    def prepare(self, trained: TrainedNetwork) -> Look:
        evaluation = _check(self, trained)
        depth = calibrate(evaluation)
        round_weights(evaluation.network, trained.recipe)
        return lambda split: evaluate(evaluation, depth, split)

    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        return Measurement({"reconstruction": report}, data=credit(trained))


@dataclass(frozen=True)
class ReconstructionEvaluation:
    settings: ReconstructionQuality
    space: QuerySpace
    network: MCC
    trained: TrainedNetwork


def _check(settings: ReconstructionQuality, trained: TrainedNetwork) -> ReconstructionEvaluation:
    """Check network and recipe. Raises RecipeError."""
    network, recipe = trained.network, trained.recipe
    if not isinstance(network, MCC) or network.back is None:
        raise RecipeError("release.quality: kind reconstruction is for a network of architecture mcc with model.config.back")
    if not isinstance(recipe.data, Renders) or not recipe.data.back:
        raise RecipeError("release.quality: kind reconstruction is for data of kind renders with back: true")
    if recipe.space is None or recipe.space.region != "cube":
        raise RecipeError("space: kind reconstruction needs a cube; give its extent")
    if recipe.preprocess is None or (recipe.preprocess.mean, recipe.preprocess.std) != (MEAN, STD):
        raise RecipeError(f"preprocess: mean and std are not {MEAN} and {STD}, with which the network normalises images itself")
    return ReconstructionEvaluation(settings, recipe.space, network, trained)


def held_out(evaluation: ReconstructionEvaluation, split: DataSplit) -> RenderedScenes:
    """Open the objects of a split. Raises TrainingError."""
    recipe = evaluation.trained.recipe
    source = recipe.data.model_copy(update={"part": split.value}).open(phase_runner.preparation(recipe, None, evaluation.trained.cache))
    assert isinstance(source, RenderedScenes)
    if len(source.categories) < 2:
        raise RecipeError(f"data.packages: two objects of part {split.value} at least, since standard errors are over objects")
    missing = sorted(set(evaluation.settings.primary) - set(source.categories.values()))
    if split is DataSplit.TEST and missing:
        raise RecipeError(f"release.quality.primary: the test has no objects of {', '.join(missing)}")
    return source


def calibrate(evaluation: ReconstructionEvaluation) -> float:
    """Choose the threshold and the depth of extrusion on validation objects, and return the depth.

    Shifts the occupancy of the network in place, so that its best threshold becomes the service's. Training samples more queries near the
    surface than a grid has, and so overestimates occupancy."""
    settings, source = evaluation.settings, held_out(evaluation, DataSplit.VAL)
    levels = [1 / (1 + math.exp(-logit)) for logit in _LOGITS]
    by_level, by_depth = [], []
    for index in (index for views in views_of(source, settings.validation_views).values() for index in views):
        sample = source.sample(index, 0)
        truth = Truth(sample["surface"].numpy(), settings.distance)
        by_depth.append([truth.match(extruded_points(sample, depth)).f1 for depth in settings.depths])
        cells = occupancies(evaluation.network, sample, evaluation.space, settings.spacing, min(levels))
        by_level.append([match.f1 for match in truth.matches(*cells, levels)])
    best = float(_LOGITS[int(np.mean(by_level, axis=0).argmax())])
    with torch.no_grad():
        evaluation.network.decoder_pred.bias[0] += math.log(settings.threshold / (1 - settings.threshold)) - best
    return settings.depths[int(np.mean(by_depth, axis=0).argmax())]


def evaluate(evaluation: ReconstructionEvaluation, depth: float, split: DataSplit) -> dict[str, Any]:
    """Evaluate a split: of the test the primary categories. Raises TrainingError."""
    settings, source = evaluation.settings, held_out(evaluation, split)
    f1: dict[str, list[float]] = {method: [] for method in METHODS}
    categories = set()
    for name, views in views_of(source, settings.views).items():
        if split is DataSplit.TEST and source.categories[name] not in settings.primary:
            continue
        categories.add(source.categories[name])
        matches = [_match_view(evaluation, depth, source.sample(index, 0), index) for index in views]
        for method, scores in f1.items():
            scores.append(float(np.mean([found[method].f1 for found in matches])))
        print(f"{name}: {', '.join(f'{method} {scores[-1]:.3f}' for method, scores in f1.items())}", file=sys.stderr, flush=True)
    by_method = {method: np.array(scores) for method, scores in f1.items()}
    return {
        "split": split.value,
        "views": settings.views,
        "distance": settings.distance,
        "spacing": settings.spacing,
        "extrusion_depth": depth,
        "categories": sorted(categories),
        "objects": len(by_method[NETWORK]),
        "reconstruction": [
            {
                "name": method,
                "f1": metrics.mean(scores).to_json(),
                "network_minus_this": metrics.mean(by_method[NETWORK] - scores).to_json(),
            }
            for method, scores in by_method.items()
        ],
    }


def _match_view(evaluation: ReconstructionEvaluation, depth: float, sample: Sample, seed: int) -> Mapping[str, Match]:
    settings, space = evaluation.settings, evaluation.space
    truth = Truth(sample["surface"].numpy(), settings.distance)
    points, probability = occupancies(evaluation.network, sample, space, settings.spacing, settings.threshold)
    surfaces = {
        NETWORK: points[probability > settings.threshold],
        JOINED: sample_joined_surface(front_of(sample), space, settings.spacing, points, probability, settings.threshold, seed),
        SEEN: sample["points"].numpy()[sample["valid"].numpy()],
        EXTRUDED: extruded_points(sample, depth),
    }
    return {method: truth.match(surface) for method, surface in surfaces.items()}
