"""A trained network under evaluation, by the whole of its held-out data or by one of its splits."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models.bundle_schema import Preprocess
from training import phase_runner
from training.errors import RecipeError, TrainingError
from training.evaluation.report import Measurement, read_or_evaluate_once, reports, round_weights, weights_and_settings, write_report
from training.evaluation.settings import DataSplit, QualitySettings
from training.phase_runner import RunContext
from training.recipe import Recipe

Report = dict[str, Any]


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network of a recipe, which an evaluation may calibrate in place."""

    recipe: Recipe
    """Recipe with the preprocessing of the evaluated phase."""
    network: nn.Module
    """Rounded as a bundle stores it, if anything is measured."""
    labels: tuple[str, ...]
    context: RunContext

    @property
    def cache(self) -> Path:
        return self.context.cache

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of images. Raises RecipeError if the recipe has none."""
        if self.recipe.preprocess is None:
            raise RecipeError("preprocess: the recipe does not say how images are prepared (image_size, mean, std, …)")
        return self.recipe.preprocess


def load_trained(recipe: Recipe, context: RunContext, phase: str | None = None) -> TrainedNetwork:
    """Load the network of a phase, by default that of the release. Raises TrainingError."""
    assert recipe.release is not None
    released = recipe.released_phase
    chosen = next((each for each in recipe.phases if each.name == (phase or released.name)), None)
    if chosen is None:
        raise TrainingError(f"--phase: unknown phase {phase}; the phases are {', '.join(each.name for each in recipe.phases)}")
    labels = phase_runner.source_of(recipe, released, context.cache).labels
    network = phase_runner.load_phase_network(recipe, chosen.name, labels, context)
    return TrainedNetwork(
        recipe.with_preprocess_of(chosen), round_weights(network, recipe) if recipe.release.quality else network, labels, context
    )


Look = Callable[[DataSplit], Report]
"""Looks at a split. Raises TrainingError."""


class SplitQuality(QualitySettings):
    """A measurement of the validation split, as often as you like, and of the test split, once."""

    @abstractmethod
    def prepare(self, trained: TrainedNetwork) -> Look:
        """Check and calibrate the network, and return what evaluates a split. Raises TrainingError."""

    @abstractmethod
    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        """Return the measurements in the report of the test split. Raises TrainingError."""

    def measure(self, trained: TrainedNetwork) -> Measurement:
        """Evaluate on the test split, or read its report if there is one."""
        return self.measurement(trained, self.report(trained, DataSplit.TEST))

    def report(self, trained: TrainedNetwork, split: DataSplit) -> Report:
        """Evaluate on a split and write the report. Raises TrainingError."""
        look = self.prepare(trained)
        of, file = weights_and_settings(self, trained.network), self.file(trained, split)
        return read_or_evaluate_once(file, of, lambda: look(split)) if split is DataSplit.TEST else write_report(file, of, look(split))

    def file(self, trained: TrainedNetwork, split: DataSplit) -> Path:
        """File of the report of a split."""
        kind = re.sub(r"[^\w.-]", "-", self.kind)
        return reports(trained.context) / f"{kind}-{split.value}.json"
