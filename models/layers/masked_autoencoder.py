"""The masked autoencoder of MAE, Audio-MAE and both halves of MAViL: an encoder of visible patches, and a small decoder of all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.block import TransformerBlock
from models.layers.masked_encoder import MaskedEncoder
from models.layers.masking import Masking
from models.layers.token_merging import Tokens


@dataclass(frozen=True)
class DecoderSpec:
    """Dimensions of a decoder."""

    positions: Tensor
    """(1, 1 + L, Cd), fixed, the class token's first."""
    depth: int
    heads: int
    values: int
    """Number of values predicted for each patch."""


@dataclass(frozen=True)
class MAEOutput:
    loss: Tensor
    """Scalar: mean squared error over the masked patches of the whole batch."""
    patches: Tensor
    """(B, L, values) predicted, in the order of `patchify`."""
    mask: Tensor
    """(B, L), 1 for masked patches."""


class MaskedAutoencoder(MaskedEncoder):
    """A base class, so that parameters have the published names."""

    def __init__(
        self,
        patch_embed: nn.Module,
        positions: Tensor,
        decoder: DecoderSpec,
        *,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        reversible: bool = False,
    ) -> None:
        """reversible: whether the encoder is."""
        super().__init__(
            patch_embed,
            positions,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            norm_eps=norm_eps,
            reversible=reversible,
        )
        width = decoder.positions.shape[-1]
        self.decoder_embed = nn.Linear(self.width_out, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(decoder.positions, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            TransformerBlock(width, decoder.heads, int(width * mlp_ratio), qkv_bias=qkv_bias, norm_eps=norm_eps)
            for _ in range(decoder.depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=norm_eps)
        self.decoder_pred = nn.Linear(width, decoder.values)
        self.initialise(self.mask_token)

    def decode(self, encoded: Tensor, masking: Masking) -> Tensor:
        """Decode visible tokens (B, 1 + visible, C) → predicted patches (B, L, values)."""
        x = self.decoder_embed(encoded)  # (B, 1 + visible, Cd)
        raster = masking.unshuffle(x[:, 1:], self.mask_token)  # (B, L, Cd)
        x = torch.cat([x[:, :1], raster], dim=1) + self.decoder_pos_embed
        predicted: Tensor = self.decoder_pred(self.decoder_norm(self.run_decoder(x)))
        return predicted

    def run_decoder(self, x: Tensor) -> Tensor:
        """Run the decoder's blocks: (B, 1 + L, Cd) → (B, L, Cd), without the class token."""
        tokens = Tokens(x)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return tokens.x[:, 1:]

    def reconstruct(self, images: Tensor, noise: Tensor, visible: int, targets: Tensor) -> MAEOutput:
        """Mask patches by noise (B, L), uniform, which the caller draws, and predict `targets` (B, L, values)."""
        masking = Masking.from_noise(noise, visible)
        predicted = self.decode(self.encode_visible(images, masking.ids_keep), masking)
        loss = masking.masked_mean((predicted - targets).square().mean(dim=-1))
        return MAEOutput(loss, predicted, masking.mask)
