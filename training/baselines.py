"""What a trained model must beat: the nearest of the drawings it was trained on, and a linear model, both on pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.data.pictures import Pixels

_SIDE = 32
_STRENGTHS = (1e-4, 1e-2)

Labels = npt.NDArray[np.int64]


def nearest_neighbour(train: Pixels, train_labels: Labels, test: Pixels) -> Labels:
    """Predicted labels of `test`: the label of the training picture at the least squared distance, as thumbnails of 32 x 32 pixels."""
    known, asked = _vectors(train), _vectors(test)
    distances = np.square(known).sum(axis=1) - 2 * asked @ known.T  # (N test, N train), up to a constant of the row
    return np.asarray(train_labels[distances.argmin(axis=1)])


class LogisticPixels:
    """Multinomial logistic regression on standardised 32 x 32 pixels, its strength chosen on validation pictures."""

    def __init__(self, train: Pixels, train_labels: Labels, val: Pixels, val_labels: Labels) -> None:
        from sklearn.linear_model import LogisticRegression  # takes seconds to import
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        fitted = [
            make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100, tol=1e-3)).fit(_vectors(train), train_labels)
            for strength in _STRENGTHS
        ]
        self._model = max(fitted, key=lambda model: float(model.score(_vectors(val), val_labels)))

    def predict(self, pictures: Pixels) -> Labels:
        return np.asarray(self._model.predict(_vectors(pictures)))


def _vectors(pictures: Pixels) -> npt.NDArray[np.float32]:
    """(N, S, S, 3) → (N, 3072)."""
    small = [np.asarray(Image.fromarray(p).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32) for p in pictures]
    return np.stack(small).reshape(len(small), -1) / np.float32(255)
