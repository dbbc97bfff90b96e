"""Masked autoencoder pre-training (MAE, arXiv 2111.06377). The fine-tuned model is `models.vit.ViT` with `Pool.MEAN`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.block import Block
from models.layers.masked_encoder import MaskedEncoder
from models.layers.patches import PatchEmbed, patch_statistics, patchify, unpatchify
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


@dataclass(frozen=True)
class Pictures:
    """Normalised, (B, channels, S, S); `models.layers.patches.to_pixels` makes bytes of them."""

    masked: Tensor
    """Removed patches are 0, the colour of the mean."""
    pasted: Tensor
    """Removed patches are as predicted. Where the model predicts normalised patches they get the true mean and deviation, which only the
    whole picture tells: a way to look at such a model, not one to fill holes."""


class MAE(MaskedEncoder):
    """Encoder on the visible patches, small decoder on all."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__(
            PatchEmbed(config.patch_size, config.channels, config.width),
            sincos_table(config.width, config.side),
            depth=config.depth,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            norm_eps=config.norm_eps,
        )
        self.config = config
        small = config.decoder_width
        self.decoder_embed = nn.Linear(config.width, small)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, small))
        self.decoder_pos_embed = nn.Parameter(sincos_table(small, config.side), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(small, config.decoder_heads, int(small * config.mlp_ratio), norm_eps=config.norm_eps) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(small, eps=config.norm_eps)
        self.decoder_pred = nn.Linear(small, config.patch_size**2 * config.channels)
        self.initialise(self.mask_token)

    def forward(self, images: Tensor, noise: Tensor) -> Reconstruction:
        """Normalised images (B, channels, S, S); noise (B, L), uniform: the caller owns the randomness."""
        masking = Masking.by_noise(noise, self.config.visible)
        predicted = self.decode(self.encode_visible(images, masking.kept), masking)
        error = (predicted - self.targets(images)).square().mean(dim=-1)  # (B, L)
        loss = (error * masking.mask).sum() / masking.mask.sum()
        return Reconstruction(loss, predicted, masking.mask)

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
        mean, deviation = patch_statistics(patches)
        return (patches - mean) / deviation

    def pictures(self, images: Tensor, answer: Reconstruction) -> Pictures:
        """Normalised images (B, channels, S, S) and what `forward` answered to them."""
        patches, predicted, mask = patchify(images, self.config.patch_size), answer.patches, answer.mask.unsqueeze(-1)
        if self.config.normalise_targets:
            mean, deviation = patch_statistics(patches)
            predicted = predicted * deviation + mean
        visible = patches * (1 - mask)
        return Pictures(unpatchify(visible, self.config.patch_size), unpatchify(visible + predicted * mask, self.config.patch_size))


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
