"""Entry point of the evaluation of reconstructions."""

from __future__ import annotations

from starters.evaluation.credits import credit
from starters.evaluation.reconstruction import report as reconstruction_report
from starters.evaluation.reconstruction import scores
from starters.evaluation.reconstruction.settings import ReconstructionSettings
from training.evaluation.report import Measurement
from training.evaluation.settings import DataSplit
from training.evaluation.trained_classifier import Look, Report, TrainedNetwork


class ReconstructionQuality(ReconstructionSettings):
    """Evaluation by `ReconstructionSettings`."""

    def prepare(self, trained: TrainedNetwork) -> Look:
        evaluation = scores.prepare(trained.recipe, self, trained.network, trained.context)
        chosen = scores.calibrate(evaluation)

        def look(split: DataSplit) -> Report:
            source = scores.held_out(evaluation, split)
            return reconstruction_report.report(self, chosen, source, scores.run(evaluation, chosen, source), split)

        return look

    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        return Measurement({"reconstruction": report}, data=credit(trained))
