"""A clip of two figures that pose detectors take for people: one walks past, the other stands and then waves both arms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starters.make.drawings.solids import DrawingCamera, Point, Solid, capsule, ellipsoid, render

RATE, SECONDS = 15, 8
WIDTH, HEIGHT = 384, 256
CAMERA = DrawingCamera(eye=(0.0, 1.35, 4.9), target=(0.0, 0.92, 0.0), fov=46.0, width=WIDTH, height=HEIGHT)
HORIZON = 176
THUMBNAIL = (slice(30, 226), slice(190, 386))
"""Rows and columns of a frame."""
WALL, FLOOR = (206, 210, 204), (150, 140, 128)
SKIN, HAIR, EYE, TROUSERS, SHOES = (224, 172, 140), (60, 40, 30), (20, 20, 20), (50, 52, 66), (150, 60, 50)
STRIDES_A_SECOND = 0.9
SWING, KNEE, ARM = 0.5, 0.55, 0.45
"""Angles in radians to either side while walking."""


@dataclass(frozen=True)
class Pose:
    """Pose of a figure: forward angles of legs and arms in radians, (left, right)."""

    hips: Point
    facing: float
    """Heading in degrees: 0 walks to the right, 90 towards the camera."""
    thighs: tuple[float, float]
    knees: tuple[float, float]
    arms: tuple[float, float]
    raised: float = 0.1
    """Sideways angle of the upper arms in radians."""


def frames() -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of the clip, (HEIGHT, WIDTH, 3) each, at RATE per second."""
    return (frame(number) for number in range(RATE * SECONDS))


def frame(number: int) -> NDArray[np.uint8]:
    """Draw one frame, (HEIGHT, WIDTH, 3)."""
    time = number / RATE
    background = np.full((HEIGHT, WIDTH, 3), WALL, np.uint8)
    background[HORIZON:] = FLOOR
    view = render((*figure(walking(time), (40, 90, 160)), *figure(waving(time), (176, 120, 40))), CAMERA)
    return np.where((view.depth > 0)[..., None], view.colours, background)


def walking(time: float) -> Pose:
    phase = 2 * np.pi * STRIDES_A_SECOND * time
    phases = (phase, phase + np.pi)
    return Pose(
        hips=(-2.0 + 0.5 * time, 0.93 + 0.02 * np.cos(2 * phase), 0.5),
        facing=0,
        thighs=(SWING * np.sin(phases[0]), SWING * np.sin(phases[1])),
        knees=(_bent(phases[0]), _bent(phases[1])),
        arms=(-ARM * np.sin(phases[0]), -ARM * np.sin(phases[1])),
    )


def waving(time: float) -> Pose:
    lifted = np.clip(time - 4, 0, 1)
    raised = 0.12 + lifted * (2.3 + 0.4 * np.sin(2 * np.pi * 1.2 * time))
    return Pose(hips=(1.1, 0.93, -0.7), facing=80, thighs=(0.02, -0.02), knees=(0.05, 0.05), arms=(0.1, 0.1), raised=float(raised))


def figure(pose: Pose, shirt: tuple[int, int, int]) -> list[Solid]:
    turn = np.radians(pose.facing)
    front = np.array([np.cos(turn), 0, np.sin(turn)])
    left = np.array([np.sin(turn), 0, -np.cos(turn)])
    up = np.array([0.0, 1, 0])
    hips = np.asarray(pose.hips, float)
    neck = hips + 0.5 * up + 0.03 * front
    head = neck + 0.2 * up + 0.03 * front
    solids = [
        Solid(shirt, capsule(hips + 0.06 * up, neck - 0.1 * up, 0.125, 0.15)),
        Solid(shirt, capsule(neck - 0.04 * up + 0.19 * left, neck - 0.04 * up - 0.19 * left, 0.075)),
        Solid(TROUSERS, capsule(hips + 0.09 * left, hips - 0.09 * left, 0.105)),
        Solid(SKIN, capsule(neck, head, 0.055)),
        Solid(SKIN, ellipsoid(head + 0.01 * front, (0.09, 0.125, 0.09))),
        Solid(SKIN, ellipsoid(head + 0.105 * front - 0.01 * up, (0.02, 0.025, 0.02))),
        Solid(HAIR, ellipsoid(head - 0.03 * front + 0.045 * up, (0.092, 0.105, 0.092))),
    ]
    for side, thigh, knee, arm in zip((1, -1), pose.thighs, pose.knees, pose.arms, strict=True):
        hip, shoulder = hips + 0.09 * side * left, neck - 0.04 * up + 0.19 * side * left
        knee_at = hip + 0.44 * _down(front, thigh)
        ankle = knee_at + 0.43 * _down(front, thigh - knee)
        toe = ankle + 0.15 * _ahead(front, thigh - knee) - 0.03 * up
        out = side * left
        elbow = shoulder + 0.29 * (np.cos(pose.raised) * _down(front, arm) + np.sin(pose.raised) * out)
        wrist = elbow + 0.26 * (np.cos(pose.raised) * _down(front, arm + 0.35) + np.sin(pose.raised) * out)
        hand = wrist + 0.05 * (wrist - elbow) / 0.26
        solids += [
            Solid(EYE, ellipsoid(head + 0.088 * front + 0.025 * up + 0.033 * out, (0.015, 0.013, 0.015))),
            Solid(SKIN, ellipsoid(head - 0.01 * front + 0.084 * out, (0.02, 0.034, 0.02))),
            Solid(shirt, capsule(shoulder, elbow, 0.062, 0.05)),
            Solid(SKIN, capsule(elbow, wrist, 0.043, 0.034)),
            Solid(SKIN, capsule(wrist, hand, 0.036)),
            Solid(TROUSERS, capsule(hip, knee_at, 0.095, 0.065)),
            Solid(TROUSERS, capsule(knee_at, ankle, 0.062, 0.045)),
            Solid(SHOES, capsule(ankle - 0.03 * front - 0.03 * up, toe - 0.02 * up, 0.05, 0.042)),
        ]
    return solids


def _bent(phase: float) -> float:
    return 0.15 + KNEE * max(0.0, float(np.sin(phase + np.pi / 2 + 0.3)))


def _down(front: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Return the direction of a hanging limb that is swung forwards by an angle in radians."""
    hanging: NDArray[np.float64] = np.sin(angle) * front - np.cos(angle) * np.array([0.0, 1, 0])
    return hanging


def _ahead(front: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    ahead: NDArray[np.float64] = np.cos(angle) * front + np.sin(angle) * np.array([0.0, 1, 0])
    return ahead
