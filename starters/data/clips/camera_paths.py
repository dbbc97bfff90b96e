"""Camera moves: position and orientation of a camera over time, by the name of its move.

Axes are those of the camera before it moves: x to the right, y down, z ahead. Angles are in radians, distances in units of the image that
the camera looks at, which is at distance 1, or of a room. A displacement of 1 is half of the frame's short side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from models.arrays import Float32Array, Float64Array

MOVES = (
    "still",
    "pan left",
    "pan right",
    "tilt up",
    "tilt down",
    "zoom in",
    "zoom out",
    "roll clockwise",
    "roll counterclockwise",
    "shake",
)
"""Names of moves from the camera operator's view. Turning and sliding look alike in a short clip, as do zooming and walking ahead."""

_STEADY = 0.006
"""Maximum displacement (rms) of a camera held still."""
_HAND = 0.1
"""Maximum tremble (rms) of a moving camera, as a share of its move per second."""
_SHAKES = (0.035, 0.13)
"""Displacement (rms) of a shake."""
_SPEEDS = {"pan": (0.14, 1.7), "tilt": (0.14, 1.7), "zoom": (0.13, 0.75), "roll": (0.12, 1.1)}
"""Ranges per second of displacement, logarithm of the scale, and radians; drawn log-uniformly."""
_MAX_SECOND_MOVE = 0.12
"""Maximum speed of a second move, as a share of the labelled one's."""


@dataclass(frozen=True)
class CameraPath:
    """Position and orientation of a camera over time, (T,) each."""

    yaw: Float64Array
    """Angle to the right."""
    pitch: Float64Array
    """Angle up."""
    roll: Float64Array
    """Clockwise angle."""
    lens: Float64Array
    """Focal length in half frames."""
    place: Float64Array
    """(T, 3)."""

    @property
    def turns(self) -> Float32Array:
        """Rotations (T, 3, 3) from each frame's directions to the first frame's."""
        return (_rotations(1, self.yaw) @ _rotations(0, self.pitch) @ _rotations(2, self.roll)).astype(np.float32)


@dataclass(frozen=True)
class Stage:
    """Facts of a scene that decide how a camera may move in it."""

    lens: float
    """Focal length in half frames before any zoom."""
    slides: float
    """Probability that a pan slides and a zoom walks."""
    distance: float
    """Approximate distance of the scene, at which a slide and a turn displace it equally."""
    ahead: float
    """Distance that a second of the fastest walk covers."""
    widest_turn: float
    """Maximum turn in radians; wider moves slide."""
    farthest_slide: float
    """Maximum distance of a slide; farther moves turn."""


def draw_path(move: str, times: Float64Array, duration: float, stage: Stage, generator: np.random.Generator) -> CameraPath:
    """Draw a path with a move. times: seconds (T,), within `duration`."""
    still = np.zeros_like(times)
    path = CameraPath(still, still, still, np.full_like(times, stage.lens), np.zeros((len(times), 3)))
    if move == "shake":
        return _add_tremble(path, float(generator.uniform(*_SHAKES)), (2.5, 7.5), times, generator)
    kind, _, way = move.partition(" ")
    if kind == "still":
        rest = 0.0 if generator.random() < 0.4 else float(generator.uniform(0, _STEADY))
        return _add_tremble(path, rest, (0.3, 6.0), times, generator)
    sign = -1.0 if way in ("left", "down", "out", "counterclockwise") else 1.0
    low, high = _SPEEDS[kind]
    speed = low * (high / low) ** generator.random()
    done = _ease(times / duration, generator) * duration
    path = _add_move(path, kind, sign * speed * done, stage, generator)
    if generator.random() < 0.3:
        other = str(generator.choice([name for name in _SPEEDS if name != kind]))
        share = float(generator.uniform(-_MAX_SECOND_MOVE, _MAX_SECOND_MOVE)) * speed / high * _SPEEDS[other][1]
        path = _add_move(path, other, share * done, stage, generator)
    hand = float(generator.uniform(0, min(_HAND * speed * _SPEEDS["pan"][1] / high, 0.03))) if generator.random() < 0.6 else 0.0
    return _add_tremble(path, hand, (0.3, 5.0), times, generator)


def _add_move(path: CameraPath, kind: str, amount: Float64Array, stage: Stage, generator: np.random.Generator) -> CameraPath:
    """Add a move to a path. amount (T,): displacement, logarithm of the scale, or radians."""
    if kind == "roll":
        return replace(path, roll=path.roll + amount)
    slides = bool(generator.random() < stage.slides)
    if kind == "zoom":
        if not slides:
            return replace(path, lens=path.lens * np.exp(amount))
        walked = amount * (stage.ahead / _SPEEDS["zoom"][1])
        return replace(path, place=path.place + np.outer(walked, (0, 0, 1)))
    angle = amount / stage.lens
    farthest = float(np.abs(angle).max())
    if (slides and farthest * stage.distance <= stage.farthest_slide) or farthest > stage.widest_turn:
        axis = (1, 0, 0) if kind == "pan" else (0, -1, 0)
        return replace(path, place=path.place + np.outer(angle * stage.distance, axis))
    return replace(path, yaw=path.yaw + angle) if kind == "pan" else replace(path, pitch=path.pitch + angle)


def _add_tremble(
    path: CameraPath, amount: float, rates: tuple[float, float], times: Float64Array, generator: np.random.Generator
) -> CameraPath:
    """Add trembling to a path. amount: displacement (rms); rates: in hertz."""
    if not amount:
        return path
    tilt = float(generator.uniform(0, 2 * math.pi)) if generator.random() < 0.3 else math.pi / 4
    yaw, pitch, roll = (_tremble(times, rates, generator) for _ in range(3))
    scale = amount * math.sqrt(2) / float(path.lens[0])
    return replace(
        path,
        yaw=path.yaw + scale * math.cos(tilt) * yaw,
        pitch=path.pitch + scale * math.sin(tilt) * pitch,
        roll=path.roll + float(generator.uniform(0, 0.4)) * amount * roll,
    )


def _tremble(times: Float64Array, rates: tuple[float, float], generator: np.random.Generator) -> Float64Array:
    """Draw a sum of three sines of random rates and phases, of root mean square 1."""
    rate, phase, weight = generator.uniform(*rates, 3), generator.uniform(0, 2 * math.pi, 3), generator.uniform(0.2, 1, 3)
    waves = np.sin(2 * math.pi * np.outer(times, rate) + phase)  # (T, 3)
    return np.asarray(waves @ weight * math.sqrt(2 / float(weight @ weight)))


def _ease(share: Float64Array, generator: np.random.Generator) -> Float64Array:
    """Map the share of time to the share of the move, both in 0..1: linear, eased at both ends, or accelerating (or slowing)."""
    if generator.random() < 0.3:
        return share
    ends, bend = float(generator.uniform(0, 0.6)), float(generator.uniform(-0.35, 0.35))
    return np.asarray(share - ends * np.sin(2 * math.pi * share) / (2 * math.pi) + bend * share * (share - 1))


def _rotations(axis: int, angles: Float64Array) -> Float64Array:
    """Return rotations (T, 3, 3) about an axis, with the signs of `CameraPath`."""
    cos, sin = np.cos(angles), np.sin(angles)
    one, none = np.ones_like(angles), np.zeros_like(angles)
    rows = {
        0: ((one, none, none), (none, cos, -sin), (none, sin, cos)),
        1: ((cos, none, sin), (none, one, none), (-sin, none, cos)),
        2: ((cos, -sin, none), (sin, cos, none), (none, none, one)),
    }[axis]
    return np.moveaxis(np.array(rows), 2, 0)
