"""What a trained model must beat: the most frequent label, and a linear model on pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.data.pictures import Pixels

_SIDE = 32
_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

Labels = npt.NDArray[np.int64]


def majority(train: Sequence[int], count: int) -> Labels:
    """The training split's most frequent label, `count` times."""
    return np.full(count, np.bincount(train).argmax())


def logistic_regression(train: Pixels, train_labels: Labels, val: Pixels, val_labels: Labels, test: Pixels) -> Labels:
    """Predicted labels of `test`: multinomial logistic regression on standardised 32 x 32 pixels, its strength chosen on `val`."""
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500)).fit(_vectors(train), train_labels)
        for strength in _STRENGTHS
    ]
    best = max(fitted, key=lambda model: float(model.score(_vectors(val), val_labels)))
    return np.asarray(best.predict(_vectors(test)))


def _vectors(pictures: Pixels) -> npt.NDArray[np.float32]:
    """(N, S, S, 3) → (N, 3072)."""
    small = [np.asarray(Image.fromarray(p).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32) for p in pictures]
    return np.stack(small).reshape(len(small), -1) / np.float32(255)
