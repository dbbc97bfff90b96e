"""Fill the holes of held-out drawings with every method, and score the fillings.

Scores are written to disk batch by batch, so that a stopped command continues; another network, other drawings or holes have other files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.bundle_schema import Preprocess
from models.systems.diffmae.diffusion import TimestepSpacing
from models.systems.diffmae.model import DiffMAE
from starters.evaluation.inpainting import holes, methods, scores
from starters.evaluation.inpainting.holes import HeldOutDrawings
from starters.evaluation.inpainting.methods import DiffusionFiller, Filler
from starters.evaluation.inpainting.perceptual import PerceptualDistance
from starters.evaluation.inpainting.settings import Hole, InpaintingSettings
from starters.evaluation.score_log import read_log
from training import phase_runner
from training.errors import RecipeError, TrainingError
from training.evaluation.report import reports, round_weights
from training.fingerprint import sha256_of_weights
from training.phase_runner import RunContext
from training.recipe import Recipe

SCORES = ("perceptual", "psnr", "ssim")
_REVISION = 1
"""Revision of holes and scores: rows of other revisions are not read."""

Rows = npt.NDArray[np.float64]
"""(N, 3), a column for each of `SCORES`."""


@dataclass(frozen=True)
class Entrant:
    """A method to fill holes, and its key in the report."""

    key: str
    filler: Filler
    holes: tuple[Hole, ...]


@dataclass(frozen=True)
class FillingEvaluation:
    settings: InpaintingSettings
    drawings: HeldOutDrawings
    entrants: tuple[Entrant, ...]
    seed: int
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    folder: Path


def prepare(recipe: Recipe, network: nn.Module, context: RunContext) -> FillingEvaluation:
    """Prepare the evaluation of a network, rounded as its bundle stores it. Raises TrainingError."""
    settings, preprocess = recipe.release.quality if recipe.release else None, recipe.preprocess
    if not isinstance(settings, InpaintingSettings) or preprocess is None:
        raise RecipeError("release.quality: kind inpainting, and a recipe with preprocess, are required")
    model = _require_image_network(network, preprocess)
    labels: tuple[str, ...] = ()
    rivals = {
        name: _require_image_network(round_weights(phase_runner.load_phase_network(recipe, name, labels, context), recipe), preprocess)
        for name in (settings.same_budget, settings.one_step)
    }
    return FillingEvaluation(
        settings,
        holes.drawings(settings.data, preprocess, context.cache, slice(settings.images)),
        entrants_of(settings, model, rivals),
        recipe.seed,
        PerceptualDistance(settings.features, context.cache),
        reports(context),
    )


def entrants_of(settings: InpaintingSettings, model: DiffMAE, rivals: dict[str, DiffMAE]) -> tuple[Entrant, ...]:
    """List simple methods, rivals, then the network by steps. Only holes of the first kind are filled with every spacing."""
    every, first = tuple(settings.holes), (settings.holes[0],)
    found = [Entrant(filler.name, filler, every) for filler in methods.baselines()]
    one_step, same_budget = rivals[settings.one_step], rivals[settings.same_budget]
    found += [
        Entrant("one-step MAE", _diffusion("one-step MAE", one_step, 1), every),
        Entrant("same budget", _diffusion("DiffMAE, as long as the MAE", same_budget, settings.primary_steps), every),
    ]
    weights = sha256_of_weights(model.state_dict())
    for spacing in TimestepSpacing:
        for steps in settings.steps:
            if steps > 1 or spacing is TimestepSpacing.UNIFORM:  # one step is the same in all
                name = f"DiffMAE, {steps} step{'s' if steps > 1 else ''}{', log-SNR' if spacing is TimestepSpacing.LOG_SNR else ''}"
                chosen = every if spacing is TimestepSpacing.UNIFORM else first
                found.append(Entrant(f"{spacing.value} {steps}", DiffusionFiller(name, model, weights, steps, spacing), chosen))
    if settings.temperature is not None:
        for steps in settings.steps:
            if 1 < steps <= settings.primary_steps:
                name = f"DiffMAE, {steps} steps, temperature {settings.temperature:g}"
                calm = DiffusionFiller(name, model, weights, steps, temperature=settings.temperature)
                found.append(Entrant(f"calm {steps}", calm, every))
    return tuple(found)


def _diffusion(name: str, model: DiffMAE, steps: int) -> DiffusionFiller:
    return DiffusionFiller(name, model, sha256_of_weights(model.state_dict()), steps)


def _require_image_network(network: nn.Module, preprocess: Preprocess) -> DiffMAE:
    if not isinstance(network, DiffMAE) or network.config.frames is not None:
        raise RecipeError("release.quality: kind inpainting is for a DiffMAE of images")
    side = preprocess.image_size
    if network.config.image_size != (side, side) or (network.config.mean, network.config.std) != (preprocess.mean, preprocess.std):
        raise RecipeError("preprocess: image_size, mean and std are not those of the network, which diffuses pixels in these units")
    return network.eval()


def run(
    contest: FillingEvaluation, only: str = "", batch: int = 32, progress: Callable[[str], None] = print
) -> dict[tuple[str, Hole], Rows]:
    """Return rows by entrant and kind of holes. only: part of the names of the entrants to run. Raises TrainingError."""
    results = {}
    for kind in contest.settings.holes:
        cut = holes.cut(kind, contest.drawings.pixels, contest.seed)
        for entrant in contest.entrants:
            if kind in entrant.holes and only.lower() in entrant.filler.name.lower():
                rows = _rows(contest, entrant.filler, kind, cut, batch)
                results[entrant.key, kind] = rows
                perceptual, psnr, ssim = rows.mean(axis=0)
                progress(f"{kind.value:8} {entrant.filler.name:32} perceptual {perceptual:.4f}  PSNR {psnr:.2f} dB  SSIM {ssim:.4f}")
    return results


def _rows(contest: FillingEvaluation, filler: Filler, kind: Hole, cut: torch.Tensor, batch: int) -> Rows:
    pixels = contest.drawings.pixels
    file = contest.folder / f"{kind.value}-{_digest(contest, filler)}.jsonl"
    done = read_log(file)
    for first in range(len(done), len(pixels), batch):
        part = slice(first, first + batch)
        truth, hole = pixels[part], cut[part]
        filled = filler.fill(truth, hole, first)
        if not torch.equal(filled[~hole], truth[~hole]):
            raise TrainingError(f"{filler.name} changed pixels outside of the hole")
        columns = (contest.distance(filled, truth), scores.psnr(filled, truth, hole), scores.ssim(filled, truth, hole))
        new = torch.stack([column.double() for column in columns], dim=1).tolist()
        done += new
        with file.open("a", encoding="utf-8") as log:
            log.writelines(json.dumps(row) + "\n" for row in new)
    return np.array(done)


def _digest(contest: FillingEvaluation, filler: Filler) -> str:
    content = contest.drawings.pixels.numpy().tobytes() + json.dumps([_REVISION, filler.name, filler.identity, contest.seed]).encode()
    return hashlib.sha256(content).hexdigest()[:16]
