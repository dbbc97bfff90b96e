"""Baselines: the nearest training sample and a linear model, on pixels or other features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from models.arrays import Float32Array, Int64Array
from training.data.load_image import RGBPixels

_SIDE = 32
_STRENGTHS = (1e-4, 1e-2)
"""Inverse regularisation strengths of logistic regression on pixels."""


def nearest_neighbour(train: RGBPixels, train_labels: Int64Array, test: RGBPixels) -> Int64Array:
    """Predict the label of the nearest training image, comparing thumbnails of 32 x 32 pixels."""
    return nearest_features(_vectors(train), train_labels, _vectors(test))


def nearest_features(train: Float32Array, labels: Int64Array, queries: Float32Array) -> Int64Array:
    """Predict the label of the nearest features, (N, values) each."""
    distances = np.square(train).sum(axis=1) - 2 * queries @ train.T  # (N queries, N train), up to a constant per row
    return np.asarray(labels[distances.argmin(axis=1)])


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


class LogisticPixels:
    """`LogisticFeatures` on thumbnails of 32 x 32 pixels."""

    def __init__(self, train: RGBPixels, train_labels: Int64Array, val: RGBPixels, val_labels: Int64Array) -> None:
        self._on_vectors = LogisticFeatures(_vectors(train), train_labels, _vectors(val), val_labels, _STRENGTHS)

    def predict(self, images: RGBPixels) -> Int64Array:
        return self._on_vectors.predict(_vectors(images))


def _vectors(images: RGBPixels) -> Float32Array:
    """Shrink images to thumbnails: (N, S, S, 3) → (N, 3072)."""
    small = [np.asarray(Image.fromarray(p).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32) for p in images]
    return np.stack(small).reshape(len(small), -1) / np.float32(255)
