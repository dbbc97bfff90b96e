"""The starter pipeline of actions, with what was measured of it: `python -m training.actions_pipeline -o bundles`.

It joins `movenet` and `actions-lart`, which lie in the same folder and stay as they are. Thresholds of labels are chosen on views that
nothing was trained on: those of the recordings of training and of the other ones, from cameras of their own. The usual `detail` is the
least one at which enough of the people in real clips are seen, which were marked by hand (`training/recognising/people.yaml`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import bundle
from models.actions.detail import SCALES, Detail, rows
from models.actions.pipeline import Pipeline, PipelineConfig
from models.bundle import Bundle
from models.joining import ROWS, join_actions
from models.lart.model import LART
from models.loading import load
from training import recipe as recipes
from training.data.motions import Motions, MotionTracks, open_takes
from training.errors import TrainingError
from training.recognising import moments, pipeline_card, recognisers, seen
from training.recognising.settings import ActionsQuality
from training.recognising.thresholds import PRECISION, judged, left_out, thresholds

RECIPE = Path("training/recipes/actions.yaml")
VERSION = "1.1.0"
POSE, ACTIONS = "movenet/1.0.0", "actions-lart/1.0.0"
CAMERAS, EVERY_S = 12, 0.5
"""Views of a moment, and seconds from one to the next, of what thresholds are chosen on."""
VIEWS_SEED = 2
"""Its cameras are neither those of training nor those that the card of `actions-lart` was measured with."""
ENOUGH = 0.85
"""Share of the marked people that the usual detail sees in each clip."""
TOLD = "demo"
"""The clip whose labels the card tells."""
NOTE = "Small starter, for trying the machinery. It knows 15 actions from a few recordings each, and takes others for one of them."


def make(root: Path, cache: Path, *, overwrite: bool = False) -> Bundle:
    """Raises TrainingError, BundleError and OSError."""
    recipe = recipes.read(RECIPE)
    pose, lart = bundle.read(root / POSE), bundle.read(root / ACTIONS)
    network = load(lart).model
    assert isinstance(network, LART) and isinstance(recipe.data, Motions) and recipe.release is not None
    least, reliance = _thresholds(network, recipe.data, recipe.release.quality, recipe.seed, cache)
    made = join_actions(root, "actions", VERSION, {"pose": pose, "actions": lart}, overwrite=overwrite)
    config = replace(PipelineConfig(**made.spec.config), thresholds=tuple(least))
    clips = {detail: _clips(made, config, detail, cache) for detail in SCALES}
    usual = _usual(clips)
    assert made.spec.clip is not None
    trained = len(recipe.data.recordings)
    spec = made.spec.model_copy(
        update={
            "config": asdict(replace(config, detail=usual)),
            "clip": made.spec.clip.model_copy(update={"frames": rows(usual, "fast", ROWS)}),
            "trained_on": f"2D poses of {trained} recordings of motion capture, seen by virtual cameras",
            "note": NOTE,
            "provenance": {"made_by": "python -m training.actions_pipeline"},
            "quality": {"pipeline": {"precision": PRECISION, "reliance": reliance, "detail": clips}},
        }
    )
    written = bundle.rewrite(made, spec)
    (written.path / "README.md").write_text(pipeline_card.render(spec), encoding="utf-8")
    return written


def _thresholds(network: LART, data: Motions, quality: Any, seed: int, cache: Path) -> tuple[list[float], dict[str, Any]]:
    assert isinstance(quality, ActionsQuality)
    source = MotionTracks(data, open_takes(data.recordings, data, cache))
    takes = (source.takes, open_takes(quality.held_out, data, cache))
    known, unseen = (moments.of_takes(some, source, every=EVERY_S, cameras=CAMERAS, seed=seed + VIEWS_SEED) for some in takes)
    told = [recognisers.lart(network, views, data.rate) for views in (known, unseen)]
    least = thresholds(np.concatenate([known.labels, unseen.labels]), np.concatenate(told))
    return least, {
        "trained": judged(known.labels, told[0], least),
        "others": judged(unseen.labels, told[1], least),
        "left_out": left_out((known.labels, told[0]), unseen, told[1]),
    }


def _clips(made: Bundle, config: PipelineConfig, detail: Detail, cache: Path) -> dict[str, Any]:
    """What is seen of each marked clip, and the best labels of one."""
    loaded = load(made)
    assert loaded.steps is not None and isinstance(loaded.model, Pipeline)
    found = {}
    for clip in seen.marked():
        watched = seen.watch(loaded.steps, clip, loaded.model.rate, detail, cache)
        found[clip.name] = seen.person_frames(watched)
        if clip.name == TOLD:
            found[clip.name]["seconds"] = seen.best_labels(watched, made.spec.labels, config.thresholds)
        print(f"{clip.name}, {detail}: {found[clip.name]['seen']} of {found[clip.name]['frames']} person-frames", flush=True)
    return found


def _usual(clips: Mapping[Detail, Mapping[str, Any]]) -> Detail:
    """The least detail that sees enough of the people in each clip; the highest where none does."""
    enough = [detail for detail in SCALES if all(clip["share"] >= ENOUGH for clip in clips[detail].values())]
    return enough[0] if enough else list(SCALES)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.actions_pipeline", description="Make the bundle `actions` and its card.")
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
