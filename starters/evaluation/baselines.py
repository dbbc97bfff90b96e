"""Baselines: the nearest training sample and a linear model, on pixels or other features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from models.arrays import Float32Array, Int64Array
from training.data.load_image import RGBPixels

_SIDE = 32


def nearest_neighbour(train: RGBPixels, train_labels: Int64Array, test: RGBPixels) -> Int64Array:
    """Predict the label of the nearest training image, comparing thumbnails of 32 x 32 pixels."""
    vectors, queries = _vectors(train), _vectors(test)
    distances = np.square(vectors).sum(axis=1) - 2 * queries @ vectors.T  # (N test, N train), up to a constant per row
    return np.asarray(train_labels[distances.argmin(axis=1)])


class LogisticFeatures:
    """Multinomial logistic regression on standardised features, its regularisation chosen on validation features."""

    def __init__(
        self, train: Float32Array, labels: Int64Array, val: Float32Array, val_labels: Int64Array, strengths: Sequence[float]
    ) -> None:
        from sklearn.linear_model import LogisticRegression  # takes seconds to import
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        fitted = [
            make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100, tol=1e-3)).fit(train, labels)
            for strength in strengths
        ]
        self._model = max(fitted, key=lambda model: float(model.score(val, val_labels)))

    def predict(self, features: Float32Array) -> Int64Array:
        return np.asarray(self._model.predict(features))


def _vectors(images: RGBPixels) -> Float32Array:
    """Shrink images to thumbnails: (N, S, S, 3) → (N, 3072)."""
    small = [np.asarray(Image.fromarray(p).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32) for p in images]
    return np.stack(small).reshape(len(small), -1) / np.float32(255)
