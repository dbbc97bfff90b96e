"""Reconstruct held-out objects, by the network and in simple ways, and score them; what was scored stays on disk.

A row is written as soon as a view is done. A command that was stopped goes on at that row; another network, other views or other settings
begin new files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_fill_holes
from torch import nn

from models.mcc.flood import Answers, Flood, Limits
from models.mcc.front import Front, fitted_camera
from models.mcc.guessing import guess
from models.mcc.lattice import MOST_CELLS, Lattice
from models.mcc.model import MCC, MEAN, STD
from models.spec import Space
from training import phases
from training.data.base import Sample
from training.data.registry import open_source
from training.errors import RecipeError, TrainingError
from training.evaluation.measurement import reports
from training.evaluation.reconstruction.surfaces import Match, Points, Truth, extruded, sampled
from training.evaluation.settings import ReconstructionQuality
from training.fingerprint import sha256_of_weights
from training.phases import Workshop
from training.recipe import Recipe
from training.starters.renders.scenes import RenderedScenes

SEEN, EXTRUDED = "seen points", "seen points, extruded"
CARVED = "carved + seen"
JOINED = "joined with the seen points"
_REVISION = 2
"""Revision of what is scored: rows of another one are not read."""
_CHUNK = 4000
_WALL_STEP = 0.05
_DENSITY = 400.0
"""Points a unit of area: one in a square of half the distance that is near."""

Found = Mapping[str, Match]
"""Way of reconstruction → how well it met the truth of one view."""


@dataclass(frozen=True)
class Contest:
    settings: ReconstructionQuality
    space: Space
    model: MCC
    objects: RenderedScenes
    """Held out."""
    validation: RenderedScenes
    folder: Path


def name_of(threshold: float) -> str:
    return f"MCC, threshold {threshold:g}"


def prepare(recipe: Recipe, network: nn.Module, shop: Workshop) -> Contest:
    """network: of `release.phase`, rounded as its bundle stores it. Raises TrainingError."""
    settings = recipe.release.quality if recipe.release else None
    if not isinstance(settings, ReconstructionQuality) or not isinstance(network, MCC):
        raise RecipeError("release.quality: kind reconstruction is for a network of architecture mcc")
    if recipe.space is None or recipe.space.region != "cube":
        raise RecipeError("space: kind reconstruction asks a cube; give its extent")
    preprocess = recipe.preprocess
    if preprocess is None or (preprocess.mean, preprocess.std) != (MEAN, STD):
        raise RecipeError(f"preprocess: mean and std are not {MEAN} and {STD}, with which the network normalises images itself")
    objects, validation = (_part(recipe, settings, part, shop) for part in ("test", "val"))
    if len(objects.categories) < 2:
        raise RecipeError("release.quality.data: two held-out objects at least, since standard errors are over objects")
    return Contest(settings, recipe.space, network.eval(), objects, validation, reports(shop))


def _part(recipe: Recipe, settings: ReconstructionQuality, part: str, shop: Workshop) -> RenderedScenes:
    source = open_source(settings.data.model_copy(update={"part": part}), phases.preparation(recipe, None, shop.cache))
    assert isinstance(source, RenderedScenes)
    return source


def views_of(source: RenderedScenes, count: int) -> dict[str, list[int]]:
    """Object → indices of its first views."""
    views: dict[str, list[int]] = {}
    for index, name in enumerate(source.objects):
        if len(views.setdefault(name, [])) < count:
            views[name].append(index)
    return views


@torch.inference_mode()
def occupancies(
    model: MCC, sample: Sample, space: Space, spacing: float, threshold: float | None = None
) -> tuple[Points, npt.NDArray[np.float32]]:
    """Points that were asked (Q, 3), and the probability that each is occupied, (Q,).

    threshold: None to ask a dense grid; otherwise what the service asks in mode `adaptive` to find what is above it.
    """
    seen = sample["points"].masked_fill(~sample["valid"].unsqueeze(-1), torch.inf)
    scene = model.remember(model.encode(image_of(sample)[None], seen[None]))
    lattice = Lattice(space, spacing)
    flood = Flood.start(lattice, Limits(threshold or 0.0, dense=threshold is None, most=MOST_CELLS), seen)
    while not flood.ended:
        cells = flood.next_cells(_CHUNK)
        points = torch.from_numpy(lattice.points(cells.numpy()))
        occupancy = model.predict_occupancy(model.ask(scene, points[None]))[0].sigmoid()
        flood = flood.answered(Answers(cells, occupancy, torch.zeros(len(cells), 3, dtype=torch.uint8)))
    return lattice.points(flood.known.cells.numpy()), flood.known.occupancy.numpy()


def front_of(sample: Sample) -> Front:
    """Front of a sample, as the service takes it where no mask is sent: what is enclosed by seen points belongs to the object."""
    from_camera = (sample["points"] - sample["camera"]).numpy()
    valid = sample["valid"].numpy()
    camera = fitted_camera(from_camera, valid)
    if camera is None:
        raise TrainingError("release.quality.data: no camera sees the points of a view in their pixels")
    height, width = valid.shape
    mask = binary_fill_holes(valid)
    frame = np.array([0, 0, width, height], np.float32)
    depth = np.where(valid, from_camera[..., 2], np.nan).astype(np.float32)
    return Front(depth, mask, camera, frame, -sample["camera"].numpy())


def joined(
    front: Front, space: Space, spacing: float, points: Points, probability: npt.NDArray[np.float32], threshold: float, seed: int
) -> Points:
    """The surface that the service answers, the part that was seen and the guess, sampled evenly. points (Q, 3): what was asked."""
    lattice = Lattice(space, spacing)
    places = np.rint((points - np.array(lattice.origin, np.float32)) / lattice.pitch).astype(np.int64)
    cells = np.ravel_multi_index(tuple(places.T), lattice.shape)
    guessed = guess(lattice, cells, probability, np.zeros((len(cells), 3), np.uint8), threshold, front)
    seen, dice = front.mesh(lattice.pitch), np.random.default_rng(seed)
    parts = [sampled(mesh.vertices, mesh.faces, _DENSITY, dice) for mesh in (seen, guessed)]
    return np.concatenate(parts)


def image_of(sample: Sample) -> torch.Tensor:
    """(3, S, S) in 0..1, as the network takes it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return sample["pixels"] * std + mean


def calibrate(contest: Contest, progress: Callable[[str], None] = print) -> tuple[float, float]:
    """Choose on validation objects: the threshold of the best F1, and the depth of extrusion of the best F1.

    Shifts the network's occupancy in place, so that the primary threshold is where the best one was: training asks near the surface more
    often than a grid does, and so overstates how much is occupied.
    """
    settings = contest.settings
    logits = np.arange(-4.0, 4.01, 0.25)
    f1, by_depth = [], []
    for index in (index for views in views_of(contest.validation, settings.views).values() for index in views):
        sample = contest.validation.sample(index, 0)
        truth = Truth(sample["surface"].numpy(), settings.distance)
        by_depth.append([truth.match(extruded_points(sample, depth)).f1 for depth in settings.depths])
        grid, probability = occupancies(contest.model, sample, contest.space, settings.validation_spacing)
        f1.append([match.f1 for match in truth.matches(grid, probability, [1 / (1 + math.exp(-logit)) for logit in logits])])
    best = float(logits[int(np.mean(f1, axis=0).argmax())])
    depth = settings.depths[int(np.mean(by_depth, axis=0).argmax())]
    primary = settings.thresholds[0]
    with torch.no_grad():
        contest.model.decoder_pred.bias[0] += math.log(primary / (1 - primary)) - best
    contest.model.half().float()
    threshold = 1 / (1 + math.exp(-best))
    progress(f"validation: threshold {threshold:.3f} becomes {primary:g} (F1 {np.mean(f1, axis=0).max():.3f}); extrusion by {depth:g}")
    return threshold, depth


def extruded_points(sample: Sample, depth: float) -> Points:
    """The seen points and what lies behind them up to a depth, hollow."""
    return extruded(sample["points"].numpy(), sample["valid"].numpy(), sample["camera"].numpy(), depth, _WALL_STEP)


def run(contest: Contest, depth: float, progress: Callable[[str], None] = print) -> dict[int, Found]:
    """Index of a view → what was found of it, for some views of every held-out object."""
    file = contest.folder / f"reconstruction-{_digest(contest, depth)}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done: dict[int, Found] = {index: {way: Match(*values) for way, values in row.items()} for index, row in rows_of(file).items()}
    for name, views in views_of(contest.objects, contest.settings.views).items():
        for index in views:
            if index not in done:
                done[index] = _scored(contest, index, depth)
                row = {way: [match.precision, match.recall] for way, match in done[index].items()}
                with file.open("a", encoding="utf-8") as log:
                    log.write(json.dumps([index, row]) + "\n")
            progress(f"{name}: " + ", ".join(f"{way} {match.f1:.3f}" for way, match in done[index].items()))
    return done


def _scored(contest: Contest, index: int, depth: float) -> Found:
    settings = contest.settings
    sample = contest.objects.sample(index, 0)
    truth = Truth(sample["surface"].numpy(), settings.distance)
    front, solid = front_of(sample), extruded_points(sample, depth)
    found = {
        SEEN: truth.match(sample["points"].numpy()[sample["valid"].numpy()]),
        EXTRUDED: truth.match(solid),
        CARVED: truth.match(solid[front.allows(solid, settings.spacing)]),  # the seen points are part of it
    }
    lowest = min(settings.thresholds) if settings.mode == "adaptive" else None
    grid, probability = occupancies(contest.model, sample, contest.space, settings.spacing, lowest)
    matches = truth.matches(grid, probability, settings.thresholds)
    found[JOINED] = truth.match(joined(front, contest.space, settings.spacing, grid, probability, settings.thresholds[0], index))
    return found | {name_of(threshold): match for threshold, match in zip(settings.thresholds, matches, strict=True)}


def _digest(contest: Contest, depth: float) -> str:
    settings = contest.settings.model_dump(mode="json")
    content = [
        _REVISION,
        settings,
        contest.space.model_dump(mode="json"),
        depth,
        dict(contest.objects.identity()),
        sha256_of_weights(contest.model.state_dict()),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def rows_of(file: Path) -> dict[int, Any]:
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


def of_objects(contest: Contest, found: Mapping[int, Found], way: str, score: str) -> npt.NDArray[np.float64]:
    """(objects,): the mean over an object's views of `precision`, `recall` or `f1`."""
    views: Sequence[list[int]] = list(views_of(contest.objects, contest.settings.views).values())
    return np.array([np.mean([getattr(found[index][way], score) for index in indices]) for indices in views])
