"""The video transformer of MAE-ST (arXiv 2205.09113), fine-tuned for classification, with token merging as an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.block import TransformerBlock, drop_path_rates, init_head, load_encoder
from models.layers.forward import ClassifierOutput
from models.layers.masked_encoder import initialise_linears
from models.layers.patches import SpaceTimePositions, TubePatchEmbed, require_clip_patches, require_shape
from models.layers.reversible import run_trunk
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule


@dataclass(frozen=True)
class VideoEncoderConfig:
    """Fields that pre-training and classification share. The defaults are the published ViT-L: 16 frames at 224 px, 1568 patches."""

    image_size: int = 224
    patch_size: int = 16
    frames: int = 16
    patch_frames: int = 2
    channels: int = 3
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    class_token: bool = True
    separate_positions: bool = True
    """One position table for space and one for time; otherwise one for both."""
    reversible: bool = False
    """The encoder has the trunk of a Rev-ViT, which outputs twice as many channels."""

    def __post_init__(self) -> None:
        require_clip_patches(self.frames, self.patch_frames, self.image_size, self.patch_size)

    @property
    def special_tokens(self) -> int:
        return int(self.class_token)

    @property
    def features(self) -> int:
        """Number of channels after the last block."""
        return 2 * self.width if self.reversible else self.width

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width."""
        return self.channels, self.frames, self.image_size, self.image_size

    @property
    def grid(self) -> tuple[int, int, int]:
        """Times, rows and columns of patches."""
        side = self.image_size // self.patch_size
        return self.frames // self.patch_frames, side, side

    @property
    def patches(self) -> int:
        times, rows, columns = self.grid
        return times * rows * columns


@dataclass(frozen=True)
class VideoMAEConfig(VideoEncoderConfig):
    """The defaults are the published ViT-L on Kinetics-400."""

    classes: int = 400
    proportional_attention: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    """Dropout rate before the head, in training."""
    final_norm_eps: float | None = None
    """Epsilon of the last norm; None for `norm_eps`."""
    first_in_mean: bool = False
    """Whether the mean without class token includes the first patch (VideoMAE, arXiv 2203.12602); MAE-ST leaves it out."""


SIZES: Mapping[str, VideoMAEConfig] = {
    "video_vit_base_patch16": VideoMAEConfig(width=768, depth=12, heads=12),
    "video_vit_large_patch16": VideoMAEConfig(),
    "video_vit_huge_patch16": VideoMAEConfig(width=1280, depth=32, heads=16),
}
"""The published code names the last one after patches of 14 pixels, but classifies with 16."""


class VideoMAE(nn.Module):
    """The classifier. q, k and v are one matrix here; published files have three, which `models.checkpoints` joins."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = TubePatchEmbed(config.patch_frames, config.patch_size, config.channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.pos_embed = SpaceTimePositions(width, config.grid, class_token=config.class_token, separate=config.separate_positions)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, config.heads, int(width * config.mlp_ratio), qkv_bias=config.qkv_bias, norm_eps=config.norm_eps, drop_path=rate
            )
            for rate in drop_path_rates(config.drop_path, config.depth)
        )
        self.norm = nn.LayerNorm(config.features, eps=config.norm_eps if config.final_norm_eps is None else config.final_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.features, config.classes)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.config.width, -1))
        initialise_linears(self)
        nn.init.normal_(self.head.weight, std=0.02)
        for parameter in (self.cls_token, *self.pos_embed.parameters()):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self, clips: Tensor, *, merge: MergeSchedule | None = None, trace: bool = False, keep: Tensor | None = None
    ) -> ClassifierOutput:
        """Classify normalised clips (B, channels, T, S, S). Tokens merge across frames, too. keep: as for `ViT`."""
        schedule = (merge or MergeSchedule.off()).expand(self.config.depth)
        tokens = self._embed(clips, trace)
        tokens_in = tokens.x.shape[1]
        tokens = run_trunk(self.blocks, tokens, schedule, keep, reversible=self.config.reversible, training=self.training)
        features = self.norm(self._mean(tokens))
        logits = self.head(self.dropout(features))
        return ClassifierOutput(logits, features, tokens_in, tokens.x.shape[1], tokens.size, tokens.source, tokens.token_owners)

    def _embed(self, clips: Tensor, trace: bool) -> Tokens:
        config = self.config
        x = self.patch_embed(require_shape("clips", clips, config.clip_shape))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.pos_embed()
        return Tokens(x, protected=config.special_tokens, proportional_attention=config.proportional_attention, traced=trace)

    def _mean(self, tokens: Tokens) -> Tensor:
        """Return the mean token (B, C). The published model leaves the first one out even if it is a patch; after merging there is no
        first patch, and the mean is over all of them."""
        if tokens.size is None and not self.config.first_in_mean:
            return tokens.x[:, 1:].mean(dim=1)
        return tokens.mean(self.config.special_tokens, self.config.patches)


def init_video_mae_from_pretraining(model: VideoMAE, pretrained: Mapping[str, Tensor]) -> None:
    """Load a pre-trained encoder with its last norm into a classifier that is to be fine-tuned, in place; the head starts near zero.

    Raises ValueError naming what does not fit: unlike those of images, position tables are not resized.
    """
    load_encoder(model, pretrained, fresh=("head.",))
    init_head(model.head)
