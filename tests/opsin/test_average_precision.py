"""The metric of inputs of several labels, against values worked by hand and scikit-learn's definition."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from opsin.measuring.clip_ladder import average_precision, mean_average_precision


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 / 1 + 2 / 3) / 2),
        ([0.1, 0.2, 0.3, 0.4], [1, 0, 0, 1], (1 / 1 + 2 / 4) / 2),
        ([0.5, 0.5], [1, 0], 1 / 2),
        ([0.5, 0.5, 0.9, 0.5], [0, 1, 1, 0], (1 / 1 + 2 / 4) / 2),
        ([0.3, 0.2, 0.1], [0, 0, 1], 1 / 3),
        ([0.3, 0.2, 0.1], [1, 1, 1], 1.0),
        ([0.7], [1], 1.0),
    ],
    ids=["two of four", "the last one first", "a tie", "a tie of three", "the worst", "all", "one"],
)
def test_precision_counts_where_recall_grows(scores: list[float], truth: list[int], expected: float) -> None:
    assert average_precision(np.array(scores), np.array(truth, np.bool_)) == pytest.approx(expected, abs=1e-15)


def test_labels_that_nothing_has_are_left_out_of_the_mean() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.3, 0.5], [0.7, 0.2, 0.5], [0.6, 0.4, 0.5]])
    truth = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]], np.bool_)
    mean, labels = mean_average_precision(scores, truth)
    assert (mean, labels) == (pytest.approx(((1 + 2 / 3) / 2 + (1 + 2 / 4) / 2) / 2, abs=1e-15), 2)
    with pytest.raises(ValueError, match="no input has a label"):
        mean_average_precision(scores, np.zeros_like(truth))


def test_it_is_the_definition_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    truth = draw.random((200, 12)) < draw.random(12) / 2
    truth[0] = True
    for scores in (draw.random((200, 12)), draw.integers(0, 9, (200, 12)) / 8):  # the second has many ties
        mean, labels = mean_average_precision(scores, truth)
        assert (mean, labels) == (pytest.approx(average_precision_score(truth, scores, average="macro"), abs=1e-12), 12)
