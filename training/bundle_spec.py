"""`bundle.json` of trained networks. It is also built before the first step, so that invalid fields are reported before the training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.bundle import BundleSpec
from models.bundle_schema import LABELLED_TASKS, FileDigest, TextSpec
from models.loading import config_mismatch
from models.registry import architectures
from models.systems.image_text.add_tokenizer import prepare_tokenizer
from models.systems.image_text.tokenizer_vocabulary import TokenizerError
from training.data.captions import WordSettings
from training.errors import DataError, RecipeError
from training.recipe import Phase, Recipe, first_mistake

_UNKNOWN = FileDigest(sha256="0" * 64, bytes=0)


def build_phase_spec(
    recipe: Recipe, phase: Phase, config: Any, labels: Sequence[str], overrides: Mapping[str, Any] | None = None
) -> BundleSpec:
    """Return the spec of a phase's network, with its `config` and without its weights. `overrides` replace or add fields.

    Raises RecipeError that names the first invalid field.
    """
    architecture = architectures()[recipe.model_of(phase).architecture]
    task = architecture.bundle_defaults.task(config)
    fields = {
        "name": phase.name,
        "version": recipe.version,
        "task": task,
        "architecture": architecture.name,
        "config": dataclasses.asdict(config),
        "preprocess": phase.preprocess or recipe.preprocess,
        "clip": recipe.clip,
        "sound": recipe.sound,
        "space": recipe.space,
        "temperature": recipe.temperature,
        "preset": recipe.preset,
        "fill": recipe.fill,
        "labels": list(labels) if task in LABELLED_TASKS else [],
        "license": recipe.license,
        "provenance": {"recipe": recipe.name, "phase": phase.name},
        "weights": _UNKNOWN,
    }
    try:
        spec = BundleSpec.model_validate(fields | dict(overrides or {}))
        spec.to_bytes()
    except UnicodeEncodeError as error:
        raise RecipeError(f"no bundle can be made: {error.object[:80]!r} holds a lone surrogate, which is not valid text") from error
    except ValidationError as error:
        raise RecipeError(f"no bundle can be made: {first_mistake(error).removeprefix('content: ')}") from error
    return spec


def build_release_spec(recipe: Recipe, config: Any, labels: Sequence[str], measured: Mapping[str, Any]) -> BundleSpec:
    """Return the spec of the recipe's bundle. `measured` has the fields about its quality.

    Raises RecipeError if a field is invalid or the network does not fit the labels or the images.
    """
    assert recipe.release is not None
    phase = recipe.released_phase
    fields = dataclasses.asdict(config)
    release_fields = {
        "name": recipe.name,
        "task": recipe.release.task,
        "config": fields | ({"drop_path": 0.0} if "drop_path" in fields else {}),
        "description": recipe.description,
        "trained_on": recipe.trained_on,
        "note": recipe.note,
    }
    spec = build_phase_spec(recipe, phase, config, labels, {**release_fields, **measured})
    problem = config_mismatch(spec, config)
    if problem:
        raise RecipeError(f"{recipe.field_of(phase)}.model: {problem}")
    return spec


def build_text_spec(recipe: Recipe, spec: BundleSpec, weights: Path) -> tuple[TextSpec, bytes] | None:
    """How the bundle reads texts, with the tokenizer of its training, and the content of its tokenizer's file; None: it reads none. Raises
    DataError."""
    words = getattr(recipe.released_phase.data or recipe.data, "words", None)
    if not isinstance(words, WordSettings) or spec.task != "zero-shot":
        return None
    try:
        return prepare_tokenizer(spec, weights, words.tokenizer, max_length=recipe.words, special=words.special)
    except TokenizerError as error:
        raise DataError(f"data.words.tokenizer: {error}") from error
