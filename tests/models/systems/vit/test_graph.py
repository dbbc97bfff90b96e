"""A ViT as an ONNX graph answers what the model does, for any batch and any merge schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from models.bundle_schema import Preprocess
from models.layers.forward import normalise
from models.merge_schedule import MergeSchedule
from models.systems.onnx.classifier_backend import effective_merge
from models.systems.vit.model import Pool, ViT, ViTConfig
from models.systems.vit.onnx_graph import classifier_graph

PREPROCESS = Preprocess(image_size=32, short_side=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
SCHEDULES = (
    MergeSchedule.off(),
    MergeSchedule.constant(5),
    MergeSchedule.constant(1000),
    MergeSchedule.linear(6, -1.0),
    MergeSchedule.from_list([0, 9]),
)


def network(**fields: Any) -> ViT:
    config = ViTConfig(**{"image_size": 32, "patch_size": 4, "width": 32, "depth": 3, "heads": 2, "classes": 10, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def run(session: onnxruntime.InferenceSession, model: ViT, pixels: np.ndarray, schedule: MergeSchedule) -> np.ndarray:
    merge = np.array(effective_merge(model.config, schedule.expand(model.config.depth)), np.int64)
    logits: np.ndarray = session.run(None, {"pixels": pixels, "merge": merge})[0]
    return logits


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"distilled": True},
        {"class_token": False, "pool": Pool.MEAN},
        {"pool": Pool.MEAN, "proportional_attention": False},
        {"pool": Pool.NORM_MEAN, "tanh_gelu": True, "qkv_bias": False},
        {"pool": Pool.NORM_MEAN_ALL, "class_position": False, "mlp_norm_eps": 1e-3},
        {"patch_size": 8, "patch_width": 4},
        {"joint_width": 6},
        {"pre_norm": True, "quick_gelu": True},
        {"pool": Pool.TOKEN_MEAN},
    ],
    ids=str,
)
def test_the_graph_answers_what_the_model_does(fields: dict[str, Any]) -> None:
    model = network(**fields)
    session = onnxruntime.InferenceSession(classifier_graph(model, PREPROCESS))
    for schedule in SCHEDULES:
        for count in (1, 3):
            pixels = pictures(count)
            expected = model(normalise(torch.from_numpy(pixels), PREPROCESS, torch.float32), merge=schedule).logits
            np.testing.assert_allclose(run(session, model, pixels, schedule), expected, rtol=1e-4, atol=1e-5)


def test_integers_come_close_to_it() -> None:
    model, pixels = network(), pictures(8)
    session = onnxruntime.InferenceSession(classifier_graph(model, PREPROCESS, int8=True))
    expected = model(normalise(torch.from_numpy(pixels), PREPROCESS, torch.float32)).logits
    difference = np.abs(run(session, model, pixels, MergeSchedule.off()) - expected.numpy()).max()
    assert 0 < difference < 0.05 * float(expected.abs().max())


def test_identical_tokens_merge_to_finite_values() -> None:
    model = network()
    session = onnxruntime.InferenceSession(classifier_graph(model, PREPROCESS))
    logits = run(session, model, np.full((2, 32, 32, 3), 255, np.uint8), MergeSchedule.constant(1000))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("fields", [{"reversible": True, "pool": Pool.MEAN}, {"classes": 0}], ids=str)
def test_what_has_no_graph_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="graph"):
        classifier_graph(network(**fields), PREPROCESS)
