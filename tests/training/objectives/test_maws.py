"""Hashtags: softmax cross-entropy to targets spread over an image's tags."""

from __future__ import annotations

import pytest
import torch

from tests.training.objectives.cases import assert_same_gradients, gradients, make


def test_target_is_spread_over_tags_and_untagged_do_not_count() -> None:
    objective, batch = make("hashtags")
    values = objective(batch)
    scores = objective.get_submodule("model")(batch["pixels"]).logits.softmax(dim=1)
    losses, hits = [], []
    for row, labels in zip(scores, batch["labels"].tolist(), strict=True):
        tags = [place for place, tagged in enumerate(labels) if tagged]
        if tags:
            losses.append(torch.stack([-row[tag].log() for tag in tags]).mean())
            hits.append(int(row.argmax()) in tags)
    assert len(losses) == 3
    expected = torch.stack(losses).mean()
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert values["accuracy"].item() == pytest.approx(sum(hits) / 3)
    assert_same_gradients(gradients(values["loss"], objective), gradients(expected, objective))


def test_a_batch_without_any_tag_teaches_nothing() -> None:
    objective, batch = make("hashtags")
    values = objective(batch | {"labels": torch.zeros(4, 3)})
    assert values["loss"] == 0
    assert all((gradient == 0).all() for gradient in gradients(values["loss"], objective).values())
