"""Reconstruct held-out objects by a network whose queries know both sides, by one whose queries do not, by what its parts tell alone and in
simple ways; score surfaces and the colours that nobody saw. What was scored stays on disk: a command that was stopped goes on there.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    joined,
    occupancies,
    views_of,
)
from starters.evaluation.reconstruction.surfaces import Match, Truth
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
"""Logits of the thresholds to choose from."""
_REVISION = 1
"""Revision of what is scored: rows of another one are not read."""


@dataclass(frozen=True)
class Contest:
    settings: ReconstructionSettings
    space: QuerySpace
    network: MCC
    plain: MCC
    recipe: Recipe
    context: RunContext


@dataclass(frozen=True)
class Chosen:
    """On objects for choices."""

    depth: float
    """Depth of extrusion."""
    thresholds: Mapping[str, float]
    """The best one of each network, before it was moved to that of the service."""


@dataclass(frozen=True)
class Row:
    """One view."""

    found: Mapping[str, Match]
    colours: Mapping[str, float]
    """Mean absolute errors, in 0..1, of points that nobody saw; empty where there are none."""


def prepare(recipe: Recipe, settings: ReconstructionSettings, network: nn.Module, shop: RunContext) -> Contest:
    """network: rounded as its bundle stores it. Raises TrainingError."""
    if not isinstance(network, MCC) or network.back is None:
        raise RecipeError("release.quality: kind reconstruction is for a network of architecture mcc with model.config.back")
    if not isinstance(recipe.data, Renders) or not recipe.data.back:
        raise RecipeError("release.quality: kind reconstruction is for data of kind renders with back: true")
    if recipe.space is None or recipe.space.region != "cube":
        raise RecipeError("space: kind reconstruction asks a cube; give its extent")
    if recipe.preprocess is None or (recipe.preprocess.mean, recipe.preprocess.std) != (MEAN, STD):
        raise RecipeError(f"preprocess: mean and std are not {MEAN} and {STD}, with which the network normalises images itself")
    plain = round_weights(phase_runner.load_phase_network(recipe, settings.ablation, (), shop), recipe)
    if not isinstance(plain, MCC):
        raise RecipeError(f"release.quality.ablation: phase {settings.ablation} trains no mcc")
    return Contest(settings, recipe.space, network, plain, recipe, shop)


def held_out(contest: Contest, split: DataSplit) -> RenderedScenes:
    """Raises TrainingError."""
    data = contest.recipe.data.model_copy(update={"part": split.value})
    source = data.open(phase_runner.preparation(contest.recipe, None, contest.context.cache))
    assert isinstance(source, RenderedScenes)
    if len(source.categories) < 2:
        raise RecipeError(f"data.packages: two objects of part {split.value} at least, since standard errors are over objects")
    missing = sorted(set(contest.settings.primary) - set(source.categories.values()))
    if split is DataSplit.TEST and missing:
        raise RecipeError(f"release.quality.primary: the test has no objects of {', '.join(missing)}")
    return source


def calibrate(contest: Contest) -> Chosen:
    """Choose on validation objects. Shifts the occupancy of both networks in place, so that the service's threshold is where the best one
    was: training asks near the surface more often than a grid does, and so overstates how much is occupied."""
    settings, source = contest.settings, held_out(contest, DataSplit.VAL)
    networks = {NETWORK: contest.network, PLAIN: contest.plain}
    levels = [1 / (1 + math.exp(-logit)) for logit in _LOGITS]
    f1: dict[str, list[list[float]]] = {name: [] for name in networks}
    by_depth = []
    for index in (index for views in views_of(source, settings.validation_views).values() for index in views):
        sample = source.sample(index, 0)
        truth = Truth(sample["surface"].numpy(), settings.distance)
        by_depth.append([truth.match(extruded_points(sample, depth)).f1 for depth in settings.depths])
        for name, network in networks.items():
            asked = occupancies(network, sample, contest.space, settings.spacing, min(levels))
            f1[name].append([match.f1 for match in truth.matches(*asked, levels)])
    best = {name: float(_LOGITS[int(np.mean(scores, axis=0).argmax())]) for name, scores in f1.items()}
    wanted = math.log(settings.threshold / (1 - settings.threshold))
    for name, network in networks.items():
        with torch.no_grad():
            network.decoder_pred.bias[0] += wanted - best[name]
        round_weights(network, contest.recipe)
    depth = settings.depths[int(np.mean(by_depth, axis=0).argmax())]
    return Chosen(depth, {name: 1 / (1 + math.exp(-logit)) for name, logit in best.items()})


def run(contest: Contest, chosen: Chosen, source: RenderedScenes) -> dict[int, Row]:
    """Index of a view → what was found of it, for some views of every object."""
    file = reports(contest.context) / f"reconstruction-{_digest(contest, chosen, source)}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {
        index: Row({way: Match(*values) for way, values in found.items()}, colours) for index, (found, colours) in _rows_of(file).items()
    }
    for name, views in views_of(source, contest.settings.views).items():
        for index in views:
            if index not in done:
                row = done[index] = _scored(contest, chosen, source.sample(index, 0), index)
                found = {way: [match.precision, match.recall] for way, match in row.found.items()}
                with file.open("a", encoding="utf-8") as log:
                    log.write(json.dumps([index, [found, row.colours]]) + "\n")
                scores = ", ".join(f"{way} {row.found[way].f1:.3f}" for way in (NETWORK, PLAIN, EXTRUDED))
                print(f"{name}: {scores}", file=sys.stderr, flush=True)
    return done


def _rows_of(file: Path) -> dict[int, Any]:
    """Index of a view → what was written of it; a torn last line is taken off the file."""
    rows: dict[int, Any] = {}
    whole: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            index, row = json.loads(line)
        except ValueError:
            break
        rows[index] = row
        whole.append(line + "\n")
    file.write_text("".join(whole), encoding="utf-8")
    return rows


def _digest(contest: Contest, chosen: Chosen, source: RenderedScenes) -> str:
    weights = [sha256_of_weights(network.state_dict()) for network in (contest.network, contest.plain)]
    content = [_REVISION, contest.settings.model_dump(mode="json"), contest.space.model_dump(mode="json"), chosen.depth, weights]
    return hashlib.sha256(json.dumps([*content, dict(source.identity())]).encode()).hexdigest()[:16]


def _scored(contest: Contest, chosen: Chosen, sample: Sample, seed: int) -> Row:
    settings, space = contest.settings, contest.space
    truth, front = Truth(sample["surface"].numpy(), settings.distance), front_of(sample)
    valid, solid = sample["valid"].numpy(), extruded_points(sample, chosen.depth)
    seen = sample["points"].numpy()[valid]
    told, true = (back.numpy()[valid] for back in (told_back(contest.network, sample), sample["back"]))
    asked = {
        name: occupancies(network, sample, space, settings.spacing, settings.threshold)
        for name, network in ((NETWORK, contest.network), (PLAIN, contest.plain))
    }
    points, probability = asked[NETWORK]
    ways = {
        SEEN: seen,
        EXTRUDED: solid,
        CARVED: solid[front.is_consistent(solid, settings.spacing)],  # the seen points are part of it
        BACK: np.concatenate([seen, told]),
        ORACLE: np.concatenate([seen, true]),
        JOINED: joined(front, space, settings.spacing, points, probability, settings.threshold, seed),
        **{name: grid[above > settings.threshold] for name, (grid, above) in asked.items()},
    }
    return Row({way: truth.match(found) for way, found in ways.items()}, _colours(contest, sample))


@torch.inference_mode()
def told_back(network: MCC, sample: Sample) -> Tensor:
    """(n, n, 3), what the network's U-Net tells to lie behind each seen point."""
    assert network.back is not None
    points, valid = sample["points"][None], sample["valid"][None]
    return fit_projection(points, valid).move_along_rays(points, network.back(image_of(sample)[None], points, valid).thickness)[0]


@torch.inference_mode()
def _colours(contest: Contest, sample: Sample) -> dict[str, float]:
    """Errors of colours of the true surface where nobody saw it, which is asked whatever a network says of its shape."""
    valid, image = sample["valid"], image_of(sample)
    seen = sample["points"][valid]
    distance, nearest = cKDTree(seen.numpy()).query(sample["surface"].numpy())
    hidden = np.flatnonzero(distance >= contest.settings.distance)[: contest.settings.colours]  # they are in random order
    if not len(hidden):
        return {}
    queries, true = sample["surface"][hidden][None], sample["colours"][hidden]
    shown = area_resize(image[None], valid.shape[0])[0].permute(1, 2, 0)[valid]  # (P, 3)
    told = {NEAREST: shown[nearest[hidden]]}
    points = sample["points"].masked_fill(~valid.unsqueeze(-1), torch.inf)[None]
    for name, network in ((NETWORK, contest.network), (PLAIN, contest.plain)):
        asked = network.decode_queries(network.cache_scene(network.encode(image[None], points)), queries)
        told[name] = decode_colours(network.predict_outputs(asked))[0].clamp(0, 1)
    return {name: float((colours - true).abs().mean()) for name, colours in told.items()}
