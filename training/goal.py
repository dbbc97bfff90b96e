"""Checks of what a recipe's release asks of its data and networks: it is refused before the first step."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.bundle import SPEC_FILE, WEIGHTS_FILE, BundleSpec
from models.registry import architectures
from starters.data.people import motions
from starters.evaluation import sounds
from training import phases, spec
from training.errors import RecipeError
from training.evaluation import held_out
from training.evaluation.ladder import planned
from training.evaluation.settings import ActionsQuality, FlagsQuality, HeldOutQuality, SoundsQuality
from training.recipe import Recipe, Release


def check(recipe: Recipe, cache: Path) -> None:
    """Raises TrainingError where the release would fail after the training: another task, or no fitting data to measure on."""
    if recipe.release is None:
        return
    _named_are_there(recipe.release)
    phase = recipe.released_phase
    labels = phases.source_of(recipe, phase, cache).labels
    architecture = architectures()[recipe.model_of(phase).architecture]
    config = recipe.model_of(phase).resolved(len(labels))
    purpose = architecture.purpose.task(config)
    if purpose != recipe.release.task:
        raise RecipeError(
            f"release.task: {recipe.release.task} where phase {phase.name} trains {architecture.name}, which is for {purpose}"
        )
    described = spec.of_release(recipe, config, labels, {"ladder": planned(recipe.release.quality)})
    if described.task == "zero-shot":
        _check_texts(recipe, described)
    if isinstance(recipe.release.quality, HeldOutQuality):
        held_out.source(recipe.measured(phase), recipe.release.quality, labels, cache)
    if isinstance(recipe.release.quality, SoundsQuality):
        sounds.contest(recipe.release.quality, recipe.data, recipe.sound, recipe.seed, cache)
    if isinstance(recipe.release.quality, ActionsQuality):
        data = phase.data or recipe.data
        if not isinstance(data, motions.Motions):
            raise RecipeError("release.quality: kind actions is for data of kind motions")
        motions.open_takes([*recipe.release.quality.validation, *recipe.release.quality.held_out], data, cache)


def _check_texts(recipe: Recipe, described: BundleSpec) -> None:
    """Raise DataError where the tokenizer does not fit the network. Of the weights, texts depend on two numbers alone."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / WEIGHTS_FILE
        save_file({name: torch.zeros(()) for name in ("logit_scale", "logit_bias")}, weights)
        spec.texts_of(recipe, described, weights)


def _named_are_there(release: Release) -> None:
    """Raise RecipeError where a bundle or a folder is missing that the release is measured with."""
    quality = release.quality
    named: list[tuple[str, Path]] = []
    if isinstance(quality, ActionsQuality):
        named = [(f"clips.{number}.detector", clip.detector / SPEC_FILE) for number, clip in enumerate(quality.clips)]
    elif isinstance(quality, FlagsQuality) and quality.examples is not None:
        named = [("examples", quality.examples)]
    for field, path in named:
        if not path.exists():
            raise RecipeError(f"release.quality.{field}: {path} is not there")
