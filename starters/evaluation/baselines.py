"""Baselines that a trained model must beat: the nearest training image, and a linear model, both on pixels or other features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.data.load_image import RGBPixels

_SIDE = 32
_STRENGTHS = (1e-4, 1e-2)
"""Strengths of regularisation of logistic regression on pixels."""

Labels = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32]
"""(N, values)."""


def nearest_neighbour(train: RGBPixels, train_labels: Labels, test: RGBPixels) -> Labels:
    """Predicted labels of `test`: the label of the training picture at the least squared distance, as thumbnails of 32 x 32 pixels."""
    return nearest_features(_vectors(train), train_labels, _vectors(test))


def nearest_features(known: Features, labels: Labels, asked: Features) -> Labels:
    """The same of any features."""
    distances = np.square(known).sum(axis=1) - 2 * asked @ known.T  # (N asked, N known), up to a constant of the row
    return np.asarray(labels[distances.argmin(axis=1)])


class LogisticFeatures:
    """Multinomial logistic regression on standardised features, its strength chosen on those of validation."""

    def __init__(self, train: Features, labels: Labels, val: Features, val_labels: Labels, strengths: Sequence[float]) -> None:
        from sklearn.linear_model import LogisticRegression  # takes seconds to import
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        fitted = [
            make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100, tol=1e-3)).fit(train, labels)
            for strength in strengths
        ]
        self._model = max(fitted, key=lambda model: float(model.score(val, val_labels)))

    def predict(self, features: Features) -> Labels:
        return np.asarray(self._model.predict(features))


class LogisticPixels:
    """The same on 32 x 32 pixels."""

    def __init__(self, train: RGBPixels, train_labels: Labels, val: RGBPixels, val_labels: Labels) -> None:
        self._on_vectors = LogisticFeatures(_vectors(train), train_labels, _vectors(val), val_labels, _STRENGTHS)

    def predict(self, pictures: RGBPixels) -> Labels:
        return self._on_vectors.predict(_vectors(pictures))


def _vectors(pictures: RGBPixels) -> npt.NDArray[np.float32]:
    """(N, S, S, 3) → (N, 3072)."""
    small = [np.asarray(Image.fromarray(p).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32) for p in pictures]
    return np.stack(small).reshape(len(small), -1) / np.float32(255)
