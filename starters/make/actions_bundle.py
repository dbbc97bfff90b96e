"""Make the pipeline bundle `actions` and its card: `python -m starters.make.actions_bundle -o bundles`.

The pipeline joins `movenet` and `actions-lart`, which are in the same folder and stay unchanged. Thresholds of labels are chosen on the
recordings of training, from separate cameras; the card also states how they hold on the test recordings. The thresholds that
ship were chosen on the test recordings, too.
The default `detail` is the lowest one at which enough of the people in real clips are detected; these people were marked by hand
(`starters/evaluation/actions/people.yaml`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from models import bundle
from models.arrays import FloatArray
from models.bundle import Bundle
from models.loading import load
from models.systems.actions.detection_scale import SCALES, Detail, rows
from models.systems.actions.pipeline import ActionPipeline, ActionPipelineConfig
from models.systems.lart.model import LART
from models.systems.pipeline_bundles import STEP_ROWS, write_action_pipeline
from starters.data.people.motions import Motions, MotionTracks, open_takes
from starters.evaluation.actions import methods, person_recall
from starters.evaluation.actions.quality import ActionsQuality
from starters.evaluation.actions.samples import Moments, Views, moments_of_takes
from starters.evaluation.actions.thresholds import PRECISION, reliance, thresholds
from starters.evaluation.cards import card
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
MIN_SHARE = 0.85
"""Share of the marked people that the default detail has to detect in each clip."""
NOTE = "Small starter, for trying the machinery. It knows 15 actions from a few recordings each, and takes others for one of them."


def make(root: Path, cache: Path, *, overwrite: bool = False) -> Bundle:
    """Write the bundle below `root`. Raises TrainingError, BundleError and OSError."""
    recipe = recipes.read(RECIPE)
    if not (root / ACTIONS).is_dir():
        raise TrainingError(f"{root / ACTIONS}: is missing; `opsin train {RECIPE}` makes it")
    pose, lart = bundle.read(root / POSE), bundle.read(root / ACTIONS)
    network = load(lart).model
    assert isinstance(network, LART) and isinstance(recipe.data, Motions)
    minimum_scores, reliances = _thresholds(network, recipe, cache)
    made = write_action_pipeline(root, "actions", VERSION, {"pose": pose, "actions": lart}, overwrite=overwrite)
    config = replace(ActionPipelineConfig(**made.spec.config), thresholds=tuple(minimum_scores))
    clips = {detail: _clips(made, detail, cache) for detail in SCALES}
    default = _default_detail(clips)
    assert made.spec.clip is not None
    spec = made.spec.model_copy(
        update={
            "config": asdict(replace(config, detail=default)),
            "clip": made.spec.clip.model_copy(update={"frames": rows(default, "fast", STEP_ROWS)}),
            "trained_on": f"2D poses of {len(recipe.data.recordings)} recordings of motion capture, seen by virtual cameras",
            "note": NOTE,
            "provenance": {"made_by": "python -m starters.make.actions_bundle"},
            "quality": {"pipeline": {"precision": PRECISION, "reliance": reliances, "detail": clips}},
        }
    )
    written = bundle.replace_spec(made, spec)
    (written.path / "README.md").write_text(card.render(spec), encoding="utf-8")
    return written


def _thresholds(network: LART, recipe: Recipe, cache: Path) -> tuple[list[float], dict[str, Any]]:
    assert recipe.release is not None and isinstance(recipe.release.quality, ActionsQuality)
    source, quality = phase_runner.source_of(recipe, recipe.released_phase, cache), recipe.release.quality
    assert isinstance(source, MotionTracks)
    views = Views(EVERY_S, CAMERAS, recipe.seed + VIEWS_SEED)

    def lart_scores(part: Moments) -> FloatArray:
        return methods.lart(network, part, source.settings.rate)

    parts = {
        "trained": moments_of_takes(source.takes, source, views),
        "test": moments_of_takes(open_takes(quality.held_out, source.settings, cache), source, views),
    }
    minimum_scores = thresholds(parts["trained"].labels, lart_scores(parts["trained"]))
    return minimum_scores, {name: reliance(moments.labels, lart_scores(moments), minimum_scores) for name, moments in parts.items()}


def _clips(made: Bundle, detail: Detail, cache: Path) -> dict[str, Any]:
    """Return the share of people that are detected in each marked clip."""
    loaded = load(made)
    assert loaded.steps is not None and isinstance(loaded.model, ActionPipeline)
    found = {}
    for clip in person_recall.read_marks():
        boxes, rate = person_recall.detect(loaded.steps, clip, detail, cache)
        found[clip.name] = person_recall.person_frames(clip, boxes, min(rate, loaded.model.rate))
        print(f"{clip.name}, {detail}: {found[clip.name]['seen']} of {found[clip.name]['frames']} person-frames", flush=True)
    return found


def _default_detail(clips: Mapping[Detail, Mapping[str, Any]]) -> Detail:
    """Return the lowest detail that detects enough of the people in each clip; the highest if none does."""
    enough = [detail for detail in SCALES if all(clip["share"] >= MIN_SHARE for clip in clips[detail].values())]
    return enough[0] if enough else list(SCALES)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m starters.make.actions_bundle", description="Make the bundle `actions` and its card.")
    parser.add_argument("-o", "--output", type=Path, default=Path("bundles"), help="folder of bundles, its members included")
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"), help="where packages are kept (default: %(default)s)")
    options = parser.parse_args()
    try:
        written = make(options.output, options.cache, overwrite=True)
    except (TrainingError, bundle.BundleError, OSError) as error:
        sys.exit(f"actions_pipeline: {error}")
    print(f"{written.path}: detail {written.spec.config['detail']}")


if __name__ == "__main__":
    main()
