"""Entry point of the evaluation of inpainting."""

from __future__ import annotations

from starters.evaluation.inpainting import plot, report, step_counts
from starters.evaluation.inpainting.settings import InpaintingSettings
from training import phase_runner
from training.evaluation.report import Measurement
from training.evaluation.trained_classifier import TrainedNetwork


class InpaintingQuality(InpaintingSettings):
    """Evaluation by `InpaintingSettings`."""

    def measure(self, trained: TrainedNetwork) -> Measurement:
        """Score what is not scored yet."""
        contest = step_counts.prepare(trained.recipe, trained.network, trained.context)
        trained_on = trained.recipe.data.open(phase_runner.preparation(trained.recipe, None, trained.cache))
        quality = report.summary(contest, step_counts.run(contest))
        return Measurement(
            quality,
            data={
                "packages": [self.data.package.model_dump()],
                "drawings": {"train": len(trained_on), "test": len(contest.drawings)},
                "distances_in": self.features.model_dump(),
            },
            drawn={plot.FILE: plot.draw(quality)},
        )

    def measure_part(self, trained: TrainedNetwork, part: str) -> None:
        step_counts.run(step_counts.prepare(trained.recipe, trained.network, trained.context), part)
