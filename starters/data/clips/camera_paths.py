"""Camera moves: where a camera stands and looks over time, by the name of its move.

Axes are those of the camera before it moves: x to the right, y down, z ahead. Angles are in radians, distances in units of the picture that
the camera looks at, which is at distance 1, or of a room. A displacement of 1 is half of the frame's short side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

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
"""As somebody who holds the camera would name them; turns are those of the camera, seen from behind it. In a second, a camera that turns
and one that slides look alike, and so do a lens that zooms and a camera that walks ahead."""

_STEADY = 0.006
"""Largest displacement (rms) of a hand that holds still."""
_HAND = 0.1
"""Largest tremble (rms) of a hand that moves, in parts of the move in a second."""
_SHAKES = (0.035, 0.13)
"""Displacement (rms) of a shake."""
_SPEEDS = {"pan": (0.14, 1.7), "tilt": (0.14, 1.7), "zoom": (0.13, 0.75), "roll": (0.12, 1.1)}
"""A second: displacement, logarithm of the scale, radians. Drawn evenly in their logarithm."""
_ASIDE = 0.12
"""Largest share of a second move beside the one that counts."""


@dataclass(frozen=True)
class Path:
    """Values over time (T,)."""

    yaw: Values
    """To the right."""
    pitch: Values
    """Up."""
    roll: Values
    """Clockwise."""
    lens: Values
    """Focal length in half frames."""
    place: Values
    """(T, 3)."""

    @property
    def turns(self) -> npt.NDArray[np.float32]:
        """Directions of the camera → directions of its first frame, (T, 3, 3)."""
        return (_about(1, self.yaw) @ _about(0, self.pitch) @ _about(2, self.roll)).astype(np.float32)


@dataclass(frozen=True)
class Stage:
    """Facts of a scene that decide how a camera may move in it."""

    lens: float
    """Focal length in half frames before any zoom."""
    slides: float
    """Probability that a pan slides and a zoom walks."""
    distance: float
    """Distance of what it looks at, about: a slide there displaces it as a turn does."""
    ahead: float
    """Distance that a second of the fastest walk covers."""
    widest_turn: float
    """Radians: beyond them it slides."""
    farthest_slide: float
    """Distance: beyond it it turns."""


def draw_path(move: str, times: Values, duration: float, stage: Stage, generator: np.random.Generator) -> Path:
    """times: seconds (T,), within `duration`."""
    still = np.zeros_like(times)
    path = Path(still, still, still, np.full_like(times, stage.lens), np.zeros((len(times), 3)))
    if move == "shake":
        return _trembling(path, float(generator.uniform(*_SHAKES)), (2.5, 7.5), times, generator)
    kind, _, way = move.partition(" ")
    if kind == "still":
        rest = 0.0 if generator.random() < 0.4 else float(generator.uniform(0, _STEADY))
        return _trembling(path, rest, (0.3, 6.0), times, generator)
    sign = -1.0 if way in ("left", "down", "out", "counterclockwise") else 1.0
    low, high = _SPEEDS[kind]
    speed = low * (high / low) ** generator.random()
    done = _eased(times / duration, generator) * duration
    path = _moved(path, kind, sign * speed * done, stage, generator)
    if generator.random() < 0.3:
        other = str(generator.choice([name for name in _SPEEDS if name != kind]))
        share = float(generator.uniform(-_ASIDE, _ASIDE)) * speed / high * _SPEEDS[other][1]
        path = _moved(path, other, share * done, stage, generator)
    hand = float(generator.uniform(0, min(_HAND * speed * _SPEEDS["pan"][1] / high, 0.03))) if generator.random() < 0.6 else 0.0
    return _trembling(path, hand, (0.3, 5.0), times, generator)


def _moved(path: Path, kind: str, amount: Values, stage: Stage, generator: np.random.Generator) -> Path:
    """amount (T,): displacement, logarithm of the scale, or radians."""
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


def _trembling(path: Path, amount: float, rates: tuple[float, float], times: Values, generator: np.random.Generator) -> Path:
    """amount: displacement (rms); rates: in hertz."""
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


def _tremble(times: Values, rates: tuple[float, float], generator: np.random.Generator) -> Values:
    """Three sines of random rates and phases, of root mean square 1."""
    rate, phase, weight = generator.uniform(*rates, 3), generator.uniform(0, 2 * math.pi, 3), generator.uniform(0.2, 1, 3)
    waves = np.sin(2 * math.pi * np.outer(times, rate) + phase)  # (T, 3)
    return np.asarray(waves @ weight * math.sqrt(2 / float(weight @ weight)))


def _eased(share: Values, generator: np.random.Generator) -> Values:
    """Share of the time → share of the move, both from 0 to 1, rising: even, slow at both ends, or faster and faster (or slower)."""
    if generator.random() < 0.3:
        return share
    ends, bend = float(generator.uniform(0, 0.6)), float(generator.uniform(-0.35, 0.35))
    return np.asarray(share - ends * np.sin(2 * math.pi * share) / (2 * math.pi) + bend * share * (share - 1))


def _about(axis: int, angles: Values) -> Values:
    """Rotations (T, 3, 3) about an axis, by the signs of `Path`."""
    cos, sin = np.cos(angles), np.sin(angles)
    one, none = np.ones_like(angles), np.zeros_like(angles)
    rows = {
        0: ((one, none, none), (none, cos, -sin), (none, sin, cos)),
        1: ((cos, none, sin), (none, one, none), (-sin, none, cos)),
        2: ((cos, -sin, none), (sin, cos, none), (none, none, one)),
    }[axis]
    return np.moveaxis(np.array(rows), 2, 0)
