"""Motions that nobody recorded: keyframes, played by bodies and at tempos that are drawn, with inverse kinematics between (`bodies.py`).

`styles.py` has the keyframes. `wandering` is a random walk of somebody's hips, hands and feet, which shows no action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from training.starters.people.bodies import Body, Postures
from training.starters.people.skeletons import Motion

Floats = NDArray[np.floating[Any]]
Vector = tuple[float, float, float]

RATE = 30.0
"""Frames a second."""
ORIGIN: Vector = (0.0, 0.0, 0.0)
UPRIGHT: Vector = (0.0, 1.0, 0.0)
HANGING: Vector = (0.1, -0.97, 0.08)
STANCE: Vector = (0.11, 0.0, 0.0)


class Key(NamedTuple):
    """A moment of a motion; units and axes are those of `Postures`."""

    hips: Vector = UPRIGHT
    pelvis: Vector = ORIGIN
    chest: Vector = ORIGIN
    gaze: Vector = ORIGIN
    hands: Vector = HANGING
    """Place of both hands, or of the left one alone."""
    right_hand: Vector | None = None
    feet: Vector = STANCE
    right_foot: Vector | None = None
    gone: float = 0.0
    """How far the origin has moved forward since the cycle began."""
    time: float = 1.0
    """Until the next one, in parts of the cycle: the sum over its keys is the whole."""

    @property
    def values(self) -> Floats:
        """(25,): `PARTS` after one another."""
        sides = (self.hands, self.right_hand or self.hands, self.feet, self.right_foot or self.feet)
        return np.array([*self.hips, *self.pelvis, *self.chest, *self.gaze, *(value for side in sides for value in side), self.gone])


PARTS = {
    "hips": slice(0, 3),
    "pelvis": slice(3, 6),
    "chest": slice(6, 9),
    "gaze": slice(9, 12),
    "hands": slice(12, 18),
    "feet": slice(18, 24),
}
GONE = 24


def _spread(hips: float, turns: float, gaze: float, hands: float, feet: float) -> Floats:
    """(25,), one value a part."""
    values = np.zeros(GONE + 1)
    for part, value in zip(PARTS, (hips, turns, turns, gaze, hands, feet), strict=True):
        values[PARTS[part]] = value
    return values


ALWAYS = _spread(0.015, 3.5, 8.0, 0.06, 0.02)
"""Standard deviations of how one person does it otherwise than the keyframes, in all repetitions."""
EACH_TIME = _spread(0.01, 2.0, 4.0, 0.03, 0.0)
SWAY = _spread(0.006, 1.2, 5.0, 0.02, 0.0)
HEIGHTS_OF_FEET = [PARTS["feet"].start + 1, PARTS["feet"].start + 4]
STILL_IF_PLANTED = 0.3
"""Part of these that is left where hands are planted, which must stay where they are."""


@dataclass(frozen=True)
class Style:
    """One way to do an action, again and again."""

    keys: Sequence[Key]
    seconds: tuple[float, float]
    """Duration of a cycle, from and to."""
    standing: bool = True
    """Whether feet carry the weight."""
    planted: bool = False
    """Whether the hands are held by the ground; keys have their places then."""
    strides: float = 0.0
    """Legs that the origin moves forward in a cycle."""


@dataclass(frozen=True)
class Passage:
    """Postures that somebody passes through."""

    times: Floats
    """(K,), seconds, ascending."""
    values: Floats
    """(K, 25)."""
    standing: bool
    planted: bool = False

    def played(self, begin: float, seconds: float, generator: Generator) -> Motion:
        """By a drawn body, from second `begin` on. Between keys values neither swing over nor jump: a foot that two keys have at one place
        stays there."""
        body = Body.drawn(generator)
        at = begin + np.arange(round(seconds * RATE)) / RATE
        moving = PchipInterpolator(self.times, self.values)(at) + _sway(len(at), generator) * SWAY * _steady(self.planted)  # (F, 25)
        moving[:, HEIGHTS_OF_FEET] = np.maximum(moving[:, HEIGHTS_OF_FEET], 0)
        parts = {name: moving[:, place] for name, place in PARTS.items()}
        sided = {name: parts.pop(name).reshape(-1, 2, 3) for name in ("hands", "feet")}
        joints = body.pose(Postures(**parts, **sided), standing=self.standing, planted=self.planted)
        return Motion(joints + moving[:, None, GONE:] * body.leg * np.array([0.0, 0.0, 1.0]), RATE)


def play(style: Style, seconds: float, generator: Generator) -> Motion:
    """A style, done by somebody for so long."""
    own = np.stack([key.values for key in style.keys])  # (K, 25)
    loose = _steady(style.planted) * _on_the_ground()
    strength = 1.0 if style.planted else generator.uniform(0.85, 1.15)
    own = own[:1] + (own - own[:1]) * strength + generator.normal(0, 1, GONE + 1) * ALWAYS * loose
    shares = np.array([key.time for key in style.keys])
    starts = np.concatenate([[0.0], np.cumsum(shares)[:-1]]) / shares.sum()
    usual = float(np.exp(generator.uniform(*np.log(style.seconds))))
    times, values, now, lap = [], [], 0.0, 0
    while now < seconds + usual:
        length = usual * float(np.exp(generator.normal(0, 0.08)))
        times.append(now + length * starts)
        again = own + generator.normal(0, 1, own.shape) * EACH_TIME * loose
        again[:, GONE] += lap * style.strides * strength
        values.append(again)
        now, lap = now + length, lap + 1
    passage = Passage(np.concatenate(times), np.concatenate(values), style.standing, style.planted)
    return passage.played(generator.uniform(0, usual), seconds, generator)


def wandering(seconds: float, generator: Generator) -> Motion:
    """A random walk of hips, hands and feet, of somebody upright or, one time in four, lying or falling."""
    upright = generator.random() < 0.75
    low, high = UPRIGHT_BOUNDS if upright else LYING_BOUNDS
    pause = generator.uniform(0.25, 1.5)
    count = int(np.ceil(seconds / pause)) + 3
    steps = generator.normal(0, generator.uniform(0.1, 0.4), (count, GONE + 1)) * (high - low)
    steps[0] = generator.uniform(low, high)
    times = np.cumsum(pause * np.exp(generator.normal(0, 0.3, count)))
    return Passage(times - times[0], _reflected(np.cumsum(steps, axis=0), low, high), upright).played(0.0, seconds, generator)


def _steady(planted: bool) -> float:
    return STILL_IF_PLANTED if planted else 1.0


Bound = tuple[Vector, Vector]


def _bounds(hips: Bound, pelvis: Bound, chest: Bound, gaze: Bound, hands: Bound, feet: Bound) -> Floats:
    """(2, 25): least and most values; both hands and both feet have the same."""
    parts = (hips, pelvis, chest, gaze, hands, hands, feet, feet)
    return np.array([[*(value for part in parts for value in part[side]), 0.0] for side in (0, 1)])


UPRIGHT_BOUNDS = _bounds(
    ((-0.2, 0.5, -0.3), (0.2, 1.02, 0.3)),
    ((-90, -20, -20), (90, 70, 20)),
    ((-35, -20, -25), (35, 35, 25)),
    ((-50, -30, -20), (50, 30, 20)),
    ((-0.4, -1.0, -0.5), (0.9, 1.0, 0.95)),
    ((0.0, -0.1, -0.35), (0.35, 0.3, 0.35)),
)
LYING_BOUNDS = _bounds(
    ((-0.2, 0.12, -0.3), (0.2, 0.6, 0.3)),
    ((-180, -100, -60), (180, 100, 60)),
    ((-35, -20, -25), (35, 35, 25)),
    ((-50, -30, -20), (50, 30, 20)),
    ((-0.4, -0.6, -0.9), (0.9, 0.6, 0.9)),
    ((-0.1, 0.0, -0.9), (0.4, 0.5, 0.9)),
)


def _reflected(values: Floats, low: Floats, high: Floats) -> Floats:
    """Values inside their bounds, as if these were mirrors."""
    width = np.maximum(high - low, 1e-9)
    return np.asarray(low + width - np.abs((values - low) % (2 * width) - width))


def _on_the_ground() -> Floats:
    """(25,): 0 for the heights of feet, which stay on the ground."""
    kept = np.ones(GONE + 1)
    kept[HEIGHTS_OF_FEET] = 0
    return kept


def _sway(frames: int, generator: Generator) -> Floats:
    """(F, 25): slow noise of standard deviation 1."""
    seconds = np.arange(frames)[:, None] / RATE
    waves = [np.sin(2 * np.pi * (generator.uniform(0.1, 0.7, GONE + 1) * seconds + generator.uniform(0, 1, GONE + 1))) for _ in range(3)]
    return np.asarray(np.sum(waves, axis=0) * np.sqrt(2 / 3))
