"""The starter for actions, as it is shipped: on made-up tracks alone, since it must not need a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models import bundle
from models.loading import load
from models.people.keypoints import KEYPOINT_COUNT, ROW_VALUES, TOKEN_VALUES, Poses, encode_tokens
from models.people.track_batch import TrackBatch
from models.systems.lart.model import LART, predict_track

FOLDER = Path(__file__).parents[2] / "bundles/actions-lart/1.0.0"


def test_starter_is_small_and_card_states_number_of_recordings() -> None:
    spec = bundle.read(FOLDER).spec
    assert spec.weights.bytes < 8_000_000
    assert (spec.task, spec.architecture, len(spec.labels)) == ("actions", "lart", 15)
    assert spec.config["pose"]["values"] == TOKEN_VALUES
    assert spec.clip is not None and spec.clip.frames == spec.config["frames"]
    assert "few recordings stand" in (FOLDER / "README.md").read_text()
    assert {package["name"] for package in spec.provenance["data"]["packages"]} == {"pybullet", "holosoma-retargeting", "assimp-testmodels"}


def test_track_of_any_length_gets_all_scores_in_each_frame() -> None:
    model = load(bundle.read(FOLDER)).model
    assert isinstance(model, LART)
    random = np.random.default_rng(0)
    rows = random.uniform(100, 200, (100, ROW_VALUES)).astype(np.float32)
    rows[:, 2 : 3 * KEYPOINT_COUNT : 3] = 0.6
    pose, detected = torch.from_numpy(encode_tokens(Poses.from_rows(rows), 640, 360)), torch.from_numpy(random.random((100, 1)) < 0.9)
    track = TrackBatch(torch.where(detected, pose, 0.0)[None, :, None], detected.float()[None, :, None])
    frames = model.config.frames
    with torch.inference_mode():
        scores = predict_track(model, track, step=frames // 4, margin=frames // 3).actions.sigmoid()
    assert scores.shape == (1, 100, 1, 15)
    assert torch.isfinite(scores).all()
