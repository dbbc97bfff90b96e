"""Matching images with texts by the contrastive loss of CLIP (arXiv 2103.00020): FLIP, which masks images (2212.00794), and LiT as MAWS
uses it, where the vision tower is frozen (2303.13496). CiT is `training.objectives.cit`."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.systems.image_text.dual_encoder import unit_vectors
from models.systems.image_text.flip import FLIP
from models.systems.image_text.maws import MAWSClip
from training import collectives, random_draws
from training.objectives.checks import require_model, require_tensor
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings
from training.optim import ParameterGroup, group_by_decay
from training.recipe_settings import OptimiserSettings


class ContrastiveSettings(ObjectiveSettings):
    """Temperature and mask ratio are the model's."""

    kind: Literal["contrastive"] = "contrastive"
    masked: bool = True
    """Leave out `mask_ratio` of FLIP's patches; False: FLIP's unmasked tuning."""
    freeze_vision: bool = False
    """Train the text tower and the projections alone (LiT, arXiv 2111.07991)."""

    def build(self, model: nn.Module, context: ObjectiveContext) -> ContrastiveObjective:
        return ContrastiveObjective(require_model(self.kind, model, FLIP, MAWSClip), self)


class ContrastiveObjective(nn.Module):
    """Batch: normalised `pixels` (B, 3, S, S) and the `words` of their captions, token ids (B, N); or (B, K, N) where each image has K
    captions, whose losses are averaged."""

    def __init__(self, model: FLIP | MAWSClip, settings: ContrastiveSettings) -> None:
        super().__init__()
        self.model = model
        self.masked = settings.masked and isinstance(model, FLIP)
        self.freeze_vision = settings.freeze_vision
        if settings.freeze_vision:
            model.vision.requires_grad_(False)

    def train(self, mode: bool = True) -> ContrastiveObjective:
        super().train(mode)
        if self.freeze_vision:
            self.model.vision.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.losses(require_tensor(batch, "pixels"), require_tensor(batch, "words"), self.noise(batch))

    def noise(self, batch: Batch) -> Tensor | None:
        """Drawn for the patches of each image, (B, L); None: all are seen."""
        return random_draws.uniform(batch["draw"], (self.model.config.vision.patches,), "mask") if self.masked else None

    def losses(self, images: Tensor, words: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses. FLIP encodes the patches with the lowest `noise` (B, L), uniform; None: all of them."""
        return self.compare(*self.encode(images, words, noise))

    def encode(self, images: Tensor, words: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return unit vectors of the images (B, C) and of their texts (B, K, C)."""
        texts = words if words.dim() == 3 else words.unsqueeze(1)  # (B, K, N)
        if isinstance(self.model, FLIP):
            seen, read = self.model.encode_images(images, noise=noise), self.model.encode_texts(texts.flatten(0, 1))
        else:
            seen, read = unit_vectors(self.model.encode_images(images)), unit_vectors(self.model.encode_texts(texts.flatten(0, 1)))
        return seen, read.view(*texts.shape[:2], -1)

    def compare(self, seen: Tensor, read: Tensor) -> dict[str, Tensor]:
        """Compare unit vectors of images `seen` (B, C) and texts `read` (B, K, C)."""
        scale = self.model.scale()
        matched = [contrast(seen, text, scale) for text in read.unbind(1)]
        return {name: torch.stack([losses[name] for losses in matched]).mean() for name in matched[0]}

    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        return group_by_decay(self.model, lambda name, parameter: decay_of(name, parameter, settings.weight_decay))


def decay_of(name: str, parameter: nn.Parameter, weight_decay: float) -> float:
    """Return FLIP's weight decay: 0 for biases, norms and position tables, but not for tokens, the token table and the temperature."""
    return 0.0 if "pos_embed" in name or (parameter.dim() == 1 and name != "logit_scale") else weight_decay


def contrast(x: Tensor, y: Tensor, scale: Tensor | float, *, symmetric: bool = True) -> dict[str, Tensor]:
    """Cross-entropy of finding each row's partner among the rows of all ranks: `loss`, and `accuracy` of finding y for x.

    x, y: (B, C), unit vectors, row by row a pair; scale: factor of their cosines; symmetric: also of finding x for y.
    """
    partner = torch.arange(len(x), device=x.device) + collectives.rank() * len(x)
    with torch.autocast(x.device.type, enabled=False):  # cosines times 100 would be coarse in half precision
        x, y = x.float(), y.float()
        to_y = scale * (x @ collectives.all_gather(y).T)  # (B, world · B)
        loss = F.cross_entropy(to_y, partner)
        if symmetric:
            loss = (loss + F.cross_entropy(scale * (y @ collectives.all_gather(x).T), partner)) / 2
    return {"loss": loss, "accuracy": (to_y.detach().argmax(dim=1) == partner).float().mean()}
