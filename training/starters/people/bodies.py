"""Bodies of bones, posed by inverse kinematics: where hips, hands and feet are decides where knees and elbows go.

Axes are a motion's: x to the person's left, y up, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from models.people.poses import NAMES
from training.starters.people.skeletons import head, keypoints

Floats = NDArray[np.floating[Any]]

SIDES = (("left", 1.0), ("right", -1.0))
MOST_BENT = np.radians(150)
"""Angle by which knees and elbows bend at most."""
KNEES = np.array([0.15, 0.2, 1.0])
"""Direction in which knees point, in the pelvis' axes, out in place of left."""
ELBOWS = np.array([0.6, -0.6, -0.7])
"""The same of elbows, in the chest's."""


@dataclass(frozen=True)
class Postures:
    """F frames of what keyframes say. Lengths are in legs of the body, angles in degrees."""

    hips: Floats
    """(F, 3): the middle between the hips; somebody upright has them at y = 1."""
    pelvis: Floats
    """(F, 3): turned to the left, leaning forward, leaning to the right."""
    chest: Floats
    """(F, 3): the same, from the pelvis."""
    gaze: Floats
    """(F, 3): the same of the head, from the chest."""
    hands: Floats
    """(F, 2, 3): left and right wrist, out, up and forward, from the shoulder in lengths of the arm. If they are planted, from the origin,
    in legs."""
    feet: Floats
    """(F, 2, 3): ankles, out, up and forward from the origin; 0 up is on the ground."""


@dataclass(frozen=True)
class Body:
    """Lengths of bones in metres; the defaults are those of somebody of 1.7 m."""

    ankle: float = 0.08
    """Its height above the ground."""
    shin: float = 0.41
    thigh: float = 0.42
    hip: float = 0.085
    """From the middle, and so are shoulders."""
    waist: float = 0.24
    """From the hips to where pelvis and chest meet, and from there to the shoulders."""
    ribs: float = 0.24
    shoulder: float = 0.18
    upper_arm: float = 0.275
    forearm: float = 0.26
    neck: float = 0.16
    """From the shoulders to the middle of the head."""

    @property
    def leg(self) -> float:
        return self.ankle + self.shin + self.thigh

    @property
    def arm(self) -> float:
        return self.upper_arm + self.forearm

    @classmethod
    def drawn(cls, generator: Generator, spread: float = 0.06) -> Body:
        """Proportions differ by a standard deviation of `spread`."""
        usual = cls()
        return cls(**{bone.name: getattr(usual, bone.name) * float(np.exp(generator.normal(0, spread))) for bone in fields(cls)})

    def pose(self, postures: Postures, *, standing: bool, planted: bool) -> Floats:
        """Keypoints (F, 17, 3) in metres. standing: whether hips sink so far that both feet are reached; planted: whether hands are held by
        the ground. Hands and feet out of reach are stretched for."""
        pelvis = _turn(postures.pelvis)
        chest = pelvis * _turn(postures.chest)
        gaze = chest * _turn(postures.gaze)
        ankles = postures.feet * self.leg + np.array([0.0, self.ankle, 0.0])  # (F, 2, 3), out in place of left
        hips = postures.hips * self.leg
        if standing:
            hips = self._sunk(hips, pelvis, ankles)
        middle = hips + pelvis.apply([0.0, self.waist, 0.0]) + chest.apply([0.0, self.ribs, 0.0])  # of the shoulders
        places: dict[str, Floats] = {}
        for number, (side, sign) in enumerate(SIDES):
            out = np.array([sign, 1.0, 1.0])
            shoulder, hip = middle + chest.apply([sign * self.shoulder, 0, 0]), hips + pelvis.apply([sign * self.hip, 0, 0])
            hand = postures.hands[:, number] * out
            wrist = hand * self.leg if planted else shoulder + _heading(postures.pelvis).apply(hand * self.arm)
            elbow, wrist = _limb(shoulder, wrist, self.upper_arm, self.forearm, chest.apply(ELBOWS * out))
            knee, ankle = _limb(hip, ankles[:, number] * out, self.thigh, self.shin, pelvis.apply(KNEES * out))
            limbs = {"shoulder": shoulder, "elbow": elbow, "wrist": wrist, "hip": hip, "knee": knee, "ankle": ankle}
            places |= {f"{side} {joint}": place for joint, place in limbs.items()}
        left, up = gaze.apply([1.0, 0.0, 0.0]), gaze.apply([0.0, 1.0, 0.0])
        return keypoints({**places, **head(middle + self.neck * (chest.apply([0.0, 1.0, 0.0]) + up) / 2, left, up)})

    def _sunk(self, hips: Floats, pelvis: Rotation, ankles: Floats) -> Floats:
        """Hips (F, 3), lower where a leg would not reach its foot."""
        highest = np.full(len(hips), np.inf)
        for number, (_, sign) in enumerate(SIDES):
            offset = pelvis.apply([sign * self.hip, 0.0, 0.0])
            ankle = ankles[:, number] * np.array([sign, 1.0, 1.0])
            across = np.square((hips + offset - ankle)[:, [0, 2]]).sum(axis=1)
            above = np.sqrt(np.maximum((self.thigh + self.shin) ** 2 - across, 0)) * 0.999
            highest = np.minimum(highest, ankle[:, 1] + above - offset[:, 1])
        return np.stack([hips[:, 0], np.minimum(hips[:, 1], highest), hips[:, 2]], axis=1)


def _turn(degrees: Floats) -> Rotation:
    return Rotation.from_euler("YXZ", degrees, degrees=True)


def _heading(degrees: Floats) -> Rotation:
    return Rotation.from_euler("Y", degrees[:, :1], degrees=True)


def _limb(root: Floats, end: Floats, upper: float, lower: float, pointing: Floats) -> tuple[Floats, Floats]:
    """The joint between two bones and the end, each (F, 3). pointing (F, 3): where the joint bends to. What is too far is stretched for,
    and what is too near is kept away, along the straight line."""
    way = end - root
    length = np.linalg.norm(way, axis=1, keepdims=True)
    nearest = np.sqrt(upper**2 + lower**2 + 2 * upper * lower * np.cos(MOST_BENT))
    distance = np.clip(length, nearest, upper + lower)
    along = way / np.maximum(length, 1e-9)
    aside = pointing - (pointing * along).sum(axis=1, keepdims=True) * along
    aside = aside / np.maximum(np.linalg.norm(aside, axis=1, keepdims=True), 1e-9)
    before = (upper**2 - lower**2 + distance**2) / (2 * distance)  # of the joint, along the line
    height = np.sqrt(np.maximum(upper**2 - before**2, 0))
    return root + before * along + height * aside, root + distance * along


ARMS, LEGS = (
    [[NAMES.index(f"{side} {joint}") for joint in limb] for side, _ in SIDES]
    for limb in (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle"))
)
FACE = slice(0, 5)


def reproportioned(joints: Floats, generator: Generator, spread: float) -> Floats:
    """The same motion (F, 17, 3) by somebody whose bones are longer or shorter, by a standard deviation of `spread` each, alike on both
    sides. Directions of bones stay."""
    trunk, neck, *longer = np.exp(generator.normal(0, spread, 8)).tolist()
    made = joints.copy()
    hips, shoulders = (joints[:, [pair[0][0], pair[1][0]]].mean(axis=1) for pair in (LEGS, ARMS))
    raised = hips + trunk * (shoulders - hips)  # the middle of the shoulders
    made[:, FACE] = raised[:, None] + neck * (joints[:, FACE] - shoulders[:, None])
    for pair, middle, moved, factors in ((ARMS, shoulders, raised, longer[:3]), (LEGS, hips, hips, longer[3:])):
        for limb in pair:
            before, after = middle, moved
            for joint, factor in zip(limb, factors, strict=True):
                after = after + factor * (joints[:, joint] - before)
                before, made[:, joint] = joints[:, joint], after
    return made
