"""The network of a pipeline: members that detect people in frames, optionally one that encodes their appearance, and LART, which recognises
their actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle import BundleSpec
from models.bundle_schema import Clip, ExternalFile
from models.layers.stepwise import LoadedMember
from models.people.smpl import read_body
from models.people.track_batch import POSE_VALUES, TrackBatch, normalise_pose, pose_statistics
from models.systems.actions.appearance_encoder import AppearanceEncoder
from models.systems.actions.detection_scale import Detail, rows
from models.systems.actions.person_tracks import TrackWindow, WindowLayout
from models.systems.actions.pose_estimator import KeypointEstimator, MeshEstimator, PoseEstimator
from models.systems.hmr2.model import HMR2
from models.systems.lart.model import LART
from models.systems.mvit.model import MViT
from models.systems.onnx.pose_detector import PoseGraph

CLIP = Clip(frames=8, stride=1, rate=30.0)
"""Number of rows of a step, few enough for a short request not to wait long, and rows per second."""
WINDOWS_AT_ONCE = 32
"""Maximum number of windows of tracks in one pass of LART."""


@dataclass(frozen=True)
class ActionPipelineConfig:
    """Defaults of requests, and windows of `step` scored rows with `margin` more on both sides (published LART: 32 and 32)."""

    step: int = 32
    margin: int = 32
    people: int = 6
    """Default maximum number of people that are tracked at a time."""
    detail: Detail = "fast"
    thresholds: tuple[float, ...] = ()
    """Score of each label below which it is unreliable; empty: no thresholds."""

    def __post_init__(self) -> None:
        if min(self.step, self.people) < 1 or self.margin < 0:
            raise ValueError("step and people must be at least 1, margin at least 0")
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError("thresholds must be within 0..1")

    @property
    def span(self) -> WindowLayout:
        return WindowLayout(self.step, self.margin)


class ActionPipeline(nn.Module):
    """The members of a pipeline as one network; it has no weights besides theirs."""

    def __init__(
        self,
        config: ActionPipelineConfig,
        perception: PoseEstimator | None = None,
        lart: LART | None = None,
        clip: Clip = CLIP,
        describer: AppearanceEncoder | None = None,
    ) -> None:
        """Keep the members. describer: None for a LART that reads no appearance."""
        super().__init__()
        self.config = config
        self.perception = perception
        self.describer = describer
        self.lart = lart
        self.rate = clip.rate
        """Rows per second."""
        self._rows = clip.frames
        """Number of rows of a step at the bundle's default detail."""

    def rows(self, detail: Detail) -> int:
        """Return the number of rows of a step, chosen so that a step takes the same time at any detail."""
        return rows(detail, self.config.detail, self._rows)

    @property
    def actions(self) -> int:
        """Number of labels."""
        return self.network.config.actions

    @property
    def pose_estimator(self) -> PoseEstimator:
        assert self.perception is not None, "assemble it from its members"
        return self.perception

    @property
    def network(self) -> LART:
        assert self.lart is not None, "assemble it from its members"
        return self.lart

    @property
    def values(self) -> Mapping[str, int]:
        """Number of values of a token, by kind, in their order: pose, joints, appearance."""
        return {**self.pose_estimator.values, **({} if self.describer is None else {"appearance": self.describer.values})}

    def read(self, windows: Sequence[TrackWindow]) -> list[NDArray[np.float32]]:
        """Return the scores (scored rows, actions) of each window."""
        scores: list[NDArray[np.float32]] = []
        for start in range(0, len(windows), WINDOWS_AT_ONCE):
            some = windows[start : start + WINDOWS_AT_ONCE]
            logits = self.network.heads.actions(self.network.tokens(self._tracks(some)))
            outputs = torch.sigmoid(logits).float().cpu().numpy()  # (B, T, 1, A)
            scores += [outputs[i, one.skipped : one.skipped + one.answered, 0] for i, one in enumerate(some)]
        return scores

    def _tracks(self, windows: Sequence[TrackWindow]) -> TrackBatch:
        """Stack windows into a batch, (B, T, 1, ·); rows after a window's end count as not detected."""
        config = self.network.config
        tokens = np.zeros((len(windows), config.frames, 1, windows[0].tokens.shape[1]), np.float32)
        detected = np.zeros((len(windows), config.frames, 1, 1), np.float32)
        for i, one in enumerate(windows):
            tokens[i, : len(one.tokens), 0], detected[i, : len(one.tokens), 0, 0] = one.tokens, one.detected
        device = self.network.mask_token.device
        widths = [0 if feature is None else feature.values for feature in (config.pose, config.joints, config.appearance)]
        pose, joints, appearance = torch.from_numpy(tokens).to(device).split(widths, dim=-1)  # type: ignore[no-untyped-call]
        if config.mean_std is not None:
            pose = normalise_pose(pose, pose_statistics(config.mean_std).to(device)).float()
        return TrackBatch(
            pose,
            torch.from_numpy(detected).to(device),
            joints=None if config.joints is None else joints,
            appearance=None if config.appearance is None else appearance,
        )


def assemble(spec: BundleSpec, config: ActionPipelineConfig, members: Mapping[str, LoadedMember]) -> ActionPipeline:
    """Assemble a pipeline from its members. Raises ValueError if some are missing or do not fit each other."""
    for role in ("pose", "actions"):
        if role not in members:
            raise ValueError(f"members: a pipeline of actions needs one for `{role}`")
    actions = members["actions"]
    if not isinstance(actions.model, LART):
        raise ValueError(f"members.actions: {actions.spec.id} is of architecture {actions.spec.architecture}; lart is needed")
    if spec.clip is None:
        raise ValueError("clip: a pipeline needs a rate, at which LART's frames follow each other")
    if spec.labels != actions.spec.labels:
        raise ValueError(f"labels: they are not those of its member {actions.spec.id}")
    if len(config.thresholds) not in (0, len(spec.labels)):
        raise ValueError(f"config: {len(config.thresholds)} thresholds for {len(spec.labels)} labels")
    if 2 * config.margin + config.step >= actions.model.config.frames:
        raise ValueError(
            f"config: windows of {config.step} frames with {config.margin} on both sides do not fit into the "
            f"{actions.model.config.frames} of {actions.spec.id}"
        )
    perception = make_pose_estimator(members, spec.external.get("body"))
    pipeline = ActionPipeline(config, perception, actions.model, spec.clip, _describer(members, perception))
    _check_token(actions, pipeline.values)
    return pipeline


MISSING = {"pose": "", "joints": "; they need a body's mesh (--body)", "appearance": "; it needs a video network (--appearance)"}
"""Part of a token → hint at the member that provides it, for errors."""


def _check_token(actions: LoadedMember, values: Mapping[str, int]) -> None:
    """Check that the other members provide the values that LART needs, and that it can normalise published poses. Raises ValueError."""
    config = cast(LART, actions.model).config
    expected = {
        "pose": config.pose.values,
        "joints": 0 if config.joints is None else config.joints.values,
        "appearance": 0 if config.appearance is None else config.appearance.values,
    }
    for name, needed in expected.items():
        actual = values.get(name, 0)
        if actual != needed:
            hint = MISSING[name] if not actual else ""
            raise ValueError(
                f"members: {actions.spec.id} needs {needed} values of {name} for each person, and the other members provide {actual}{hint}"
            )
    if config.pose.values == POSE_VALUES and config.mean_std is None:
        raise ValueError(
            f"members.actions: {actions.spec.id} lacks the statistics of its poses: import it with --set mean_std=mean_std.npy"
        )


def _describer(members: Mapping[str, LoadedMember], perception: PoseEstimator) -> AppearanceEncoder | None:
    """Make the encoder of appearance, None without its member. Raises ValueError if the member cannot describe people."""
    member = members.get("appearance")
    if member is None:
        return None
    if not isinstance(member.model, MViT):
        raise ValueError(f"members.appearance: {member.spec.id} is of architecture {member.spec.architecture}; mvit is needed")
    if perception.long_side("fast") is not None:
        raise ValueError("members.appearance: it needs whole frames, and the member for `pose` has them shrunk; hmr2 has not")
    if member.spec.clip is None:
        raise ValueError(f"members.appearance: {member.spec.id} sees single images, and a network of clips is needed")
    try:
        return AppearanceEncoder(member.model, member.spec.image_preprocess, member.spec.clip)
    except ValueError as error:
        raise ValueError(f"members.appearance: {member.spec.id}: {error}") from error


def make_pose_estimator(members: Mapping[str, LoadedMember], body: ExternalFile | None = None) -> PoseEstimator:
    """Make the pose estimator from its members. body: the file of the user's mesh. Raises ValueError if they do not suffice."""
    pose = members["pose"]
    if isinstance(pose.model, PoseGraph):
        if body is not None:
            raise ValueError(f"external.body: {pose.spec.id} returns keypoints, which cannot pose a mesh; hmr2 returns bodies")
        return KeypointEstimator(pose.model)
    if isinstance(pose.model, HMR2):
        if "detector" not in members:
            raise ValueError(f"members: {pose.spec.id} sees one person at a time and needs a member for `detector`")
        detector = members["detector"]
        if not isinstance(detector.model, PoseGraph):
            raise ValueError(
                f"members.detector: {detector.spec.id} is of architecture {detector.spec.architecture}, which does not detect people"
            )
        mesh = None if body is None else read_body(Path(body.path)).to(next(pose.model.parameters()).device)
        return MeshEstimator(detector.model, pose.model, pose.spec.image_preprocess, mesh)
    raise ValueError(f"members.pose: {pose.spec.id} is of architecture {pose.spec.architecture}, which returns no poses")
