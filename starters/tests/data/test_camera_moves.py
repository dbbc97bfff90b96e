"""Clips of camera moves: their pictures, their splits, and that they show what their labels say."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle_schema import Clip, Preprocess
from starters.data.clips.camera_moves import CameraClips, CameraMoves
from starters.data.clips.camera_paths import MOVES
from starters.data.clips.video_augmentation import decode
from starters.data.images.package_images import Part
from starters.evaluation.clips import features_of
from starters.tests import moving
from training import recipe
from training.data.source import SamplePreparation
from training.errors import DataError

RECIPE = Path("starters/recipes/clips.yaml")
AXIS = {"pan": 0, "tilt": 1, "zoom": 2, "roll": 3}
"""Place among the features of optical flow."""
SIGN = {"pan left": 1, "pan right": -1, "tilt up": 1, "tilt down": -1, "zoom in": 1, "zoom out": -1, "roll clockwise": -1}
"""How what is seen moves: against the camera, which turns with x to the right and y down."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moving")


@pytest.fixture(scope="module")
def content(cache: Path) -> dict[str, Any]:
    return moving.data(cache)


def open_source(content: dict[str, Any], cache: Path, **changes: Any) -> CameraClips:
    preparation = SamplePreparation(Preprocess.model_validate(moving.PREPROCESS), Clip.model_validate(moving.CLIP), cache=cache)
    return CameraMoves.model_validate({**content, **changes}).open(preparation)


def test_images_are_kept_by_part_and_empty_ones_left_out(content: dict[str, Any], cache: Path) -> None:
    stills = open_source(content, cache).stills
    grounds: dict[Part, list[str]] = {
        part: [Path(entry.name).stem for entry in stills.entries_of(part, "ground")] for part in ("train", "val", "test")
    }
    assert grounds == {"train": ["field-1", "meadow-1"], "val": ["hill-1"], "test": ["lake-1"]}
    [ball] = stills.entries_of("train", "cutout")
    assert Path(ball.name).stem == "ball-cutout" and ball.shape == (32, 32, 4)
    assert (stills.read(ball) == (200, 40, 40, 255)).all()  # its transparent margin is cut off


def test_a_part_without_pictures_is_refused(content: dict[str, Any], cache: Path) -> None:
    [package] = content["packages"]
    without = package | {"pictures": [row for row in package["pictures"] if row.get("part") != "val"]}
    with pytest.raises(DataError, match="no ground belongs to val"):
        open_source(content | {"packages": [without]}, cache, part="val")


def test_a_sample_and_a_video_are_the_same_every_time(content: dict[str, Any], cache: Path) -> None:
    first, again = open_source(content, cache), open_source(content, cache)
    one, same, other = first.sample(3, 7), again.sample(3, 7), first.sample(3, 8)
    assert one["clip"].shape == (3, 8, 48, 48) and int(one["label"]) == 3
    assert torch.equal(one["clip"], same["clip"]) and not torch.equal(one["clip"], other["clip"])
    seen, seen_again, held_out = (
        decode(source.video(12, 0.3, 48).content) for source in (first, again, open_source(content, cache, part="test"))
    )
    assert np.array_equal(seen, seen_again) and not np.array_equal(seen, held_out)


def test_each_move_looks_like_its_name(content: dict[str, Any], cache: Path) -> None:
    """Check the direction by optical flow, which the renderer does not use."""
    source = open_source(content, cache, rooms=0.0, coded=0.0)
    for label, move in enumerate(MOVES):
        if move not in SIGN:
            continue
        seen = []
        for draw in range(5):
            clip = source.sample(label, draw)["clip"]
            pixels = ((clip * 0.225 + 0.45) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)
            seen.append(SIGN[move] * features_of(np.ascontiguousarray(pixels.numpy()))[AXIS[move.split()[0]]])
        assert np.median(seen) > 0.003, move


def test_a_video_has_the_length_and_rate_that_it_says(content: dict[str, Any], cache: Path) -> None:
    source = open_source(content, cache)
    for index in range(6):
        video = source.video(index, 0.5, 48)
        frames = decode(video.content)
        assert len(frames) == round(0.5 * video.rate) and min(frames.shape[1:3]) == 48 and video.label == index


def test_nothing_that_the_starter_is_evaluated_on_is_trained_on() -> None:
    data = recipe.read(RECIPE).data
    assert isinstance(data, CameraMoves)
    for package in data.packages:
        for role in ("ground", "cutout"):
            rows = [row for row in package.pictures if row.role == role and row.library is None]
            trained = [row for row in rows if row.part == "train"]
            for row in (row for row in rows if row.part != "train"):
                for pattern in row.files:
                    file = pattern.replace("**/*", "any").replace("*", "any")
                    taken = any(fnmatchcase(file, one) for entry in trained for one in entry.files)
                    left_out = any(fnmatchcase(file, one) for entry in trained for one in entry.without)
                    assert not taken or left_out, file
        libraries = [row.library for row in package.pictures if row.library]
        assert len(libraries) == len(set(libraries))
