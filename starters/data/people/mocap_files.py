"""Motion capture as COCO keypoints in space, read from DeepMimic clips, BVH files and arrays of joint positions.

Every reader returns metres, y up, at the recording's rate. Eyes, ears and nose, which motion capture lacks, are placed in the head.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from models.arrays import FloatArray
from models.people.keypoints import KEYPOINT_NAMES
from training.errors import DataError

FACE = {
    "nose": (0.0, 0.0, 0.11),
    "left eye": (0.032, 0.035, 0.09),
    "right eye": (-0.032, 0.035, 0.09),
    "left ear": (0.075, 0.01, 0.0),
    "right ear": (-0.075, 0.01, 0.0),
}
"""Offsets in metres from the middle of the head: to the person's left, up, forward."""


@dataclass(frozen=True)
class Motion:
    """One person over F frames."""

    joints: FloatArray
    """(F, 17, 3), metres, y up."""
    rate: float
    """Frames per second."""
    loops: bool = False
    """Whether the last frame is followed by the first, displaced by the distance walked."""


def head(middle: FloatArray, left: FloatArray, up: FloatArray) -> dict[str, FloatArray]:
    """Return the keypoints of the face. middle (F, 3): of the head; left, up (F, 3): roughly perpendicular directions."""
    left = left / np.linalg.norm(left, axis=1, keepdims=True)
    up = up - (up * left).sum(axis=1, keepdims=True) * left
    up = up / np.linalg.norm(up, axis=1, keepdims=True)
    axes = np.stack([left, up, np.cross(left, up)], axis=1)  # (F, 3, 3): left, up, forward
    return {name: middle + np.array(place) @ axes for name, place in FACE.items()}


def keypoints(places: Mapping[str, FloatArray]) -> FloatArray:
    """Stack keypoints by name, (F, 3) each, to (F, 17, 3)."""
    return np.stack([places[name] for name in KEYPOINT_NAMES], axis=1)


# DeepMimic (arXiv 1804.02717), as pybullet ships its clips: bones in the order of a frame's values. Offsets are in metres from the parent,
# x forward, y up, z to the right; those of its model are four times as large.
DEEPMIMIC: Mapping[str, tuple[str, tuple[float, float, float], int]] = {
    # joint: (parent, offset, values): 4 for a quaternion w, x, y, z, 1 for an angle about z, 0 for none
    "chest": ("root", (0.0, 0.236151, 0.0), 4),
    "neck": ("chest", (0.0, 0.223894, 0.0), 4),
    "right hip": ("root", (0.0, 0.0, 0.084887), 4),
    "right knee": ("right hip", (0.0, -0.421546, 0.0), 1),
    "right ankle": ("right knee", (0.0, -0.40987, 0.0), 4),
    "right shoulder": ("chest", (-0.02405, 0.2435, 0.18311), 4),
    "right elbow": ("right shoulder", (0.0, -0.274788, 0.0), 1),
    "left hip": ("root", (0.0, 0.0, -0.084887), 4),
    "left knee": ("left hip", (0.0, -0.421546, 0.0), 1),
    "left ankle": ("left knee", (0.0, -0.40987, 0.0), 4),
    "left shoulder": ("chest", (-0.02405, 0.2435, -0.18311), 4),
    "left elbow": ("left shoulder", (0.0, -0.274788, 0.0), 1),
    "right wrist": ("right elbow", (0.0, -0.258947, 0.0), 0),
    "left wrist": ("left elbow", (0.0, -0.258947, 0.0), 0),
}
HEAD_ABOVE_NECK = 0.175


def read_deepmimic(path: Path) -> Motion:
    """Read a DeepMimic clip. Raises DataError."""
    try:
        content = json.loads(path.read_text())
        values = np.array(content["Frames"], np.float64)
        loops = content["Loop"] == "wrap"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not a DeepMimic clip ({type(error).__name__}: {error})") from error
    if values.ndim != 2 or values.shape[1] != 44 or len(values) < 2:
        raise DataError(f"{path}: frames of 44 numbers were expected, there are {values.shape}")
    place = {"root": values[:, 1:4]}
    turn = {"root": Rotation.from_quat(values[:, [5, 6, 7, 4]])}
    column = 8
    for joint, (parent, offset, count) in DEEPMIMIC.items():
        place[joint] = place[parent] + turn[parent].apply(np.array(offset))
        if count == 4:
            rotation = Rotation.from_quat(values[:, [column + 1, column + 2, column + 3, column]])
        else:
            angle = values[:, column] if count else np.zeros(len(values))
            rotation = Rotation.from_rotvec(angle[:, None] * np.array([0.0, 0.0, 1.0]))
        turn[joint] = turn[parent] * rotation
        column += count
    left, up = turn["neck"].apply(np.array([0.0, 0.0, -1.0])), turn["neck"].apply(np.array([0.0, 1.0, 0.0]))
    joints = keypoints({**place, **head(place["neck"] + HEAD_ABOVE_NECK * up, left, up)})
    return Motion(joints, 1 / float(values[0, 0]), loops)


@dataclass
class Bone:
    """A joint of a BVH file."""

    name: str
    parent: int
    offset: NDArray[np.float64]
    channels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class JointNames:
    """Joints of a recording that are keypoints, and its unit of length."""

    joints: Mapping[str, str]
    """Keypoint → joint; a joint of several names is the first that is there."""
    head: tuple[str, str]
    """Joints at the bottom of the head and in or above its middle."""
    metres: float
    """Metres of a unit of length."""
    up: str = "y"
    middle: float = 0.5
    """Position of the head's middle, from the first of `head` (0) to the second (1)."""

    def motion(self, places: Mapping[str, FloatArray], rate: float) -> Motion:
        """Convert joint positions, (F, 3) each in the recording's unit, to keypoints. Raises DataError."""
        joint_names = [*self.joints.values(), *self.head]
        missing = sorted(set(joint_names) - set(places))
        if missing:
            raise DataError(f"the recording has no joints {', '.join(missing)}")
        to_y = {"y": np.eye(3), "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])}[self.up]
        metric = {name: places[name] @ to_y.T * self.metres for name in joint_names}
        limbs = {keypoint: metric[joint] for keypoint, joint in self.joints.items()}
        bottom, top = (metric[joint] for joint in self.head)
        across = limbs["left shoulder"] - limbs["right shoulder"]
        face = head(bottom + self.middle * (top - bottom), across, top - bottom)
        return Motion(keypoints({**limbs, **face}), rate)


def _both_sides(joints: Mapping[str, str]) -> dict[str, str]:
    """Fill in both sides of a table of keypoints; `{}` stands for Left or Right."""
    return {f"{side} {part}": joint.format(side.title()) for side in ("left", "right") for part, joint in joints.items()}


CMU = JointNames(
    _both_sides(
        {
            "shoulder": "{}Arm",
            "elbow": "{}ForeArm",
            "wrist": "{}Hand",
            "hip": "{}UpLeg",
            "knee": "{}Leg",
            "ankle": "{}Foot",
        }
    ),
    ("Neck1", "Head end"),
    metres=0.056444,  # the release's unit, inches / 0.45
    middle=0.55,
)
BOXING = JointNames(
    _both_sides(
        {
            "shoulder": "{}Shoulder",
            "elbow": "{}Elbow",
            "wrist": "{}Wrist",
            "hip": "{}Hip",
            "knee": "{}Knee",
            "ankle": "{}Ankle",
        }
    ),
    ("Head", "Head end"),
    metres=0.01,
)
CLIMBING = JointNames(CMU.joints, ("Neck", "Head"), metres=1.0, up="z", middle=1.1)
CLIMBING_JOINTS = (
    *("Hips", "Spine", "Spine1", "Neck", "Head"),
    *("LeftShoulder", "LeftArm", "LeftForeArm", "LeftHand", *(f"left finger {number}" for number in range(15))),
    *("RightShoulder", "RightArm", "RightForeArm", "RightHand", *(f"right finger {number}" for number in range(15))),
    *("LeftUpLeg", "LeftLeg", "LeftFoot", "LeftToeBase", "RightUpLeg", "RightLeg", "RightFoot", "RightToeBase"),
    *("left sole", "right sole"),
)
"""Joints of holosoma's arrays, in their order."""


def read_positions(path: Path, joints: Sequence[str], names: JointNames, rate: float) -> Motion:
    """Read joint positions (F, joints, 3) from a NumPy file. Raises DataError."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: is not an array of joint positions ({error})") from error
    if values.ndim != 3 or values.shape[1:] != (len(joints), 3):
        raise DataError(f"{path}: an array of (frames, {len(joints)}, 3) was expected, this is {values.shape}")
    return names.motion({name: values[:, place].astype(np.float64) for place, name in enumerate(joints)}, rate)


def read_bvh(path: Path, names: JointNames) -> Motion:
    """Read a BVH file. Raises DataError."""
    try:
        words = path.read_text(encoding="utf-8", errors="replace").split()
        bones, rest = _hierarchy(words)
        start = rest.index("Time:") + 2
        seconds = float(rest[start - 1])
        # the headers of some files count one frame less than they have
        values = np.array(rest[start:], np.float64).reshape(-1, sum(len(bone.channels) for bone in bones))
        places = _positions(bones, values)
    except (OSError, ValueError, IndexError, StopIteration) as error:
        raise DataError(f"{path}: not a BVH file ({type(error).__name__}: {error})") from error
    return names.motion(places, 1 / seconds)


def _hierarchy(words: Sequence[str]) -> tuple[list[Bone], list[str]]:
    """Parse the joints, parents first, and return them with the words of the MOTION section."""
    bones: list[Bone] = []
    stack: list[int] = []
    stream: Iterator[str] = iter(words)
    for word in stream:
        if word in ("ROOT", "JOINT"):
            bones.append(Bone(next(stream), stack[-1] if stack else -1, np.zeros(3)))
        elif word == "End":
            next(stream)
            bones.append(Bone(f"{bones[stack[-1]].name} end", stack[-1], np.zeros(3)))
        elif word == "{":
            stack.append(len(bones) - 1)
        elif word == "}":
            stack.pop()
        elif word == "OFFSET":
            bones[stack[-1]].offset = np.array([float(next(stream)) for _ in range(3)])
        elif word == "CHANNELS":
            bones[stack[-1]].channels = [next(stream) for _ in range(int(next(stream)))]
        elif word == "MOTION":
            break
    return bones, list(stream)


def _positions(bones: Sequence[Bone], values: FloatArray) -> dict[str, FloatArray]:
    """Return the position (F, 3) of every joint, in the file's unit."""
    column = 0
    places: list[FloatArray] = []
    turns: list[Rotation] = []
    for bone in bones:
        values_of = {channel: values[:, column + number] for number, channel in enumerate(bone.channels)}
        column += len(bone.channels)
        offset = np.stack([values_of.get(f"{axis}position", np.zeros(len(values))) for axis in "XYZ"], axis=1) + bone.offset
        order = "".join(channel[0] for channel in bone.channels if channel.endswith("rotation"))
        angles = np.stack([values_of[f"{axis}rotation"] for axis in order], axis=1) if order else None
        turn = Rotation.identity(len(values)) if angles is None else Rotation.from_euler(order, angles, degrees=True)  # intrinsic
        if bone.parent < 0:
            places.append(offset)
            turns.append(turn)
        else:
            places.append(places[bone.parent] + turns[bone.parent].apply(offset))
            turns.append(turns[bone.parent] * turn)
    return {bone.name: place for bone, place in zip(bones, places, strict=True)}
