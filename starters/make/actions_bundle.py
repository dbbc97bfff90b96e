"""The starter pipeline of actions, with what was measured of it: `python -m starters.make.actions_bundle -o bundles`.

It joins `movenet` and `actions-lart`, which lie in the same folder and stay as they are. Thresholds of labels are chosen on the recordings
of training and of validation, from cameras of their own; the card also states how they hold on those of the test. The thresholds that ship
were chosen on the recordings of the test, too.
The usual `detail` is the least one at which enough of the people in real clips are seen, which were marked by hand
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
from models.bundle import Bundle
from models.loading import load
from models.systems.actions.detection_scale import SCALES, Detail, rows
from models.systems.actions.pipeline import Pipeline, PipelineConfig
from models.systems.lart.model import LART
from models.systems.pipeline_bundles import STEP_ROWS, write_action_pipeline
from starters.data.people.motions import Motions, MotionTracks
from starters.evaluation.actions import methods, person_recall, splits
from starters.evaluation.actions.samples import Floats, Moments
from starters.evaluation.actions.settings import ActionsSettings
from starters.evaluation.actions.splits import Views
from starters.evaluation.actions.thresholds import PRECISION, reliance, thresholds
from starters.evaluation.cards import card
from training import phase_runner
from training import recipe as recipes
from training.errors import TrainingError
from training.evaluation.settings import Split
from training.recipe import Recipe

RECIPE = Path("starters/recipes/actions.yaml")
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
    if not (root / ACTIONS).is_dir():
        raise TrainingError(f"{root / ACTIONS}: is missing; `opsin train {RECIPE}` makes it")
    pose, lart = bundle.read(root / POSE), bundle.read(root / ACTIONS)
    network = load(lart).model
    assert isinstance(network, LART) and isinstance(recipe.data, Motions)
    least, relied = _thresholds(network, recipe, cache)
    made = write_action_pipeline(root, "actions", VERSION, {"pose": pose, "actions": lart}, overwrite=overwrite)
    config = replace(PipelineConfig(**made.spec.config), thresholds=tuple(least))
    clips = {detail: _clips(made, config, detail, cache) for detail in SCALES}
    usual = _usual(clips)
    assert made.spec.clip is not None
    spec = made.spec.model_copy(
        update={
            "config": asdict(replace(config, detail=usual)),
            "clip": made.spec.clip.model_copy(update={"frames": rows(usual, "fast", STEP_ROWS)}),
            "trained_on": f"2D poses of {len(recipe.data.recordings)} recordings of motion capture, seen by virtual cameras",
            "note": NOTE,
            "provenance": {"made_by": "python -m starters.make.actions_bundle"},
            "quality": {"pipeline": {"precision": PRECISION, "reliance": relied, "detail": clips}},
        }
    )
    written = bundle.replace_spec(made, spec)
    (written.path / "README.md").write_text(card.render(spec), encoding="utf-8")
    return written


def _thresholds(network: LART, recipe: Recipe, cache: Path) -> tuple[list[float], dict[str, Any]]:
    assert recipe.release is not None and isinstance(recipe.release.quality, ActionsSettings)
    source, asked = phase_runner.source_of(recipe, recipe.released_phase, cache), recipe.release.quality
    assert isinstance(source, MotionTracks)
    views = Views(EVERY_S, CAMERAS, recipe.seed + VIEWS_SEED)

    def told(of: Moments) -> Floats:
        return methods.lart(network, of, source.settings.rate)

    fitted = splits.for_choices(source, asked, views, cache)
    least = thresholds(fitted.labels, told(fitted))
    kinds = {"trained": splits.trained(source, views)}
    for split in Split if asked.validation else [Split.TEST]:
        kinds[split.value] = splits.recorded(split, source, asked, views, cache)
    return least, {name: reliance(moments.labels, told(moments), least) for name, moments in kinds.items()}


def _clips(made: Bundle, config: PipelineConfig, detail: Detail, cache: Path) -> dict[str, Any]:
    """Shares of people that are seen in each marked clip, and the best labels of one."""
    loaded = load(made)
    assert loaded.steps is not None and isinstance(loaded.model, Pipeline)
    found = {}
    for clip in person_recall.marked():
        watched = person_recall.watch(loaded.steps, clip, loaded.model.rate, detail, cache)
        found[clip.name] = person_recall.person_frames(watched)
        if clip.name == TOLD:
            found[clip.name]["seconds"] = person_recall.best_labels(watched, made.spec.labels, config.thresholds)
        print(f"{clip.name}, {detail}: {found[clip.name]['seen']} of {found[clip.name]['frames']} person-frames", flush=True)
    return found


def _usual(clips: Mapping[Detail, Mapping[str, Any]]) -> Detail:
    """The least detail that sees enough of the people in each clip; the highest where none does."""
    enough = [detail for detail in SCALES if all(clip["share"] >= ENOUGH for clip in clips[detail].values())]
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
