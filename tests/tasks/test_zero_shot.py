"""Vectors of images and labels become scores, best first."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from models.bundle import BundleSpec
from server.tasks.embedding.vector_jobs import pack_texts
from server.tasks.embedding.zero_shot import ZeroShotOptions, ZeroShotTask
from tests.support.bundles.image_text import write_tiny_pair

TASK = ZeroShotTask()
COSINES = {"far": -0.9, "near": 0.9, "nearer": 0.95, "nearest": 0.99, "farther": -0.95}


@pytest.fixture
def spec(tmp_path: Path) -> BundleSpec:
    return write_tiny_pair(tmp_path).spec


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_labels_of_equal_score_are_ordered_by_cosine(spec: BundleSpec, scores: Literal["softmax", "sigmoid"]) -> None:
    """If the scale is large, the softmax of far labels is 0, and the sigmoid of near ones 1, in float32."""
    assert spec.text is not None
    spec = spec.model_copy(update={"text": spec.text.model_copy(update={"scale": 5000.0, "scores": scores})})
    plan = TASK.plan(ZeroShotOptions(label=list(COSINES), template=["{}"]), spec)
    outputs: list[dict[str, Any]] = [{"embedding": np.eye(24, dtype=np.float32)[0], "tokens": np.array([17, 17], np.int32)}]
    for job in pack_texts(list(COSINES)):
        cosines = np.zeros(len(job["lengths"]))
        cosines[job["lengths"] > 0] = [list(COSINES.values())[place] for place in job["places"][job["lengths"] > 0]]
        vectors = np.zeros((len(cosines), 24), np.float32)
        vectors[:, 0], vectors[:, 1] = cosines, np.sqrt(1 - cosines**2)
        outputs.append({**job, "embedding": vectors, "truncated": np.zeros(len(cosines), bool)})
    answer: Any = TASK.present(outputs, plan, spec, "application/json")
    assert [one.label for one in answer.results[0].predictions] == ["nearest", "nearer", "near", "far", "farther"]
