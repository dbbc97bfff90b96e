"""Evaluation of an action recognition network on held-out recordings, compared with logistic regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.metrics import average_precision_score

from models.arrays import FloatArray
from models.people.track_batch import TrackBatch
from models.systems.lart.model import LART
from starters.data.people.motions import MotionRecording, Motions, MotionTracks, open_takes
from starters.evaluation.actions.samples import Moments, Views, draw_training_moments, moments_of_takes
from starters.evaluation.starter_quality import StarterQuality
from training import phase_runner
from training.errors import RecipeError
from training.evaluation.report import Measurement
from training.evaluation.settings import DataSplit
from training.evaluation.trained_classifier import Look, Report, SplitQuality, TrainedNetwork
from training.recipe import Recipe

LART_NAME, LOGISTIC = "LART", "logistic regression"


class ActionsQuality(StarterQuality, SplitQuality):
    """Accuracy and average precision by class on held-out recordings."""

    kind: Literal["actions"] = "actions"
    held_out: list[MotionRecording] = Field(min_length=1)
    """Recordings of the test split; there is no validation split."""
    cameras: int = Field(default=4, gt=0)
    """Number of views of each moment."""
    every: float = Field(default=1.0, gt=0)
    """Interval of moments in seconds."""
    drawn: int = Field(default=3000, ge=100)
    """Number of training tracks that the baseline is fitted to."""

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
            takes = open_takes(self.held_out, source.settings, trained.cache)
            unseen = moments_of_takes(takes, source, Views(self.every, self.cameras, seed))
            scores = {
                LART_NAME: lart(network, unseen, source.settings.rate),
                LOGISTIC: logistic_statistics(draw_training_moments(source, self.drawn, seed), unseen, len(source.labels)),
            }
            return {
                "recordings": {"trained": [take.name for take in source.takes], "unseen": [take.name for take in takes]},
                "cameras": self.cameras,
                "unseen": table(unseen, scores, source.labels),
            }

        return look

    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        data = (trained.recipe.released_phase.data or trained.recipe.data).model_dump()
        packages = [*data["packages"]["pypi"].values(), *data["packages"]["debian"].values()]
        named = [{field: package[field] for field in ("name", "version", "sha256")} for package in packages]
        quality = {"actions": {name: value for name, value in report.items() if name != "judged"}}
        return Measurement(quality, data={"kind": data["kind"], "packages": named})


def table(moments: Moments, scores: Mapping[str, FloatArray], labels: Sequence[str]) -> dict[str, Any]:
    """Return accuracy and average precision of each method, by class and overall, for classes with moments."""
    rows = []
    for label in np.unique(moments.labels).tolist():
        is_label = moments.labels == label
        rows.append(
            {
                "label": labels[label],
                "moments": int(is_label.sum()),
                "recordings": sorted({name for name, has_label in zip(moments.recordings, is_label, strict=True) if has_label}),
                "accuracy": {name: _round((values[is_label].argmax(axis=1) == label).mean()) for name, values in scores.items()},
                "average_precision": {name: _round(average_precision_score(is_label, values[:, label])) for name, values in scores.items()},
            }
        )
    return {
        "moments": len(moments),
        "classes": rows,
        "accuracy": {name: _round((values.argmax(axis=1) == moments.labels).mean()) for name, values in scores.items()},
        "map": {name: _round(np.mean([row["average_precision"][name] for row in rows])) for name in scores},
    }


def _round(value: Any) -> float:
    return round(float(value), 4)


AROUND_S = 0.2
"""Seconds before and after a moment over which LART's scores are averaged, as in AVA's evaluation (`avg.6` at 30 frames per second)."""
STATISTICS_ROWS = 7
"""Number of rows before and after a moment that logistic regression uses."""


@torch.inference_mode()
def lart(model: LART, moments: Moments, rate: float, batch_size: int = 256) -> FloatArray:
    """Return sigmoids, averaged around each moment."""
    reach = round(AROUND_S * rate)
    scores = []
    for start in range(0, len(moments), batch_size):
        chosen = slice(start, start + batch_size)
        pose, detected = torch.from_numpy(moments.pose[chosen]), torch.from_numpy(moments.detected[chosen])
        logits = model(TrackBatch(pose[:, :, None], detected[:, :, None, None].float())).reading.actions[:, :, 0]  # (B, T, classes)
        pairs = zip(logits, moments.rows[chosen].tolist(), strict=True)
        around = [track[max(0, row - reach) : row + reach].sigmoid().mean(dim=0) for track, row in pairs]
        scores.append(torch.stack(around))
    return np.asarray(torch.cat(scores).numpy())


def logistic_statistics(train: Moments, moments: Moments, classes: int) -> FloatArray:
    """Fit multinomial logistic regression on mean, standard deviation and speed of each token value around a moment."""
    from sklearn.linear_model import LogisticRegression  # takes seconds to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(statistics(train), train.labels)
    scores = np.zeros((len(moments), classes))
    scores[:, model.classes_] = model.predict_proba(statistics(moments))
    return scores


def statistics(moments: Moments) -> FloatArray:
    """Return the features of `logistic_statistics`, (N, 165)."""
    rows: list[NDArray[np.float64]] = []
    for pose, detected, row in zip(moments.pose, moments.detected, moments.rows, strict=True):
        around = slice(max(0, row - STATISTICS_ROWS), row + STATISTICS_ROWS + 1)
        seen = pose[around][detected[around]]
        speed = np.abs(np.diff(seen, axis=0)).mean(axis=0) if len(seen) > 1 else np.zeros(seen.shape[1])
        rows.append(np.concatenate([seen.mean(axis=0), seen.std(axis=0), speed]))
    return np.stack(rows)
