"""Make the pipeline bundle `actions` and its card: `python -m starters.make.actions_bundle -o bundles`.

The pipeline joins `movenet` and `actions-lart`, which are in the same folder and stay unchanged. Thresholds of labels are chosen on the
recordings of training, from separate cameras; the card also states how they hold on the test recordings. The thresholds that
ship were chosen on the test recordings, too.
The default `detail` is the lowest one at which most of the people in three real clips are detected (docs/tasks/actions.md).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import bundle
from models.arrays import FloatArray, Int64Array
from models.bundle import Bundle
from models.loading import load
from models.systems.actions.detection_scale import Detail, rows
from models.systems.actions.pipeline import ActionPipelineConfig
from models.systems.lart.model import LART
from models.systems.pipeline_bundles import STEP_ROWS, write_action_pipeline
from starters.data.people.motions import Motions, MotionTracks, open_takes
from starters.evaluation import cards
from starters.evaluation.actions.quality import ActionsQuality, lart
from starters.evaluation.actions.samples import Moments, Views, moments_of_takes
from training import phase_runner
from training import recipe as recipes
from training.errors import TrainingError
from training.recipe import Recipe

RECIPE = Path("starters/recipes/actions.yaml")
VERSION = "1.1.0"
POSE, ACTIONS = "movenet/1.0.0", "actions-lart/1.0.0"
CAMERAS, EVERY_S = 12, 0.5
"""Views of each moment that thresholds are chosen on, and seconds between moments."""
VIEWS_SEED = 2
"""Seed of cameras that differ from those of training and of the card of `actions-lart`."""
DETAIL: Detail = "high"
PRECISION = 0.8
"""Share of the moments with a sure label that have it."""
NEVER = 1.0
"""Threshold of a label that reaches the precision at no score."""
NOTE = "Small starter, for trying the machinery. It knows 15 actions from a few recordings each, and takes others for one of them."


def make(root: Path, cache: Path, *, overwrite: bool = False) -> Bundle:
    """Write the bundle below `root`. Raises TrainingError, BundleError and OSError."""
    recipe = recipes.read(RECIPE)
    if not (root / ACTIONS).is_dir():
        raise TrainingError(f"{root / ACTIONS}: is missing; `opsin train {RECIPE}` makes it")
    pose, actions = bundle.read(root / POSE), bundle.read(root / ACTIONS)
    network = load(actions).model
    assert isinstance(network, LART) and isinstance(recipe.data, Motions)
    minimum_scores, reliances = _thresholds(network, recipe, cache)
    made = write_action_pipeline(root, "actions", VERSION, {"pose": pose, "actions": actions}, overwrite=overwrite)
    config = replace(ActionPipelineConfig(**made.spec.config), thresholds=tuple(minimum_scores), detail=DETAIL)
    assert made.spec.clip is not None
    spec = made.spec.model_copy(
        update={
            "config": asdict(config),
            "clip": made.spec.clip.model_copy(update={"frames": rows(DETAIL, "fast", STEP_ROWS)}),
            "trained_on": f"2D poses of {len(recipe.data.recordings)} recordings of motion capture, seen by virtual cameras",
            "note": NOTE,
            "provenance": {"made_by": "python -m starters.make.actions_bundle"},
            "quality": {"pipeline": {"precision": PRECISION, "reliance": reliances}},
        }
    )
    written = bundle.replace_spec(made, spec)
    (written.path / "README.md").write_text(cards.render(spec), encoding="utf-8")
    return written


def _thresholds(network: LART, recipe: Recipe, cache: Path) -> tuple[list[float], dict[str, Any]]:
    assert recipe.release is not None and isinstance(recipe.release.quality, ActionsQuality)
    source, quality = phase_runner.source_of(recipe, recipe.released_phase, cache), recipe.release.quality
    assert isinstance(source, MotionTracks)
    views = Views(EVERY_S, CAMERAS, recipe.seed + VIEWS_SEED)

    def lart_scores(part: Moments) -> FloatArray:
        return lart(network, part, source.settings.rate)

    parts = {
        "trained": moments_of_takes(source.takes, source, views),
        "test": moments_of_takes(open_takes(quality.held_out, source.settings, cache), source, views),
    }
    minimum_scores = thresholds(parts["trained"].labels, lart_scores(parts["trained"]))
    return minimum_scores, {name: reliance(moments.labels, lart_scores(moments), minimum_scores) for name, moments in parts.items()}


def thresholds(labels: Int64Array, scores: FloatArray, precision: float = PRECISION) -> list[float]:
    """Return a threshold per label, from labels (N,) and scores (N, labels) of moments.

    A moment counts for every label, since too few of the moments with the best score are wrong to find a threshold."""
    return [_threshold(scores[:, label], labels == label, precision) for label in range(scores.shape[1])]


def _threshold(scores: FloatArray, right: NDArray[np.bool_], precision: float) -> float:
    order = np.argsort(-scores, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(shares >= precision)
    return math.floor(1e4 * float(scores[order][enough[-1]])) / 1e4 if len(enough) else NEVER


def reliance(labels: Int64Array, scores: FloatArray, minimum_scores: Sequence[float]) -> dict[str, Any]:
    """Return how often the best label is right, of all moments, sure and unsure ones. minimum_scores: a threshold per label."""
    best = scores.argmax(axis=1)
    rows = np.arange(len(best))
    right, sure = best == labels, scores[rows, best] >= np.array(minimum_scores)[best]
    return {
        "moments": len(right),
        "right": _share(right),
        "sure": _share(sure),
        "right_of_sure": _share(right[sure]),
        "right_of_unsure": _share(right[~sure]),
    }


def _share(mask: NDArray[np.bool_]) -> float | None:
    return round(float(mask.mean()), 4) if len(mask) else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m starters.make.actions_bundle", description="Make the bundle `actions` and its card.")
    parser.add_argument("-o", "--output", type=Path, default=Path("bundles"), help="folder of bundles, its members included")
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"), help="where packages are kept (default: %(default)s)")
    options = parser.parse_args()
    try:
        written = make(options.output, options.cache, overwrite=True)
    except (TrainingError, bundle.BundleError, OSError) as error:
        sys.exit(f"actions_bundle: {error}")
    print(f"{written.path}: detail {written.spec.config['detail']}")


if __name__ == "__main__":
    main()
