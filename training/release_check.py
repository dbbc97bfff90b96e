"""Checks of what a recipe's release asks of its data and networks: it is refused before the first step."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.bundle import WEIGHTS_FILE, BundleSpec
from models.registry import architectures
from training import bundle_spec, phase_runner
from training.errors import RecipeError
from training.recipe import Recipe


def check(recipe: Recipe, cache: Path) -> None:
    """Raise TrainingError if the release would fail after training: another task, or no suitable data to evaluate on."""
    if recipe.release is None:
        return
    quality, phase = recipe.release.quality, recipe.released_phase
    for field, path in quality.needed_files() if quality else ():
        if not path.exists():
            raise RecipeError(f"release.quality.{field}: {path} is not there")
    labels = phase_runner.source_of(recipe, phase, cache).labels
    architecture = architectures()[recipe.model_of(phase).architecture]
    config = recipe.model_of(phase).resolve(len(labels))
    purpose = architecture.bundle_defaults.task(config)
    if purpose != recipe.release.task:
        raise RecipeError(
            f"release.task: {recipe.release.task} where phase {phase.name} trains {architecture.name}, which is for {purpose}"
        )
    described = bundle_spec.build_release_spec(recipe, config, labels, {"ladder": quality.planned_rungs() if quality else []})
    if described.task == "zero-shot":
        _check_texts(recipe, described)
    if quality:
        quality.check(recipe, labels, cache)


def _check_texts(recipe: Recipe, described: BundleSpec) -> None:
    """Raise DataError where the tokenizer does not fit the network. Of the weights, texts depend on two numbers alone."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / WEIGHTS_FILE
        save_file({name: torch.zeros(()) for name in ("logit_scale", "logit_bias")}, weights)
        bundle_spec.build_text_spec(recipe, described, weights)
