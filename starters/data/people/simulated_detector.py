"""Poses of people in space as a detector would see them: people are projected by a virtual camera, and disturbed as the detector errs.

The camera looks along z, x to the right and y down, in metres; frames have a long side of `SIDE` pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from models.people.keypoints import ASSUMED_HEIGHT_M, HIPS, KEYPOINT_COUNT, Poses
from training.recipe_settings import Settings

Floats = NDArray[np.floating[Any]]

SIDE = 640
NEAREST = 0.3
"""Metres before the camera; what is nearer is not seen."""
SMALLEST = 0.12
"""Part of the frame's long side below which the detector finds nobody."""
LIMBS = (
    ((5, 7, 9), (6, 8, 10)),  # arms
    ((11, 13, 15), (12, 14, 16)),  # legs
)
"""Limbs of the left and the right side that are mistaken for each other, or hidden by the trunk."""
LEFT, RIGHT = ([keypoint for limb in LIMBS for keypoint in limb[side]] for side in (0, 1))


class Noise(Settings):
    """How a detector errs; lengths are in heights of the person's box. `python -m starters.make.measure_pose_noise` measures some of it."""

    jitter: float = Field(default=0.012, ge=0)
    """Standard deviation of a keypoint from frame to frame, at a score of 1; it grows as scores fall."""
    bias: float = Field(default=0.015, ge=0)
    """Standard deviation of what stays for the whole window: a detector's notion of a joint is not the motion capture's."""
    swapped: float = Field(default=0.04, ge=0, le=1)
    """Share of frames in which a left limb is taken for the right one; such mistakes last for some frames."""
    far: float = Field(default=0.02, ge=0, le=1)
    """Share of keypoints that are somewhere else."""
    missed: float = Field(default=0.05, ge=0, le=1)
    """Share of frames without a detection of somebody upright."""
    missed_upside_down: float = Field(default=0.4, ge=0, le=1)
    score: float = Field(default=0.6, gt=0, le=1)
    """Mean score of a keypoint that is in sight, and its standard deviation; hidden ones have half of it."""
    score_std: float = Field(default=0.12, ge=0)
    margins: tuple[float, float, float, float] = (0.02, 0.06, 0.02, 0.04)
    """Margins of a box beyond the keypoints: left, top, right, bottom."""


@dataclass(frozen=True)
class Camera:
    turn: Floats
    """(3, 3), from the room's axes to the camera's."""
    place: Floats
    """(3,), in the room."""
    focal: float
    """Pixels."""
    width: int
    height: int

    def project(self, joints: Floats) -> Floats:
        """(..., 3), metres in the room → (..., 3): pixels x and y, and depth."""
        seen = (joints - self.place) @ self.turn.T
        depth = np.maximum(seen[..., 2:], NEAREST)
        pixels = seen[..., :2] / depth * self.focal + np.array([self.width, self.height]) / 2
        return np.concatenate([pixels, seen[..., 2:]], axis=-1)


def drawn(joints: Floats, generator: Generator) -> Camera:
    """A camera from anywhere around people (F, 17, 3), somewhat above or below them, that sees about their size or more."""
    middle = joints.reshape(-1, 3).mean(axis=0)
    extent = max(float(np.linalg.norm(joints[:, HIPS].mean(axis=1) - middle, axis=1).max()), 0.6)
    azimuth, elevation = generator.uniform(0, 2 * np.pi), np.radians(generator.choice([generator.normal(6, 8), generator.uniform(-5, 40)]))
    distance = generator.uniform(3.0, 9.0) + extent
    forward = -np.array([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])
    right = np.cross(forward, np.array([0.0, 1.0, 0.0]))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    roll = np.radians(generator.normal(0, 4))
    right, down = np.cos(roll) * right + np.sin(roll) * down, -np.sin(roll) * right + np.cos(roll) * down
    width, height = (SIDE, SIDE * 9 // 16) if generator.random() < 0.7 else (SIDE * 9 // 16, SIDE)
    share = generator.uniform(0.3, 0.95)  # of the frame's height that a person of 1.7 m would take
    focal = min(share * height * distance / ASSUMED_HEIGHT_M, 0.5 * max(width, height) * distance / extent)
    aim = middle + generator.normal(0, 0.2, 3)
    return Camera(np.stack([right, down, forward]), aim - distance * forward, focal, width, height)


def seen(joints: Floats, camera: Camera, noise: Noise, generator: Generator) -> tuple[Poses, NDArray[np.bool_]]:
    """One person (F, 17, 3) as the detector tells of them: a row of poses for each frame, and in which frames it found them."""
    projected = camera.project(joints)  # (F, 17, 3)
    frames = len(joints)
    pixels, depth = projected[..., :2].copy(), projected[..., 2]
    tall = np.maximum(np.ptp(pixels[..., 1], axis=1), 0.3 * np.ptp(pixels[..., 0], axis=1))  # (F,), about the box's height
    tall = np.maximum(tall, 1.0)
    hidden = _hidden(pixels, depth)
    scores = noise.score * generator.normal(1, 0.1) + generator.normal(0, noise.score_std, (frames, KEYPOINT_COUNT))
    scores = np.clip(np.where(hidden, 0.5 * scores, scores), 0.02, 1.0)
    pixels = _swap(pixels, noise.swapped, generator)
    steady = generator.normal(0, noise.bias, (1, KEYPOINT_COUNT, 2))
    shaking = generator.normal(0, noise.jitter, (frames, KEYPOINT_COUNT, 2)) * (1.6 - scores[..., None]) / 0.8
    astray = (generator.random((frames, KEYPOINT_COUNT, 1)) < noise.far) * generator.normal(0, 0.15, (frames, KEYPOINT_COUNT, 2))
    pixels = pixels + (steady + shaking + astray) * tall[:, None, None]
    boxes = _boxes(pixels, tall, noise, camera, generator)
    keypoints = np.concatenate([pixels, scores[..., None]], axis=2)
    return Poses(keypoints, boxes), _found(joints, boxes, depth, camera, noise, generator)


def _hidden(pixels: Floats, depth: Floats) -> NDArray[np.bool_]:
    """(F, 17): limbs behind the trunk, or the far one of two that are one behind the other."""
    hidden = np.zeros(depth.shape, np.bool_)
    tall = np.maximum(np.ptp(pixels[..., 1], axis=1, keepdims=True), 1)
    close = np.linalg.norm(pixels[:, LEFT] - pixels[:, RIGHT], axis=2) < 0.08 * tall  # (F, 6)
    hidden[:, LEFT] = close & (depth[:, LEFT] > depth[:, RIGHT] + 0.05)
    hidden[:, RIGHT] = close & (depth[:, RIGHT] > depth[:, LEFT] + 0.05)
    away = depth[:, 0] > depth[:, 3:5].mean(axis=1)  # the face looks away from the camera
    hidden[:, :3] |= away[:, None]
    return hidden


def _swap(pixels: Floats, share: float, generator: Generator) -> Floats:
    swapped = pixels.copy()
    for left, right in LIMBS:
        chosen = np.flatnonzero(_bursts(len(pixels), share, 3.0, generator))[:, None]
        swapped[chosen, [*left, *right]] = pixels[chosen, [*right, *left]]
    return swapped


def _boxes(pixels: Floats, tall: Floats, noise: Noise, camera: Camera, generator: Generator) -> Floats:
    """(F, 5): around the keypoints, inside the frame."""
    low, high = pixels.min(axis=1), pixels.max(axis=1)  # (F, 2)
    left, top, right, bottom = np.array(noise.margins)[:, None] * tall + generator.normal(0, 0.3 * noise.jitter, (4, len(pixels))) * tall
    bounds = np.array([camera.width, camera.height])
    low = np.clip(low - np.stack([left, top], axis=1), 0, bounds)
    high = np.clip(high + np.stack([right, bottom], axis=1), 0, bounds)
    scores = np.clip(generator.normal(0.5, 0.1) + generator.normal(0, 0.05, len(pixels)), 0.25, 1.0)
    return np.concatenate([low, high - low, scores[:, None]], axis=1)


def _found(joints: Floats, boxes: Floats, depth: Floats, camera: Camera, noise: Noise, generator: Generator) -> NDArray[np.bool_]:
    """(F,): not what is behind the camera or mostly outside its frame, nor what the detector misses, the upside-down more often."""
    upside_down = joints[:, 0, 1] < joints[:, HIPS, 1].mean(axis=1)
    missed = _bursts(len(joints), noise.missed, 2.0, generator)
    missed |= upside_down & _bursts(len(joints), noise.missed_upside_down, 3.0, generator)
    large = boxes[:, 2:4].max(axis=1) > SMALLEST * max(camera.width, camera.height)
    inside = (boxes[:, 2:4].min(axis=1) > 0) & large & (depth.min(axis=1) > NEAREST)
    return np.asarray(inside & ~missed)


def _bursts(frames: int, share: float, length: float, generator: Generator) -> NDArray[np.bool_]:
    """(frames,): True in about a `share` of them, in runs of about `length`."""
    chosen = np.zeros(frames, np.bool_)
    for start in np.flatnonzero(generator.random(frames) < share / length):
        chosen[start : start + generator.geometric(1 / length)] = True
    return chosen
