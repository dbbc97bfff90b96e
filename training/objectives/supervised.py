"""Classification with labels: fine-tuning of MAE and MAE-ST, training of ViT, Rev-ViT and MViT, with token merging active where a ladder is
to be served (section 4.3 of arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from scipy.special import betaincinv
from torch import Tensor, nn

from models.layers.block import drop_path_rates
from models.merge_schedule import MergeSchedule
from models.systems.mae_st.model import VideoMAE
from models.systems.mvit.model import MViT
from models.systems.mvit.reversible import RevMViT
from models.systems.vit.model import ViT
from training import random_draws
from training.collectives import term_of_mean
from training.errors import TrainingError
from training.objectives.checks import require_model, require_tensor
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings
from training.optim import ParameterGroup, layer_decay_groups, pretraining_groups
from training.recipe_settings import OptimiserSettings


class SupervisedSettings(ObjectiveSettings):
    """The published recipes fine-tune with mixup 0.8, cutmix 1.0, label smoothing 0.1."""

    kind: Literal["supervised"] = "supervised"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    mix_probability: float = Field(default=1.0, ge=0, le=1)
    cutmix_probability: float = Field(default=0.5, ge=0, le=1)
    """See `training.objectives.supervised.MixupCutMix`."""
    multi_label: bool = False
    """Samples may have several labels: binary cross-entropy of each class; otherwise softmax cross-entropy."""
    merge: list[int | list[int] | dict[str, int | float]] = Field(default=[0], min_length=1)
    """Each step trains under one of these merge schedules, drawn at random."""

    @model_validator(mode="after")
    def _schedules(self) -> Self:
        for schedule in self.merge:
            MergeSchedule.parse(schedule)
        if self.multi_label and self.label_smoothing:
            raise ValueError("label_smoothing: is of softmax cross-entropy, which multi_label has not")
        return self

    def build(self, model: nn.Module, context: ObjectiveContext) -> SupervisedObjective:
        return SupervisedObjective(require_model(self.kind, model, ViT, VideoMAE, MViT, RevMViT), self)


class SupervisedObjective(nn.Module):
    """Batch: normalised `pixels` (B, 3, S, S) or, for models of video, `clip` (B, 3, T, S, S); `label` int64 (B,), or `labels` (B, classes)
    in 0..1."""

    def __init__(self, model: ViT | VideoMAE | MViT | RevMViT, settings: SupervisedSettings | None = None) -> None:
        super().__init__()
        self.model = model
        self.settings = settings or SupervisedSettings()
        self.schedules = tuple(MergeSchedule.parse(schedule) for schedule in self.settings.merge)
        self.mixing = MixupCutMix(
            self.settings.mixup, self.settings.cutmix, self.settings.mix_probability, self.settings.cutmix_probability
        )
        images = isinstance(model, ViT) or (isinstance(model, MViT | RevMViT) and model.config.images)
        self.input = "pixels" if images else "clip"
        if isinstance(model, MViT | RevMViT) and self.schedules != (MergeSchedule.off(),):
            raise ValueError(f"objective.merge: tokens of {type(model).__name__} do not merge")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        draw, inputs = batch["draw"], require_tensor(batch, self.input)
        targets = soft_targets(labels_of(batch), self.model.config.classes, self.settings.label_smoothing)
        inputs, targets = self.mixing.mix(inputs, targets, draw)
        logits = self.classify(inputs, draw).float()
        if self.settings.multi_label:
            return {"loss": term_of_mean(F.binary_cross_entropy_with_logits(logits, targets), len(logits))}
        loss = F.cross_entropy(logits, targets)
        right = logits.detach().argmax(dim=1) == targets.argmax(dim=1)
        return {"loss": term_of_mean(loss, len(logits)), "accuracy": term_of_mean(right.float().mean(), len(logits))}

    def classify(self, inputs: Tensor, draw: Tensor) -> Tensor:
        """Return logits (B, classes) under the merge schedule of this step, which all ranks share."""
        model = self.model
        if isinstance(model, MViT):
            logits: Tensor = model(inputs).logits
            return logits
        reversible = isinstance(model, RevMViT) or model.config.reversible
        keep = keep_branches(draw, model.config.drop_path, model.config.depth, reversible=reversible) if self.training else None
        if isinstance(model, RevMViT):
            logits = model(inputs, keep=keep).logits
        else:
            logits = model(inputs, merge=self._drawn_schedule(draw), keep=keep).logits
        return logits

    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        """Return MAE's groups for fine-tuning: one-dimensional parameters, tokens and positions do not decay.

        In reversible trunks and in MViT, which are trained from scratch, tokens and positions decay.
        """
        if isinstance(self.model, ViT | VideoMAE) and not self.model.config.reversible:
            return layer_decay_groups(self.model, layer_decay=settings.layer_decay, weight_decay=settings.weight_decay)
        if settings.layer_decay != 1:
            raise TrainingError(f"optimiser.layer_decay: the layers of this {type(self.model).__name__} have no published decay")
        return pretraining_groups(self.model, settings.weight_decay)

    def _drawn_schedule(self, draw: Tensor) -> MergeSchedule:
        if len(self.schedules) == 1:
            return self.schedules[0]
        return self.schedules[int(random_draws.integers(random_draws.batch_draw(draw), (), 0, len(self.schedules), "merge schedule"))]


def keep_branches(draw: Tensor, drop_path: float, depth: int, *, reversible: bool) -> Tensor | None:
    """Draw which samples keep which branches in stochastic depth, (depth, 2, B) of 0 and 1; (depth, B) in a reversible trunk.

    Return None if nothing is dropped.
    """
    if not drop_path:
        return None
    rates = torch.tensor(drop_path_rates(drop_path, depth), device=draw.device)
    if reversible:
        return (random_draws.uniform(draw, (depth,), "drop path") >= rates).float().T
    return (random_draws.uniform(draw, (depth, 2), "drop path") >= rates.unsqueeze(1)).float().permute(1, 2, 0)


def labels_of(batch: Batch) -> Tensor:
    """`labels` (B, classes) where the data gives them, otherwise `label` (B,)."""
    return batch["labels"] if "labels" in batch else require_tensor(batch, "label")


def soft_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels int64 (B,), or probabilities (B, classes) → probabilities, of which `smoothing` is spread over all classes."""
    hard = F.one_hot(labels, classes).float() if labels.dim() == 1 else labels.float()
    return hard * (1 - smoothing) + smoothing / classes


@dataclass(frozen=True)
class MixupCutMix:
    """Mixup (arXiv 1710.09412) or CutMix (1905.04899) of neighbours in a batch, or neither, with one strength for the whole batch."""

    mixup: float = 0.0
    """Parameter of the Beta distribution of a sample's share; 0: no mixup."""
    cutmix: float = 0.0
    """Parameter of the Beta distribution of CutMix; 0: no CutMix."""
    probability: float = 1.0
    """Probability that a batch is mixed at all."""
    cutmix_probability: float = 0.5
    """Probability of CutMix in a mixed batch, where both are on."""

    @property
    def active(self) -> bool:
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def mix(self, pixels: Tensor, targets: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, …, H, W), all frames of a clip alike, and targets (B, classes), probabilities → the same of mixed samples.

        Samples 2k and 2k + 1 are mixed with each other, an odd last one with itself. draw: (B,); ranks share what they draw of it.
        """
        if not self.active:
            return pixels, targets
        mixed, method, level, row, column = random_draws.uniform(random_draws.batch_draw(draw), (5,), "mixing")[0].tolist()
        if mixed >= self.probability:
            return pixels, targets
        partner = (torch.arange(len(pixels)) ^ 1).clamp(max=len(pixels) - 1).to(pixels.device)
        if self.cutmix > 0 and (self.mixup <= 0 or method < self.cutmix_probability):
            height, width = pixels.shape[-2:]
            box = cut_box(height, width, float(betaincinv(self.cutmix, self.cutmix, level)), row, column)
            share = 1 - box.area / (height * width)
            pasted = pixels.clone()
            pasted[..., box.top : box.bottom, box.left : box.right] = pixels[partner][..., box.top : box.bottom, box.left : box.right]
            return pasted, blend(targets, targets[partner], share)
        share = float(betaincinv(self.mixup, self.mixup, level))
        return blend(pixels, pixels[partner], share), blend(targets, targets[partner], share)


@dataclass(frozen=True)
class CutMixBox:
    """Pixels, the last row and column excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


def cut_box(height: int, width: int, share: float, row: float, column: float) -> CutMixBox:
    """Return a box of the image's shape and 1 - share of its area, before it is clipped at the borders.

    `row` and `column` are its centre in [0, 1).
    """
    half_height, half_width = (int(side * (1 - share) ** 0.5) // 2 for side in (height, width))
    y, x = int(row * height), int(column * width)
    return CutMixBox(max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width))


def blend(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Mix tensors of any shape; `share` is the weight of `a`."""
    return a * share + b * (1 - share)
