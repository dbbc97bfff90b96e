"""Reconstruct held-out objects and score their surfaces and hidden colours.

Methods: a network whose queries have geometric features, one without them, parts of the network, and simple methods. Scores are written to
disk view by view, so that a stopped command continues.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from models.bundle_schema import QuerySpace
from models.systems.mcc.back_surface import area_resize
from models.systems.mcc.camera_fit import fit_projection
from models.systems.mcc.model import MCC, MEAN, STD, decode_colours
from starters.data.renders.scenes import RenderedScenes, Renders
from starters.evaluation.reconstruction.settings import ReconstructionSettings
from starters.evaluation.reconstruction.shapes import (
    CARVED,
    EXTRUDED,
    JOINED,
    SEEN,
    extruded_points,
    front_of,
    image_of,
    occupancies,
    sample_joined_surface,
    views_of,
)
from starters.evaluation.reconstruction.surfaces import Match, Truth
from starters.evaluation.score_log import read_log
from training import phase_runner
from training.data.source import Sample
from training.errors import RecipeError
from training.evaluation.report import reports, round_weights
from training.evaluation.settings import DataSplit
from training.fingerprint import sha256_of_weights
from training.phase_runner import RunContext
from training.recipe import Recipe

NETWORK, PLAIN = "MCC", "MCC whose queries know nothing"
BACK, ORACLE = "seen points + told back", "seen points + true back"
NEAREST = "nearest seen point"
WAYS = (NETWORK, JOINED, PLAIN, SEEN, EXTRUDED, CARVED, BACK, ORACLE)
COLOURED = (NETWORK, PLAIN, NEAREST)
_LOGITS = np.arange(-2.0, 2.01, 0.25)
"""Logits of candidate thresholds."""
_REVISION = 1
"""Revision of the scores: rows of other revisions are not read."""


@dataclass(frozen=True)
class ReconstructionEvaluation:
    settings: ReconstructionSettings
    space: QuerySpace
    network: MCC
    plain: MCC
    recipe: Recipe
    context: RunContext


@dataclass(frozen=True)
class Calibration:
    """Values that are chosen on validation objects."""

    depth: float
    """Depth of extrusion."""
    thresholds: Mapping[str, float]
    """Best threshold of each network, before it is shifted to the service's."""


@dataclass(frozen=True)
class ReconstructionScores:
    """Scores of one view."""

    found: Mapping[str, Match]
    colours: Mapping[str, float]
    """Mean absolute errors, in 0..1, of hidden points; empty if there are none."""


def prepare(recipe: Recipe, settings: ReconstructionSettings, network: nn.Module, context: RunContext) -> ReconstructionEvaluation:
    """Prepare the evaluation of a network, rounded as its bundle stores it. Raises TrainingError."""
    if not isinstance(network, MCC) or network.back is None:
        raise RecipeError("release.quality: kind reconstruction is for a network of architecture mcc with model.config.back")
    if not isinstance(recipe.data, Renders) or not recipe.data.back:
        raise RecipeError("release.quality: kind reconstruction is for data of kind renders with back: true")
    if recipe.space is None or recipe.space.region != "cube":
        raise RecipeError("space: kind reconstruction needs a cube; give its extent")
    if recipe.preprocess is None or (recipe.preprocess.mean, recipe.preprocess.std) != (MEAN, STD):
        raise RecipeError(f"preprocess: mean and std are not {MEAN} and {STD}, with which the network normalises images itself")
    plain = round_weights(phase_runner.load_phase_network(recipe, settings.ablation, (), context), recipe)
    if not isinstance(plain, MCC):
        raise RecipeError(f"release.quality.ablation: phase {settings.ablation} trains no mcc")
    return ReconstructionEvaluation(settings, recipe.space, network, plain, recipe, context)


def held_out(evaluation: ReconstructionEvaluation, split: DataSplit) -> RenderedScenes:
    """Open the objects of a split. Raises TrainingError."""
    data = evaluation.recipe.data.model_copy(update={"part": split.value})
    source = data.open(phase_runner.preparation(evaluation.recipe, None, evaluation.context.cache))
    assert isinstance(source, RenderedScenes)
    if len(source.categories) < 2:
        raise RecipeError(f"data.packages: two objects of part {split.value} at least, since standard errors are over objects")
    missing = sorted(set(evaluation.settings.primary) - set(source.categories.values()))
    if split is DataSplit.TEST and missing:
        raise RecipeError(f"release.quality.primary: the test has no objects of {', '.join(missing)}")
    return source


def calibrate(evaluation: ReconstructionEvaluation) -> Calibration:
    """Choose thresholds and the depth of extrusion on validation objects.

    Shifts the occupancy of both networks in place, so that their best thresholds become the service's. Training samples more queries near
    the surface than a grid has, and so overestimates occupancy."""
    settings, source = evaluation.settings, held_out(evaluation, DataSplit.VAL)
    networks = {NETWORK: evaluation.network, PLAIN: evaluation.plain}
    levels = [1 / (1 + math.exp(-logit)) for logit in _LOGITS]
    f1: dict[str, list[list[float]]] = {name: [] for name in networks}
    by_depth = []
    for index in (index for views in views_of(source, settings.validation_views).values() for index in views):
        sample = source.sample(index, 0)
        truth = Truth(sample["surface"].numpy(), settings.distance)
        by_depth.append([truth.match(extruded_points(sample, depth)).f1 for depth in settings.depths])
        for name, network in networks.items():
            cells = occupancies(network, sample, evaluation.space, settings.spacing, min(levels))
            f1[name].append([match.f1 for match in truth.matches(*cells, levels)])
    best = {name: float(_LOGITS[int(np.mean(scores, axis=0).argmax())]) for name, scores in f1.items()}
    target = math.log(settings.threshold / (1 - settings.threshold))
    for name, network in networks.items():
        with torch.no_grad():
            network.decoder_pred.bias[0] += target - best[name]
        round_weights(network, evaluation.recipe)
    depth = settings.depths[int(np.mean(by_depth, axis=0).argmax())]
    return Calibration(depth, {name: 1 / (1 + math.exp(-logit)) for name, logit in best.items()})


def run(evaluation: ReconstructionEvaluation, chosen: Calibration, source: RenderedScenes) -> dict[int, ReconstructionScores]:
    """Score the first views of every object; return scores by index of the view."""
    file = reports(evaluation.context) / f"reconstruction-{_digest(evaluation, chosen, source)}.jsonl"
    done = {
        index: ReconstructionScores({way: Match(*values) for way, values in found.items()}, colours)
        for index, (found, colours) in read_log(file)
    }
    for name, views in views_of(source, evaluation.settings.views).items():
        for index in views:
            if index not in done:
                row = done[index] = _score_view(evaluation, chosen, source.sample(index, 0), index)
                found = {way: [match.precision, match.recall] for way, match in row.found.items()}
                with file.open("a", encoding="utf-8") as log:
                    log.write(json.dumps([index, [found, row.colours]]) + "\n")
                scores = ", ".join(f"{way} {row.found[way].f1:.3f}" for way in (NETWORK, PLAIN, EXTRUDED))
                print(f"{name}: {scores}", file=sys.stderr, flush=True)
    return done


def _digest(evaluation: ReconstructionEvaluation, chosen: Calibration, source: RenderedScenes) -> str:
    weights = [sha256_of_weights(network.state_dict()) for network in (evaluation.network, evaluation.plain)]
    content = [_REVISION, evaluation.settings.model_dump(mode="json"), evaluation.space.model_dump(mode="json"), chosen.depth, weights]
    return hashlib.sha256(json.dumps([*content, dict(source.identity())]).encode()).hexdigest()[:16]


def _score_view(evaluation: ReconstructionEvaluation, chosen: Calibration, sample: Sample, seed: int) -> ReconstructionScores:
    settings, space = evaluation.settings, evaluation.space
    truth, front = Truth(sample["surface"].numpy(), settings.distance), front_of(sample)
    valid, solid = sample["valid"].numpy(), extruded_points(sample, chosen.depth)
    seen = sample["points"].numpy()[valid]
    predicted, back = (back.numpy()[valid] for back in (predict_back(evaluation.network, sample), sample["back"]))
    cells = {
        name: occupancies(network, sample, space, settings.spacing, settings.threshold)
        for name, network in ((NETWORK, evaluation.network), (PLAIN, evaluation.plain))
    }
    points, probability = cells[NETWORK]
    ways = {
        SEEN: seen,
        EXTRUDED: solid,
        CARVED: solid[front.is_consistent(solid, settings.spacing)],  # the seen points are part of it
        BACK: np.concatenate([seen, predicted]),
        ORACLE: np.concatenate([seen, back]),
        JOINED: sample_joined_surface(front, space, settings.spacing, points, probability, settings.threshold, seed),
        **{name: grid[above > settings.threshold] for name, (grid, above) in cells.items()},
    }
    return ReconstructionScores({way: truth.match(found) for way, found in ways.items()}, _colours(evaluation, sample))


@torch.inference_mode()
def predict_back(network: MCC, sample: Sample) -> Tensor:
    """Predict the point behind each visible point by the network's U-Net: (n, n, 3)."""
    assert network.back is not None
    points, valid = sample["points"][None], sample["valid"][None]
    return fit_projection(points, valid).move_along_rays(points, network.back(image_of(sample)[None], points, valid).thickness)[0]


@torch.inference_mode()
def _colours(evaluation: ReconstructionEvaluation, sample: Sample) -> dict[str, float]:
    """Return the errors of colours at hidden points of the true surface, whatever shape a network predicts."""
    valid, image = sample["valid"], image_of(sample)
    seen = sample["points"][valid]
    distance, nearest = cKDTree(seen.numpy()).query(sample["surface"].numpy())
    hidden = np.flatnonzero(distance >= evaluation.settings.distance)[: evaluation.settings.colours]  # in random order
    if not len(hidden):
        return {}
    queries, expected = sample["surface"][hidden][None], sample["colours"][hidden]
    visible_colours = area_resize(image[None], valid.shape[0])[0].permute(1, 2, 0)[valid]  # (P, 3)
    predicted = {NEAREST: visible_colours[nearest[hidden]]}
    points = sample["points"].masked_fill(~valid.unsqueeze(-1), torch.inf)[None]
    for name, network in ((NETWORK, evaluation.network), (PLAIN, evaluation.plain)):
        outputs = network.decode_queries(network.cache_scene(network.encode(image[None], points)), queries)
        predicted[name] = decode_colours(network.predict_outputs(outputs))[0].clamp(0, 1)
    return {name: float((colours - expected).abs().mean()) for name, colours in predicted.items()}
