"""Matching of images and texts with a learned vector per thing, a proxy, in addition to FLIP's contrastive loss.

Proxy-NCA (arXiv 1703.07464) as a softmax over all proxies: a step compares with all things, not only with those of its batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.layers.efficientnet_lite import STAGES, LitePatches
from models.layers.patches import PatchEmbed
from models.systems.image_text.flip import FLIP
from training.curation import Captions
from training.objectives.checks import require_model, require_tensor
from training.objectives.cit import CurationRounds, CurationSettings
from training.objectives.contrastive import ContrastiveObjective, ContrastiveSettings, decay_of
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings
from training.optim import ParameterGroup, group_by_decay
from training.recipe_settings import OptimiserSettings

_STEM = "vision.patch_embed.encoder."
_SOFTER = 0.3
"""Share of a middle singular value that is added to all: the weakest directions of what is seen are mostly noise."""


class ProxiesSettings(ObjectiveSettings):
    """Temperature and mask ratio are the model's."""

    kind: Literal["proxies"] = "proxies"
    masked: bool = True
    """Leave out `mask_ratio` of the patches; False: FLIP's unmasked tuning."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Smoothing of the labels of images; texts have none."""
    contrast: float = Field(default=0.5, ge=0)
    """Weight of the contrastive loss."""
    frozen_stages: int = Field(default=0, ge=0, le=len(STAGES))
    """Stages of a stem of convolutions that keep their weights."""
    stem_scale: float = Field(default=1.0, gt=0)
    """Learning rate of the stem's other stages, as a share of the network's. They do not decay."""
    curation: CurationSettings | None = None
    """Choose samples by their captions as CiT does; None: learn from all."""

    def build(self, model: nn.Module, context: ObjectiveContext) -> ProxyObjective:
        flip = require_model(self.kind, model, FLIP)
        if not context.labels:
            raise ValueError("proxies: the data does not say which thing a sample is")
        if self.curation is not None:
            return CuratedProxyObjective(flip, self, len(context.labels), self.curation)
        return ProxyObjective(flip, self, len(context.labels))


class ProxyObjective(nn.Module):
    """Batch: normalised `pixels` (B, 3, S, S); the `words` of K texts of each, token ids (B, K, N); `label` int64 (B,), the thing."""

    def __init__(self, model: FLIP, settings: ProxiesSettings, things: int) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.pairs = ContrastiveObjective(model, ContrastiveSettings(masked=settings.masked))
        self.proxies = nn.Parameter(torch.empty(things, model.config.joint_width))
        nn.init.normal_(self.proxies, std=0.02)
        if isinstance(model.vision.patch_embed, LitePatches):
            model.vision.patch_embed.freeze(settings.frozen_stages)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        seen, read = self.pairs.encode(require_tensor(batch, "pixels"), require_tensor(batch, "words"), self.pairs.noise(batch))
        return self.losses(seen, read, require_tensor(batch, "label"))

    def losses(self, seen: Tensor, read: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Return the losses of unit vectors `seen` (B, C) and `read` (B, K, C) of things `label` (B,)."""
        pairs, scale = self.pairs.compare(seen, read), self.model.scale()
        with torch.autocast(seen.device.type, enabled=False):  # as `contrast`
            proxies = F.normalize(self.proxies, dim=1)
            of_images = scale * (seen.float() @ proxies.T)  # (B, things)
            of_texts = scale * (read.float() @ proxies.T)  # (B, K, things)
            images = F.cross_entropy(of_images, label, label_smoothing=self.settings.label_smoothing)
            texts = F.cross_entropy(of_texts.flatten(0, 1), label.repeat_interleave(of_texts.shape[1]))
        return {
            "loss": images + texts + self.settings.contrast * pairs["loss"],
            "images": images.detach(),
            "texts": texts.detach(),
            "accuracy": (of_images.detach().argmax(dim=1) == label).float().mean(),
        }

    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        """Return FLIP's groups, with a learning rate scale and no decay for the stem."""

        def decay(name: str, parameter: nn.Parameter) -> float:
            return 0.0 if name.startswith(_STEM) else decay_of(name, parameter, settings.weight_decay)

        def scale(name: str) -> float:
            return self.settings.stem_scale if name.startswith(_STEM) else 1.0

        proxies = ParameterGroup(params=[self.proxies], names=["proxies"], weight_decay=settings.weight_decay, lr_scale=1.0)
        return [*group_by_decay(self.model, decay, scale), proxies]


class CuratedProxyObjective(ProxyObjective):
    """Proxy objective that chooses its samples: an epoch is a round of CiT (arXiv 2301.02241)."""

    def __init__(self, model: FLIP, settings: ProxiesSettings, things: int, curation: CurationSettings) -> None:
        super().__init__(model, settings, things)
        self.rounds = CurationRounds(curation)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        values = super().forward(batch)
        return values | {"curation_ratio": values["loss"].new_tensor(self.rounds.curator.ratio)}

    @property
    def epoch_steps(self) -> int:
        return self.rounds.settings.steps

    def subset(self, captions: Captions, epoch: int, batch: int) -> Tensor:
        """Choose samples as in `CurationRounds.choose`, (n,) int64."""
        return self.rounds.choose(self, captions, epoch, batch, lambda words: self.model.text(words.to(self.proxies.device)).float())

    def get_extra_state(self) -> str:
        return self.rounds.curator.state()

    def set_extra_state(self, state: str) -> None:
        self.rounds.curator.restore(state)


def skip_blocks(model: FLIP) -> None:
    """Silence every block of the image tower, in place: tokens leave it as they came."""
    for block in model.vision.blocks:
        for name in ("attn.proj", "mlp.fc2"):
            layer = block.get_submodule(name)
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)


@torch.no_grad()
def fit_proxies(objective: ProxyObjective, batches: Iterable[Batch], *, whitened: bool) -> None:
    """Set each proxy, in place, to the mean of its thing's images; those of things that are not met stay.

    whitened: before it, set the scale of the patches so that each channel varies by 1, and the projection of images so that what all
    images share is gone and the rest differs alike in all directions.
    """
    model = objective.model
    was_training = model.training
    model.eval()
    rows, labels = [], []
    for number, batch in enumerate(batches):
        if whitened and number == 0:
            _standardise(model.vision.patch_embed, require_tensor(batch, "pixels"))
        rows.append(model.vision(require_tensor(batch, "pixels")).features)
        labels.append(require_tensor(batch, "label"))
    model.train(was_training)
    features, things = torch.cat(rows), torch.cat(labels)  # (N, C), (N,)
    if whitened:
        _whiten(model.vision_projection, features.double())
    seen = F.normalize(model.project_images(features), dim=1)
    summed = torch.zeros_like(objective.proxies).index_add_(0, things, seen)
    met = torch.bincount(things, minlength=len(summed)) > 0
    objective.proxies[met] = F.normalize(summed[met], dim=1)


def _whiten(projection: nn.Linear, features: Tensor) -> None:
    """Set the projection from features (N, C)."""
    mean = features.mean(dim=0)
    shared = mean / mean.norm()
    residual = features - (features @ shared).unsqueeze(1) * shared
    _, strengths, directions = torch.linalg.svd(residual - residual.mean(dim=0), full_matrices=False)
    weights = directions.T / (strengths + _SOFTER * strengths[len(strengths) // 4]) * len(features) ** 0.5  # (C, C)
    weights = (weights - torch.outer(shared, shared @ weights)).T.float()
    rank = min(len(weights), len(projection.weight))
    projection.weight[:rank] = weights[:rank]


def _standardise(patches: PatchEmbed | LitePatches, images: Tensor) -> None:
    """Fold into the projection of patches what makes each channel of these of mean 0 and standard deviation 1."""
    std, mean = torch.std_mean(patches(images), dim=(0, 1))
    patches.proj.weight.div_(std.view(-1, 1, 1, 1))
    assert patches.proj.bias is not None
    patches.proj.bias.sub_(mean).div_(std)
