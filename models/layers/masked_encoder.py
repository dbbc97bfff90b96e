"""The masked autoencoder of MAE, Audio-MAE and both halves of MAViL: random masking of patches, an encoder of the visible ones, and a small
decoder of all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.block import TransformerBlock, drop_path_rates
from models.layers.reversible import run_trunk
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule


@dataclass(frozen=True)
class Masking:
    """Visible patches, chosen by noise, whose ascending order is their order in the encoder; of equal values, the first one is first."""

    ids_keep: Tensor
    """(B, visible), indices of the visible patches, in order of their noise."""
    ids_restore: Tensor
    """(B, L), position of each patch in that order."""
    mask: Tensor
    """(B, L), 1 for masked patches, 0 for visible ones."""

    @staticmethod
    def from_noise(noise: Tensor, visible: int) -> Masking:
        order = noise.argsort(dim=1, stable=True)
        restore = order.argsort(dim=1)
        return Masking(ids_keep=order[:, :visible], ids_restore=restore, mask=(restore >= visible).to(noise.dtype))

    def unshuffle(self, visible: Tensor, mask_token: Tensor) -> Tensor:
        """Put visible patches (B, V, C) back in their places → (B, L, C), the masked ones as the mask token (1, 1, C)."""
        batch, length = self.ids_restore.shape
        masked = mask_token.to(visible.dtype).expand(batch, length - visible.shape[1], -1)
        return gather_tokens(torch.cat([visible, masked], dim=1), self.ids_restore)

    def masked_mean(self, errors: Tensor) -> Tensor:
        """Return the mean of errors (B, L) over the masked patches of the whole batch."""
        return (errors * self.mask).sum() / self.mask.sum()


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Gather tokens by index: (B, L, C), or (1, L, C) for the whole batch, and (B, V) → (B, V, C).

    Whole rows are copied: on a CPU many times faster than `gather` with an expanded index.
    """
    batch, length, width = tokens.shape
    if batch > 1:
        ids = ids + torch.arange(0, batch * length, length, device=ids.device).unsqueeze(1)
    return tokens.reshape(batch * length, width).index_select(0, ids.flatten()).view(*ids.shape, width)


class MaskedEncoder(nn.Module):
    """A base class with the parameter names of `ViT`, so that weights can be exchanged."""

    def __init__(
        self,
        patch_embed: nn.Module,
        positions: Tensor,
        *,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        final_norm: bool = True,
        drop_path: float = 0.0,
        reversible: bool = False,
    ) -> None:
        """patch_embed: images or clips → (B, L, C); positions: (1, 1 + L, C), fixed, the class token's first; reversible: use two streams,
        whose output has 2C channels."""
        super().__init__()
        width = positions.shape[-1]
        self.reversible = reversible
        self.width_out = 2 * width if reversible else width
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, int(width * mlp_ratio), qkv_bias=qkv_bias, norm_eps=norm_eps, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(self.width_out, eps=norm_eps) if final_norm else nn.Identity()

    def initialise(self, *tokens: nn.Parameter) -> None:
        """Initialise as MAE: Xavier for linear layers, biases 0, standard deviation 0.02 for the class token and other `tokens`."""
        convolution = self.patch_embed.get_parameter("proj.weight")
        nn.init.xavier_uniform_(convolution.view(convolution.shape[0], -1))  # as the linear layer that it is
        for token in (self.cls_token, *tokens):
            nn.init.normal_(token, std=0.02)
        initialise_linears(self)

    def embed(self, images: Tensor) -> Tensor:
        """Embed patches with their positions, before masking: → (B, L, C)."""
        embedded: Tensor = self.patch_embed(images) + self.pos_embed[:, 1:]
        return embedded

    def with_class_token(self, patches: Tensor) -> Tensor:
        """Prepend the class token: (B, V, C) → (B, 1 + V, C)."""
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat([class_token, patches], dim=1)

    def embed_visible(self, images: Tensor, ids_keep: Tensor) -> Tensor:
        """Embed the class token, then the patches `ids_keep` (B, V) in that order: → (B, 1 + V, C)."""
        return self.with_class_token(gather_tokens(self.embed(images), ids_keep))

    def run(self, tokens: Tokens, merge: MergeSchedule | None = None) -> Tokens:
        """Run all blocks, without the final norm."""
        schedule = (merge or MergeSchedule.off()).expand(len(self.blocks))
        return run_trunk(self.blocks, tokens, schedule, reversible=self.reversible, training=self.training)

    def encode_visible(self, images: Tensor, ids_keep: Tensor) -> Tensor:
        """Encode the tokens of `embed_visible` with the final norm: → (B, 1 + V, C)."""
        encoded: Tensor = self.norm(self.run(Tokens(self.embed_visible(images, ids_keep))).x)
        return encoded


def initialise_linears(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class DecoderSpec:
    positions: Tensor
    """(1, 1 + L, Cd), fixed, the class token's first."""
    depth: int
    heads: int
    values: int


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
