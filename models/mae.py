"""Masked autoencoder pre-training (MAE, arXiv 2111.06377). The fine-tuned model is `models.vit.ViT` with `Pool.MEAN`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.block import Block
from models.layers.patches import PatchEmbed, patchify
from models.layers.positions import resize_table, sincos_table
from models.token_merging import Tokens
from models.vit import ViT


@dataclass(frozen=True)
class MAEConfig:
    """The defaults are ViT-B/16 with the published decoder."""

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    mask_ratio: float = 0.75
    normalise_targets: bool = False
    """Predict each patch with its own mean taken off and divided by its own deviation (`norm_pix_loss`)."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")

    @property
    def side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.side**2

    @property
    def visible(self) -> int:
        """Patches that the encoder sees; the product is truncated, not rounded."""
        return int(self.patches * (1 - self.mask_ratio))


@dataclass(frozen=True)
class Masking:
    """Which patches are visible. All by noise: its ascending order is the order of the patches for the encoder."""

    kept: Tensor
    """(B, visible) positions, in order of their noise."""
    restore: Tensor
    """(B, L) where each position is in that order."""
    mask: Tensor
    """(B, L) 1 where a patch is removed, 0 where it is visible."""

    @staticmethod
    def by_noise(noise: Tensor, visible: int) -> Masking:
        order = noise.argsort(dim=1)
        restore = order.argsort(dim=1)
        return Masking(kept=order[:, :visible], restore=restore, mask=(restore >= visible).to(noise.dtype))


@dataclass(frozen=True)
class Reconstruction:
    loss: Tensor
    """Scalar: mean squared error over the removed patches of the whole batch."""
    patches: Tensor
    """(B, L, p·p·channels) predicted values, in the order of `patchify`."""
    mask: Tensor
    """(B, L) 1 where a patch was removed."""


class MAE(nn.Module):
    """Encoder on the visible patches, small decoder on all. The encoder's parameter names are those of `ViT`."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        width, small = config.width, config.decoder_width
        self.patch_embed = PatchEmbed(config.patch_size, config.channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_table(width, config.side), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, int(width * config.mlp_ratio), norm_eps=config.norm_eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.decoder_embed = nn.Linear(width, small)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, small))
        self.decoder_pos_embed = nn.Parameter(sincos_table(small, config.side), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(small, config.decoder_heads, int(small * config.mlp_ratio), norm_eps=config.norm_eps) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(small, eps=config.norm_eps)
        self.decoder_pred = nn.Linear(small, config.patch_size**2 * config.channels)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.config.width, -1))  # as the linear layer that it is
        for token in (self.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, noise: Tensor) -> Reconstruction:
        """Normalised images (B, channels, S, S); noise (B, L), uniform: the caller owns the randomness."""
        masking = Masking.by_noise(noise, self.config.visible)
        predicted = self.decode(self.encode(images, masking), masking)
        error = (predicted - self.targets(images)).square().mean(dim=-1)  # (B, L)
        loss = (error * masking.mask).sum() / masking.mask.sum()
        return Reconstruction(loss, predicted, masking.mask)

    def encode(self, images: Tensor, masking: Masking) -> Tensor:
        """→ (B, 1 + visible, C), the class token first, patches in the order of `masking.kept`."""
        patches = self.embed(images)
        index = masking.kept.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        tokens = Tokens(torch.cat([class_token, patches.gather(1, index)], dim=1))
        for block in self.blocks:
            tokens = block(tokens)
        encoded: Tensor = self.norm(tokens.x)
        return encoded

    def embed(self, images: Tensor) -> Tensor:
        """→ (B, L, C), patches with their position, before masking."""
        embedded: Tensor = self.patch_embed(images) + self.pos_embed[:, 1:]
        return embedded

    def decode(self, encoded: Tensor, masking: Masking) -> Tensor:
        """(B, 1 + visible, C) → predicted patches (B, L, p·p·channels)."""
        x = self.decoder_embed(encoded)  # (B, 1 + visible, Cd)
        batch, length = masking.restore.shape
        removed = self.mask_token.to(x.dtype).expand(batch, length - self.config.visible, -1)
        shuffled = torch.cat([x[:, 1:], removed], dim=1)  # (B, L, Cd)
        raster = shuffled.gather(1, masking.restore.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        tokens = Tokens(torch.cat([x[:, :1], raster], dim=1) + self.decoder_pos_embed)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        predicted: Tensor = self.decoder_pred(self.decoder_norm(tokens.x))
        return predicted[:, 1:]

    def targets(self, images: Tensor) -> Tensor:
        """→ (B, L, p·p·channels), what the decoder is to predict."""
        patches = patchify(images, self.config.patch_size)
        if not self.config.normalise_targets:
            return patches
        return (patches - patches.mean(dim=-1, keepdim=True)) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def start_from_pretrained(model: ViT, pretrained: Mapping[str, Tensor]) -> None:
    """Load an MAE encoder into a classifier that is to be fine-tuned, in place.

    The position table is resized to the model's; the head starts near zero (truncated normal of deviation 2e-5); `fc_norm` starts fresh,
    since MAE's `norm` was trained for another place; what only the decoder needs is left out. Raises ValueError naming what does not fit.
    """
    own = model.state_dict()
    fresh = ("head.", "fc_norm.")
    wanted = [name for name in own if not name.startswith(fresh)]
    missing = [name for name in wanted if name not in pretrained]
    if missing:
        raise ValueError(f"the pre-trained weights lack {', '.join(missing)}")
    weights = {name: pretrained[name] for name in wanted}
    weights["pos_embed"] = resize_table(weights["pos_embed"], model.config.patches, special=model.config.special_tokens)
    wrong = [name for name in wanted if weights[name].shape != own[name].shape]
    if wrong:
        raise ValueError(f"the pre-trained weights have another shape: {', '.join(wrong)}")
    model.load_state_dict(weights, strict=False)
    nn.init.trunc_normal_(model.head.weight, std=2e-5)
    nn.init.zeros_(model.head.bias)
