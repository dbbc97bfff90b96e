"""LART's losses (arXiv 2304.01199): actions above all; pose, location and Kinetics' classes as the published code has them, which its
recipes leave out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.people.track_batch import TokenMask, TrackBatch
from models.systems.lart.model import LART, LARTOutput
from training import collectives, random_draws
from training.collectives import term_of_mean
from training.objectives.checks import require_model, require_tensor
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings
from training.optim import ParameterGroup, group_by_decay
from training.recipe_settings import OptimiserSettings

ACTION_WEIGHT = 10.0
FIRST_LAYER = ("mask_token", "class_token", "pos_embed", "pose_encoder.", "joint_encoder.", "appearance_encoder.")
BODY = 226
"""Number of values of a pose before the location: rotations and betas."""


class GroundTruth(Enum):
    """Tokens that have labels to learn from: the least and the most `has_gt`, 2 for people's labels, 1 for a network's, 0 for none."""

    ALL = (1, 2)
    LABELS = (2, 2)
    PSEUDO = (1, 1)

    def chosen(self, detected: Tensor, has_gt: Tensor) -> Tensor:
        """Select tokens (..., 1) to learn from, as bool."""
        min_gt, max_gt = self.value
        return (detected != 0) & (has_gt >= min_gt) & (has_gt <= max_gt)


class LARTSettings(ObjectiveSettings):
    """The published recipes train actions alone. Weights of 0 freeze what nothing else trains."""

    kind: Literal["lart"] = "lart"
    labels: Literal["all", "people", "network"] = "all"
    """Labels to learn from: those by people and by a network, or one of both."""
    pose_weight: float = Field(default=0.0, ge=0)
    location_weight: float = Field(default=0.0, ge=0)
    kinetics_weight: float = Field(default=0.0, ge=0)
    power: Literal[1, 2] = 1
    """Exponent of the errors of poses and locations."""

    @property
    def ground_truth(self) -> GroundTruth:
        return {"all": GroundTruth.ALL, "people": GroundTruth.LABELS, "network": GroundTruth.PSEUDO}[self.labels]

    def build(self, model: nn.Module, context: ObjectiveContext) -> LARTObjective:
        return LARTObjective(require_model(self.kind, model, LART), self)


class LARTObjective(nn.Module):
    """Batch: tracks, (B, T, P, ·): `pose` normalised, `detected`, and what the model has of `joints` and `appearance`; `masked` if tokens
    are to be hidden though detected; `actions` (B, T, P, classes or more) in 0..1 and `labelled` (B, T, P, 1), their `has_gt`.

    Where weights ask for them: `raw_pose` (B, T, P, 229) and `kinetics` (B, P) int64.
    """

    def __init__(self, model: LART, settings: LARTSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        model.conv_en.requires_grad_(False)  # in the published files, and not used
        model.conv_de.requires_grad_(False)
        if not settings.kinetics_weight:
            model.kinetics.requires_grad_(False)
            model.class_token.requires_grad_(False)
        if not settings.pose_weight:
            model.heads.regressor.requires_grad_(False)
        if not settings.location_weight:
            model.heads.location.requires_grad_(False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        tracks = TrackBatch(
            require_tensor(batch, "pose"),
            require_tensor(batch, "detected"),
            batch.get("joints"),
            batch.get("appearance"),
            batch.get("masked"),
        )
        noise = random_draws.uniform(batch["draw"], tracks.detected.shape[1:], "mask")
        return self.losses(tracks, TokenMask.from_noise(tracks, self.model.config.mask_ratio, noise), batch)

    def losses(self, tracks: TrackBatch, hidden: TokenMask, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses. `targets` are tensors of the batch."""
        settings = self.settings
        with _attention(tracks):
            answer: LARTOutput = self.model(tracks, hidden)
        reading, has_gt = answer.reading, require_tensor(targets, "labelled")
        actions = action_loss(reading.actions, require_tensor(targets, "actions"), tracks.detected, has_gt, settings.ground_truth)
        parts = {"loss_actions": term_of_mean(actions, settings.ground_truth.chosen(tracks.detected, has_gt).sum())}
        loss = parts["loss_actions"]
        chosen = tracks.detected != 0
        if settings.pose_weight:
            parts["loss_pose"] = _regression_term(
                reading.pose[..., :BODY], require_tensor(targets, "raw_pose")[..., :BODY], chosen, settings.power
            )
            loss = loss + settings.pose_weight * parts["loss_pose"]
        if settings.location_weight:
            parts["loss_location"] = _regression_term(
                reading.location, require_tensor(targets, "raw_pose")[..., BODY:], chosen, settings.power
            )
            loss = loss + settings.location_weight * parts["loss_location"]
        if settings.kinetics_weight:
            parts["loss_kinetics"] = term_of_mean(kinetics_loss(answer.kinetics, require_tensor(targets, "kinetics")), len(chosen))
            loss = loss + settings.kinetics_weight * parts["loss_kinetics"]
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        """Return one group for pre-training, in which all parameters decay; with layer decay, those of fine-tuning (section 4).

        The first layer then learns `layer_decay`^(depth + 1) times as fast, and one-dimensional parameters do not decay. The published rule
        looks for blocks under another name than they have, so that they learn at full rate, whatever their depth.
        """
        if settings.layer_decay == 1:
            return group_by_decay(self.model, lambda name, parameter: settings.weight_decay)
        slow = settings.layer_decay ** (self.model.config.depth + 1)
        groups = group_by_decay(
            self.model,
            lambda name, parameter: 0.0 if parameter.dim() == 1 else settings.weight_decay,
            lambda name: slow if name.startswith(FIRST_LAYER) else 1.0,
        )
        return sorted(groups, key=lambda group: (group["lr_scale"], group["weight_decay"]))


def _attention(tracks: TrackBatch) -> AbstractContextManager[None]:
    """On CPUs PyTorch's fused attention takes most of a step's time on its way back through so few tokens; plain products take a third."""
    return sdpa_kernel(SDPBackend.MATH) if tracks.pose.device.type == "cpu" else nullcontext()


def _regression_term(predicted: Tensor, target: Tensor, chosen: Tensor, power: int) -> Tensor:
    """Return this rank's term of `regression_loss` over the tokens of all ranks."""
    local_count = chosen.sum()
    share = (local_count + 1) * collectives.world_size() / (collectives.all_reduce_sum(local_count) + 1)
    return regression_loss(predicted, target, chosen, power) * share


def action_loss(logits: Tensor, targets: Tensor, detected: Tensor, has_gt: Tensor, ground_truth: GroundTruth = GroundTruth.ALL) -> Tensor:
    """Binary cross-entropy, 10 times its mean over detected and labelled tokens, hidden ones included; 0 if there are none.

    logits: (B, T, P, classes); targets: the same, in [0, 1], the classes in front if there are more; detected, has_gt: (B, T, P, 1).
    """
    chosen = ground_truth.chosen(detected, has_gt)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets[..., : logits.shape[-1]].float(), reduction="none")
    return ACTION_WEIGHT * (losses * chosen).sum() / (chosen.sum() * logits.shape[-1]).clamp(min=1)


def regression_loss(predicted: Tensor, target: Tensor, chosen: Tensor, power: int) -> Tensor:
    """Loss of poses (their first 226 values) or locations: the sum of |error|^power over the chosen tokens by their number and one.

    predicted, target: (..., D); chosen: (..., 1) of bool; power: 1 or 2.
    """
    return ((predicted - target).abs() ** power * chosen).sum() / (chosen.sum() + 1)


def kinetics_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, P, classes) to labels (B, P)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
