"""Credits for renders in the provenance of a bundle."""

from __future__ import annotations

from collections import Counter
from typing import Any

from starters.data.renders.scenes import RenderedScenes, Renders, creators
from training import phase_runner
from training.evaluation.trained_classifier import TrainedNetwork


def credit(trained: TrainedNetwork) -> dict[str, Any]:
    """Return the training data and the creators of its objects."""
    recipe = trained.recipe
    trained_on = recipe.data.open(phase_runner.preparation(recipe, None, trained.cache))
    assert isinstance(trained_on, RenderedScenes) and isinstance(recipe.data, Renders)
    return {
        "packages": [entry.package.model_dump() | {"license": entry.license} for entry in trained_on.settings.packages],
        "objects": dict(Counter(trained_on.categories.values())),
        "views": len(trained_on),
        "creators": creators(recipe.data, trained.cache),
    }
