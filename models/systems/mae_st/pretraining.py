"""Masked autoencoder pre-training on clips (MAE-ST, arXiv 2205.09113). The fine-tuned model is `models.systems.mae_st.model.VideoMAE`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.block import TransformerBlock
from models.layers.masked_encoder import MAEOutput, Masking, gather_tokens, initialise_linears
from models.layers.patches import SpaceTimePositions, TubePatchEmbed, normalise_patches, patchify_tubes, require_shape, unpatchify_tubes
from models.layers.reversible import run_trunk
from models.layers.token_merging import Tokens
from models.systems.mae_st.model import VideoEncoderConfig


@dataclass(frozen=True)
class VideoMAEPretrainingConfig(VideoEncoderConfig):
    """The defaults are the published ViT-L: 90 % of the patches removed, every second frame predicted."""

    decoder_width: int = 512
    decoder_depth: int = 4
    decoder_heads: int = 16
    predicted_frames: int = 8
    """`pred_t_dim`: how many frames of the clip are targets, spread evenly."""
    mask_ratio: float = 0.9
    normalise_targets: bool = True
    truncated_init: bool = False
    """Truncated normal, with standard deviation 0.02 for matrices and 1 for kernels, as `trunc_init` has it; otherwise Xavier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predicted_per_patch * self.grid[0] != self.predicted_frames:
            raise ValueError(f"predicted_frames: {self.predicted_frames} frames are not the same number for each of {self.grid[0]} times")

    @property
    def visible(self) -> int:
        """Number of patches that are encoded; the product is truncated, not rounded."""
        return int(self.patches * (1 - self.mask_ratio))

    @property
    def predicted_per_patch(self) -> int:
        """Number of frames that one patch predicts."""
        return self.patch_frames * self.predicted_frames // self.frames


PRETRAINING_SIZES: Mapping[str, VideoMAEPretrainingConfig] = {
    "mae_video_vit_base_patch16": VideoMAEPretrainingConfig(width=768, depth=12, heads=12),
    "mae_video_vit_large_patch16": VideoMAEPretrainingConfig(),
    "mae_video_vit_huge_patch16": VideoMAEPretrainingConfig(width=1280, depth=32, heads=16),
    "mae_video_vit_huge_patch14": VideoMAEPretrainingConfig(patch_size=14, width=1280, depth=32, heads=16),
}


class VideoMAEPretraining(nn.Module):
    """An encoder of the visible patches and a small decoder of all. The decoder has its own class token."""

    def __init__(self, config: VideoMAEPretrainingConfig) -> None:
        super().__init__()
        self.config = config
        width, small = config.width, config.decoder_width
        layout = {"class_token": config.class_token, "separate": config.separate_positions}
        self.patch_embed = TubePatchEmbed(config.patch_frames, config.patch_size, config.channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.pos_embed = SpaceTimePositions(width, config.grid, **layout)
        self.blocks = _blocks(config, width, config.heads, config.depth)
        self.norm = nn.LayerNorm(config.features, eps=config.norm_eps)
        self.decoder_embed = nn.Linear(config.features, small)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, small))
        self.decoder_cls_token = nn.Parameter(torch.zeros(1, 1, small)) if config.class_token else None
        self.decoder_pos_embed = SpaceTimePositions(small, config.grid, **layout)
        self.decoder_blocks = _blocks(config, small, config.decoder_heads, config.decoder_depth)
        self.decoder_norm = nn.LayerNorm(small, eps=config.norm_eps)
        self.decoder_pred = nn.Linear(small, config.predicted_per_patch * config.patch_size**2 * config.channels)
        self._initialise()

    def _initialise(self) -> None:
        initialise_linears(self)  # the decoder's class token stays 0, as published
        if self.config.truncated_init:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.trunc_normal_(self.patch_embed.proj.weight, std=1.0)
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        else:
            nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.config.width, -1))
            nn.init.normal_(self.mask_token, std=0.02)
        for parameter in (self.cls_token, *self.pos_embed.parameters(), *self.decoder_pos_embed.parameters()):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, clips: Tensor, noise: Tensor) -> MAEOutput:
        """Reconstruct normalised clips (B, channels, T, S, S). noise: (B, L), uniform, drawn by the caller."""
        clips = require_shape("clips", clips, self.config.clip_shape)
        masking = Masking.from_noise(noise, self.config.visible)
        predicted = self.decode(self.encode_visible(clips, masking.ids_keep), masking)  # (B, L, u·p·p·channels)
        patches = self.target_patches(clips)
        targets = normalise_patches(patches) if self.config.normalise_targets else patches
        loss = masking.masked_mean((predicted - targets).square().mean(dim=-1))
        return MAEOutput(loss, predicted, masking.mask)

    def encode_visible(self, clips: Tensor, visible: Tensor) -> Tensor:
        """Encode the patches `visible` (B, V) → (B, V, C) in that order, after the last norm, without class token."""
        positions, special = self.pos_embed(), int(self.config.class_token)
        x = gather_tokens(self.patch_embed(clips), visible) + gather_tokens(positions[:, special:], visible)  # (B, V, C)
        if self.cls_token is not None:
            x = torch.cat([(self.cls_token + positions[:, :1]).expand(x.shape[0], -1, -1), x], dim=1)
        encoded: Tensor = self.norm(self._run(self.blocks, x, reversible=self.config.reversible)[:, special:])
        return encoded

    def decode(self, encoded: Tensor, masking: Masking) -> Tensor:
        """Predict patches: (B, V, C) → (B, L, u·p·p·channels)."""
        x = masking.unshuffle(self.decoder_embed(encoded), self.mask_token)  # (B, L, Cd)
        if self.decoder_cls_token is not None:
            x = torch.cat([self.decoder_cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self._run(self.decoder_blocks, x + self.decoder_pos_embed())[:, int(self.config.class_token) :]
        predicted: Tensor = self.decoder_pred(self.decoder_norm(x))
        return predicted

    def _run(self, blocks: nn.ModuleList, x: Tensor, *, reversible: bool = False) -> Tensor:
        return run_trunk(blocks, Tokens(x), [0] * len(blocks), reversible=reversible, training=self.training).x

    def target_frames(self) -> Tensor:
        """Return the indices of the predicted frames, (predicted_frames,): 8 of 16 are 0, 2, …, 12 and 15."""
        return torch.linspace(0, self.config.frames - 1, self.config.predicted_frames).long()

    def target_patches(self, clips: Tensor) -> Tensor:
        """Return raw target patches, (B, L, u·p·p·channels), each in the order of frame, row, column, channel."""
        frames = clips.index_select(2, self.target_frames().to(clips.device))
        return patchify_tubes(frames, self.config.predicted_per_patch, self.config.patch_size)

    def to_clips(self, patches: Tensor) -> Tensor:
        """Arrange patches that are not normalised as clips, (B, channels, predicted_frames, S, S)."""
        config = self.config
        return unpatchify_tubes(patches, config.predicted_per_patch, config.patch_size, config.grid[:2])


def _blocks(config: VideoMAEPretrainingConfig, width: int, heads: int, depth: int) -> nn.ModuleList:
    hidden = int(width * config.mlp_ratio)
    return nn.ModuleList(TransformerBlock(width, heads, hidden, qkv_bias=config.qkv_bias, norm_eps=config.norm_eps) for _ in range(depth))
