"""Cuts of a video are found, and what moves in one shot is none."""

from __future__ import annotations

import numpy as np
import pytest

from models.media.shot_boundaries import ShotBoundaryDetector


def scene(seed: int, darkest: int = 0, lightest: int = 256) -> np.ndarray:
    """Draw an image of soft blocks of colour, twice as wide as a frame."""
    blocks = np.random.default_rng(seed).integers(darkest, lightest, (6, 20, 3)).astype(np.uint8)
    return np.kron(blocks, np.ones((20, 20, 1), np.uint8))


def frame(seed: int, left: int = 0, light: float = 1.0, **of_scene: int) -> np.ndarray:
    view = scene(seed, **of_scene)[:, left : left + 200].astype(np.float64) * light
    noise = np.random.default_rng(left).normal(0, 3, view.shape)
    return np.clip(view + noise, 0, 255).astype(np.uint8)


def cut_between(before: np.ndarray, after: np.ndarray) -> bool:
    cuts = ShotBoundaryDetector()
    assert not cuts.is_cut(before), "a video does not begin with a cut"
    return cuts.is_cut(after)


def test_another_scene_is_a_cut() -> None:
    assert cut_between(frame(0), frame(1))
    assert cut_between(frame(0), np.zeros_like(frame(0)))
    assert cut_between(np.zeros_like(frame(0)), frame(0))


def test_another_view_of_one_dark_stage_is_a_cut() -> None:
    """Most of their colours are the same."""
    assert cut_between(frame(0, darkest=20, lightest=80), frame(1, darkest=20, lightest=80))


def test_a_moving_camera_a_person_and_noise_are_no_cuts() -> None:
    before = frame(0)
    assert not cut_between(before, frame(0, left=8))
    person = before.copy()
    person[20:110, 60:100] = [90, 60, 40]
    assert not cut_between(before, person)
    assert not cut_between(before, frame(0, light=1.02))


def test_a_flash_of_light_is_no_cut() -> None:
    assert not cut_between(frame(0, lightest=120), frame(0, light=2.0, lightest=120))
    assert not cut_between(frame(0, light=2.0, lightest=120), frame(0, lightest=120))


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (40, 36), (2160, 16)])
def test_frames_of_any_size_are_looked_at(size: tuple[int, int]) -> None:
    one, other = (np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8) for seed in (0, 0))
    assert not cut_between(one, other)
