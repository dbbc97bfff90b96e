"""Entry point of the evaluation of actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.bundle import SPEC_FILE
from models.systems.lart.model import LART
from starters.data.people.motions import Motions, MotionTracks, open_takes
from starters.evaluation.actions import measure as actions
from starters.evaluation.actions import plot as confusion
from starters.evaluation.actions.settings import ActionsSettings
from training import phase_runner
from training.errors import RecipeError
from training.evaluation.report import Measurement
from training.evaluation.settings import DataSplit
from training.evaluation.trained_classifier import Look, Report, TrainedNetwork
from training.recipe import Recipe


class ActionsQuality(ActionsSettings):
    """Evaluation by `ActionsSettings`."""

    def needed_files(self) -> list[tuple[str, Path]]:
        return [(f"clips.{number}.detector", clip.detector / SPEC_FILE) for number, clip in enumerate(self.clips)]

    def check(self, recipe: Recipe, labels: Sequence[str], cache: Path) -> None:
        data = recipe.released_phase.data or recipe.data
        if not isinstance(data, Motions):
            raise RecipeError("release.quality: kind actions is for data of kind motions")
        open_takes(self.held_out, data, cache)

    def prepare(self, trained: TrainedNetwork) -> Look:
        network, seed = trained.network, trained.recipe.seed
        source = phase_runner.source_of(trained.recipe, trained.recipe.released_phase, trained.cache)
        if not isinstance(source, MotionTracks) or not isinstance(network, LART):
            raise RecipeError("release.quality: kind actions is for a LART on data of kind motions")

        def look(split: DataSplit) -> Report:
            if split is DataSplit.VAL:
                raise RecipeError("release.quality: kind actions has no validation split; --split test evaluates the test, once")
            single = trained.other(self.single_frames)
            assert isinstance(single, LART)
            return actions.measure(source, self, network, single, trained.cache, seed)

        return look

    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        data = (trained.recipe.released_phase.data or trained.recipe.data).model_dump()
        packages = [*data["packages"]["pypi"].values(), *data["packages"]["debian"].values()]
        named = [{field: package[field] for field in ("name", "version", "sha256")} for package in packages]
        return Measurement(
            {"actions": {name: value for name, value in report.items() if name != "judged"}},
            data={"kind": data["kind"], "packages": named},
            drawn={confusion.FILE: confusion.draw(report["confusion"], trained.labels)},
        )
