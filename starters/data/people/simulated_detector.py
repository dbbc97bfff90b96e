"""Simulated pose detector: people are projected by a virtual camera, then disturbed with a detector's errors.

The camera looks along z, x to the right and y down, in metres; frames have a long side of `SIDE` pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from models.arrays import FloatArray
from models.people.keypoints import ASSUMED_HEIGHT_M, HIPS, KEYPOINT_COUNT, Poses
from training.recipe_settings import RecipeSettings

SIDE = 640
MIN_DEPTH_M = 0.3
"""Distance in metres from the camera within which people are not detected."""
MIN_SIDE = 0.12
"""Minimum long side of a detected box, as a share of the frame's long side."""
LIMBS = (
    ((5, 7, 9), (6, 8, 10)),  # arms
    ((11, 13, 15), (12, 14, 16)),  # legs
)
"""Limbs of the left and right side, which can be mistaken for each other or hidden by the trunk."""
LEFT, RIGHT = ([keypoint for limb in LIMBS for keypoint in limb[side]] for side in (0, 1))


class Noise(RecipeSettings):
    """Errors of a detector. Lengths are in heights of the person's box."""

    jitter: float = Field(default=0.012, ge=0)
    """Standard deviation of a keypoint from frame to frame at a score of 1; it grows as scores fall."""
    bias: float = Field(default=0.015, ge=0)
    """Standard deviation of an offset for the whole window: detectors and motion capture place joints differently."""
    swapped: float = Field(default=0.04, ge=0, le=1)
    """Share of frames in which left and right limbs are swapped; swaps last for some frames."""
    far: float = Field(default=0.02, ge=0, le=1)
    """Share of keypoints that are outliers."""
    missed: float = Field(default=0.05, ge=0, le=1)
    """Share of frames in which an upright person is not detected."""
    missed_upside_down: float = Field(default=0.4, ge=0, le=1)
    score: float = Field(default=0.6, gt=0, le=1)
    """Mean score of a visible keypoint; hidden ones have half of it."""
    score_std: float = Field(default=0.12, ge=0)
    margins: tuple[float, float, float, float] = (0.02, 0.06, 0.02, 0.04)
    """Margins of a box beyond the keypoints: left, top, right, bottom."""


@dataclass(frozen=True)
class VirtualCamera:
    rotation: FloatArray
    """Rotation (3, 3) from the room's axes to the camera's."""
    position: FloatArray
    """Position (3,) in the room, in metres."""
    focal: float
    """Focal length in pixels."""
    width: int
    height: int

    def project(self, joints: FloatArray) -> FloatArray:
        """Project points (..., 3), metres in the room, to pixels x and y, and depth: (..., 3)."""
        local = (joints - self.position) @ self.rotation.T
        depth = np.maximum(local[..., 2:], MIN_DEPTH_M)
        pixels = local[..., :2] / depth * self.focal + np.array([self.width, self.height]) / 2
        return np.concatenate([pixels, local[..., 2:]], axis=-1)


def draw_camera(joints: FloatArray, generator: Generator) -> VirtualCamera:
    """Draw a camera anywhere around people (F, 17, 3), somewhat above or below them, whose view is about their size or larger."""
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
    return VirtualCamera(np.stack([right, down, forward]), aim - distance * forward, focal, width, height)


def detect(joints: FloatArray, camera: VirtualCamera, noise: Noise, generator: Generator) -> tuple[Poses, NDArray[np.bool_]]:
    """Detect one person (F, 17, 3): return poses, one row per frame, and whether each frame has a detection, (F,)."""
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
    return Poses(keypoints, boxes), _draw_detected(joints, boxes, depth, camera, noise, generator)


def _hidden(pixels: FloatArray, depth: FloatArray) -> NDArray[np.bool_]:
    """Return whether keypoints are hidden, (F, 17): the farther of two overlapping limbs, and a face that looks away."""
    hidden = np.zeros(depth.shape, np.bool_)
    tall = np.maximum(np.ptp(pixels[..., 1], axis=1, keepdims=True), 1)
    close = np.linalg.norm(pixels[:, LEFT] - pixels[:, RIGHT], axis=2) < 0.08 * tall  # (F, 6)
    hidden[:, LEFT] = close & (depth[:, LEFT] > depth[:, RIGHT] + 0.05)
    hidden[:, RIGHT] = close & (depth[:, RIGHT] > depth[:, LEFT] + 0.05)
    away = depth[:, 0] > depth[:, 3:5].mean(axis=1)
    hidden[:, :3] |= away[:, None]
    return hidden


def _swap(pixels: FloatArray, share: float, generator: Generator) -> FloatArray:
    swapped = pixels.copy()
    for left, right in LIMBS:
        chosen = np.flatnonzero(_bursts(len(pixels), share, 3.0, generator))[:, None]
        swapped[chosen, [*left, *right]] = pixels[chosen, [*right, *left]]
    return swapped


def _boxes(pixels: FloatArray, tall: FloatArray, noise: Noise, camera: VirtualCamera, generator: Generator) -> FloatArray:
    """Draw boxes around the keypoints, clipped to the frame: (F, 5)."""
    low, high = pixels.min(axis=1), pixels.max(axis=1)  # (F, 2)
    left, top, right, bottom = np.array(noise.margins)[:, None] * tall + generator.normal(0, 0.3 * noise.jitter, (4, len(pixels))) * tall
    bounds = np.array([camera.width, camera.height])
    low = np.clip(low - np.stack([left, top], axis=1), 0, bounds)
    high = np.clip(high + np.stack([right, bottom], axis=1), 0, bounds)
    scores = np.clip(generator.normal(0.5, 0.1) + generator.normal(0, 0.05, len(pixels)), 0.25, 1.0)
    return np.concatenate([low, high - low, scores[:, None]], axis=1)


def _draw_detected(
    joints: FloatArray, boxes: FloatArray, depth: FloatArray, camera: VirtualCamera, noise: Noise, generator: Generator
) -> NDArray[np.bool_]:
    """Draw whether frames have a detection, (F,): not behind the camera or outside of the frame, less often upside down."""
    upside_down = joints[:, 0, 1] < joints[:, HIPS, 1].mean(axis=1)
    missed = _bursts(len(joints), noise.missed, 2.0, generator)
    missed |= upside_down & _bursts(len(joints), noise.missed_upside_down, 3.0, generator)
    large = boxes[:, 2:4].max(axis=1) > MIN_SIDE * max(camera.width, camera.height)
    inside = (boxes[:, 2:4].min(axis=1) > 0) & large & (depth.min(axis=1) > MIN_DEPTH_M)
    return np.asarray(inside & ~missed)


def _bursts(frames: int, share: float, length: float, generator: Generator) -> NDArray[np.bool_]:
    """Draw a mask (frames,) that is True in about a `share` of the frames, in runs of about `length`."""
    chosen = np.zeros(frames, np.bool_)
    for start in np.flatnonzero(generator.random(frames) < share / length):
        chosen[start : start + generator.geometric(1 / length)] = True
    return chosen
