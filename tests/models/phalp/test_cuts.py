"""Cuts of a video are found, and what moves in one shot is none."""

from __future__ import annotations

import numpy as np

from models.phalp.cuts import is_cut


def scene(seed: int) -> np.ndarray:
    """A picture of soft blocks of colour, twice as wide as a frame."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 20, 3)).astype(np.uint8)
    return np.kron(blocks, np.ones((20, 20, 1), np.uint8))


def frame(seed: int, left: int = 0, light: float = 1.0) -> np.ndarray:
    view = scene(seed)[:, left : left + 200].astype(np.float64) * light
    noise = np.random.default_rng(left).normal(0, 3, view.shape)
    return np.clip(view + noise, 0, 255).astype(np.uint8)


def test_another_scene_is_a_cut() -> None:
    assert is_cut(frame(0), frame(1))
    assert is_cut(frame(0), np.zeros_like(frame(0)))


def test_a_moving_camera_a_person_and_noise_are_no_cuts() -> None:
    before = frame(0)
    assert not is_cut(before, frame(0, left=8))
    person = before.copy()
    person[20:110, 60:100] = [90, 60, 40]
    assert not is_cut(before, person)
    assert not is_cut(before, frame(0, light=1.02))
