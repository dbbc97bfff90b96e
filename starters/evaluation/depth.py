"""Evaluation of monocular depth on held-out objects, against the inflated silhouette.

Errors are mean absolute errors over the pixels of an object, after the scale and shift with the least squared error (a scale below 0 counts
as 0), in standard deviations of its true depth. A constant depth has about 0.8.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.systems.depth.model import LiteDepth, fill_background
from starters.data.renders.scenes import RenderedScenes, Renders
from starters.evaluation.credits import credit
from starters.evaluation.starter_quality import StarterQuality
from training.data.source import SamplePreparation, UnreadableSample
from training.errors import RecipeError
from training.evaluation import metrics
from training.evaluation.report import Measurement
from training.evaluation.settings import DataSplit
from training.evaluation.trained_classifier import Look, Report, SplitQuality, TrainedNetwork
from training.objectives.depth import align, spread_to_one

RESAMPLES = 2000
"""Number of bootstrap samples of objects, for the error of the ratio."""


class DepthQuality(StarterQuality, SplitQuality):
    """Scale- and shift-invariant error on renders of held-out categories, against the inflated silhouette."""

    kind: Literal["depth"] = "depth"
    views: int = Field(default=4, gt=0)
    """Maximum number of views of each object."""

    def prepare(self, trained: TrainedNetwork) -> Look:
        data = trained.recipe.data
        return lambda split: evaluate(self, trained.network, data, trained.preprocess, split, trained.cache)

    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        return Measurement({"depth": report}, data=credit(trained))


@dataclass(frozen=True)
class ObjectErrors:
    name: str
    category: str
    network: float
    inflated: float


def evaluate(
    settings: DepthQuality, network: nn.Module, data: Any, preprocess: Preprocess, split: DataSplit, cache: Path
) -> dict[str, Any]:
    """Evaluate a split. Raises TrainingError."""
    if not isinstance(data, Renders):
        raise RecipeError("release.quality: kind depth is for data of kind renders")
    if not isinstance(network, LiteDepth):
        raise RecipeError("release.quality: kind depth is for the architecture lite_depth")
    source = data.model_copy(update={"part": split.value}).open(SamplePreparation(preprocess=preprocess, cache=cache))
    scored = list(_evaluate_objects(settings, network, source))
    return {
        "split": split.value,
        "views": settings.views,
        "objects": len(scored),
        "network": metrics.mean(np.array([one.network for one in scored])).to_json(),
        "inflated": metrics.mean(np.array([one.inflated for one in scored])).to_json(),
        "ratio": _ratio(scored),
        "better": sum(one.network < one.inflated for one in scored),
        "by_category": [_category(name, ones) for name, ones in sorted(_group_by_category(scored).items())],
    }


def _evaluate_objects(settings: DepthQuality, network: LiteDepth, source: RenderedScenes) -> Iterator[ObjectErrors]:
    """Yield the mean errors over the views of each object."""
    taken: Counter[str] = Counter()
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for index, name in enumerate(source.objects):
        if taken[name] == settings.views:
            continue
        taken[name] += 1
        try:
            sample = source.sample(index, 0)
        except UnreadableSample:
            continue
        depth, valid = sample["points"][..., 2], sample["valid"]
        predicted = _predict(network, sample["pixels"], valid, valid.shape[0])
        found[name].append((error(predicted, depth, valid), error(inflate(valid), depth, valid)))
    for name, errors in found.items():
        network_error, inflated_error = np.mean(errors, axis=0)
        yield ObjectErrors(name, source.categories[name], float(network_error), float(inflated_error))


@torch.inference_mode()
def _predict(network: LiteDepth, pixels: Tensor, inside: Tensor, side: int) -> Tensor:
    """Predict depth (side, side) of an image (3, S, S) with the object's mask (n, n)."""
    images = pixels[None]
    if network.config.background == "mean":
        share = F.interpolate(inside[None, None].float(), size=images.shape[2:], mode="bilinear", antialias=True, align_corners=False)
        images = fill_background(images, share[0])
    predicted: Tensor = network(images).unsqueeze(1)
    return F.interpolate(predicted, size=(side, side), mode="bilinear", antialias=True, align_corners=False)[0, 0]


def error(predicted: Tensor, depth: Tensor, valid: Tensor) -> float:
    """Return the mean absolute error after the best scale and shift; all (n, n)."""
    predicted, depth, valid = predicted[None].double(), depth[None].double(), valid[None]
    left = (align(predicted, depth, valid) - spread_to_one(depth, valid)).abs() * valid
    return float(left.sum() / valid.sum())


def inflate(mask: Tensor) -> Tensor:
    """Inflate a silhouette (n, n): the farther from its edge, the nearer."""
    inside = torch.from_numpy(distance_transform_edt(np.pad(mask.numpy(), 1))[1:-1, 1:-1].astype(np.float32))
    return -(inside * (2 * inside.max() - inside)).clamp(min=0).sqrt()


def _ratio(scored: list[ObjectErrors]) -> dict[str, float]:
    """Return the ratio of the network's mean error to the silhouette's, with a bootstrap standard error over objects."""
    errors = np.array([(one.network, one.inflated) for one in scored])
    drawn = np.random.default_rng(0).integers(len(errors), size=(RESAMPLES, len(errors)))
    means = errors[drawn].mean(axis=1)
    value = errors[:, 0].mean() / errors[:, 1].mean()
    return {"value": round(float(value), 4), "standard_error": round(float((means[:, 0] / means[:, 1]).std()), 4)}


def _group_by_category(scored: list[ObjectErrors]) -> Mapping[str, list[ObjectErrors]]:
    found: dict[str, list[ObjectErrors]] = defaultdict(list)
    for one in scored:
        found[one.category].append(one)
    return found


def _category(name: str, ones: list[ObjectErrors]) -> dict[str, Any]:
    means = np.mean([(one.network, one.inflated) for one in ones], axis=0).round(4).tolist()
    return {"name": name, "objects": len(ones), "network": means[0], "inflated": means[1]}
