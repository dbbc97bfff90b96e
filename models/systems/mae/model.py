"""Masked autoencoder pre-training (MAE, arXiv 2111.06377). The fine-tuned model is `models.systems.vit.model.ViT` with `Pool.MEAN`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.layers.block import init_head, load_encoder
from models.layers.forward import EmbedBatchOptions, image_vectors, normalise, token_vectors
from models.layers.masked_encoder import DecoderSpec, MAEOutput, MaskedAutoencoder
from models.layers.patches import (
    PatchEmbed,
    normalise_patches,
    patch_statistics,
    patchify,
    require_image_patches,
    require_shape,
    resize_table,
    sincos_table,
    unpatchify,
)
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from models.systems.vit.model import ViT


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
    """Targets are patches normalised by their own mean and standard deviation (`norm_pix_loss`)."""
    reversible: bool = False
    """The encoder has the trunk of a Rev-ViT."""

    def __post_init__(self) -> None:
        require_image_patches(self.image_size, self.patch_size)

    @property
    def side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.side**2

    @property
    def special_tokens(self) -> int:
        """The class token, which comes first."""
        return 1

    @property
    def visible(self) -> int:
        """Number of patches that are encoded; the product is truncated, not rounded."""
        return int(self.patches * (1 - self.mask_ratio))


SIZES: Mapping[str, MAEConfig] = {
    "mae_vit_base_patch16": MAEConfig(),
    "mae_vit_large_patch16": MAEConfig(width=1024, depth=24, heads=16),
    "mae_vit_huge_patch14": MAEConfig(patch_size=14, width=1280, depth=32, heads=16),
}


@dataclass(frozen=True)
class MAEVisualisation:
    """Normalised images, (B, channels, S, S); `models.layers.patches.to_pixels` makes bytes of them."""

    masked: Tensor
    """Removed patches are 0, the colour of the mean."""
    pasted: Tensor
    """Removed patches are as predicted. Normalised predictions get the true mean and standard deviation, which are known from the whole
    image only: this visualises a model, it does not fill holes."""


class MAE(MaskedAutoencoder):
    def __init__(self, config: MAEConfig) -> None:
        super().__init__(
            PatchEmbed(config.patch_size, config.channels, config.width),
            sincos_table(config.width, config.side),
            DecoderSpec(
                positions=sincos_table(config.decoder_width, config.side),
                depth=config.decoder_depth,
                heads=config.decoder_heads,
                values=config.patch_size**2 * config.channels,
            ),
            depth=config.depth,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            norm_eps=config.norm_eps,
            reversible=config.reversible,
        )
        self.config = config

    def forward(self, images: Tensor, noise: Tensor) -> MAEOutput:
        """Reconstruct normalised images (B, channels, S, S). noise: (B, L), uniform, drawn by the caller."""
        images = require_shape("images", images, (self.config.channels, self.config.image_size, self.config.image_size))
        return self.reconstruct(images, noise, self.config.visible, self.targets(images))

    def encode_tokens(self, images: Tensor, merge: MergeSchedule | None = None, *, trace: bool = False) -> Tokens:
        """Encode all patches, unmasked → class token and patches, (B, N', C), after the last block and `norm`."""
        images = require_shape("images", images, (self.config.channels, self.config.image_size, self.config.image_size))
        tokens = Tokens(self.with_class_token(self.embed(images)), protected=self.config.special_tokens, traced=trace)
        tokens = self.run(tokens, merge)
        return replace(tokens, x=self.norm(tokens.x))

    def targets(self, images: Tensor) -> Tensor:
        """Return the patches that the decoder is to predict, (B, L, p·p·channels)."""
        patches = patchify(images, self.config.patch_size)
        return normalise_patches(patches) if self.config.normalise_targets else patches

    def visualise(self, images: Tensor, output: MAEOutput) -> MAEVisualisation:
        """Show normalised images (B, channels, S, S) with the `output` that `forward` returned for them."""
        patches, predicted, mask = patchify(images, self.config.patch_size), output.patches, output.mask.unsqueeze(-1)
        if self.config.normalise_targets:
            mean, std = patch_statistics(patches)
            predicted = predicted * std + mean
        visible = patches * (1 - mask)
        return MAEVisualisation(unpatchify(visible, self.config.patch_size), unpatchify(visible + predicted * mask, self.config.patch_size))


def init_vit_from_mae(model: ViT, pretrained: Mapping[str, Tensor]) -> None:
    """Load an MAE encoder into a classifier that is to be fine-tuned, in place. Raises ValueError naming what does not fit.

    The position table is resized to the model's; the head starts near zero; `fc_norm` is initialised, since MAE's `norm` was trained for
    another position; the decoder's weights are left out.
    """
    weights = dict(pretrained)
    if "pos_embed" in weights:
        weights["pos_embed"] = resize_table(weights["pos_embed"], model.config.patches, special=model.config.special_tokens)
    load_encoder(model, weights, fresh=("head.", "fc_norm."))
    if isinstance(model.head, nn.Linear):
        init_head(model.head)


def embed(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """Embed pixels uint8 (B, S, S, 3) → `image_vectors`, or with option `output="tokens"` `token_vectors`.

    Option `pool`: "cls", the class token, which linear probing reads (appendix A.1 of arXiv 2111.06377), or "mean", that of the patches by
    size; both after `norm`. Merged tokens do not count by their size in attention: MAE was trained without merging.
    """
    mae = cast(MAE, model)
    embed_options = EmbedBatchOptions.read(options, architectures()["mae"], mae.config)
    patches, special = mae.config.patches, mae.config.special_tokens
    images = normalise(arrays["pixels"], preprocess, mae.pos_embed.dtype)
    tokens = mae.encode_tokens(images, embed_options.merge, trace=embed_options.tokens)
    if embed_options.tokens:
        return token_vectors(tokens.x[:, special:], tokens, special + patches)
    features = tokens.x[:, 0] if embed_options.pool == "cls" else tokens.mean(special, patches)
    return image_vectors(features, special + patches, tokens.x.shape[1])
