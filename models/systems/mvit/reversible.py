"""Reversible ViT and MViT as in SlowFast (arXiv 2302.04869): reversible stages with ordinary blocks between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor, nn

from models.layers.block import Mlp, ResidualBranch, drop_branch, drop_path_rates, drop_scale, initialise_like_slowfast
from models.layers.patches import Grid
from models.layers.reversible import ReversibleCoupling, Streams, run_reversible, split_streams
from models.systems.mvit.model import Activation, MViTOutput
from models.systems.mvit.pooling_attention import PoolingAttention, PoolingAttentionConfig
from models.systems.mvit.trunk import OverlappingPatchEmbed, Positions, TrunkConfig, factor_at, grow, make_position_table
from models.systems.vit.model import Pool, ViTConfig


class StreamFusion(StrEnum):
    MEAN = "mean"
    SUM = "sum"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    CONCATENATION = "concatenation"

    def __call__(self, z: Tensor) -> Tensor:
        """Fuse both streams (B, N, 2C) → (B, N, C); a concatenation leaves (B, N, 2C)."""
        y1, y2 = split_streams(z)
        match self:
            case StreamFusion.MEAN:
                return (y1 + y2) / 2
            case StreamFusion.SUM:
                return y1 + y2
            case StreamFusion.MAXIMUM:
                return torch.maximum(y1, y2)
            case StreamFusion.MINIMUM:
                return torch.minimum(y1, y2)
            case StreamFusion.CONCATENATION:
                return z

    def width(self, stream: int) -> int:
        return 2 * stream if self is StreamFusion.CONCATENATION else stream


@dataclass(frozen=True)
class RevMViTConfig(TrunkConfig):
    """Config of Rev-MViT. The defaults are Rev-MViT-B 16x4 on Kinetics-400."""

    transitions: tuple[int, ...] = (1, 3, 14)
    """Indices of blocks that are not reversible: they fuse the streams, pool, and double the width."""
    q_strides: tuple[tuple[int, int, int, int], ...] = ((1, 1, 2, 2), (3, 1, 2, 2), (14, 1, 2, 2))
    kv_stride: Grid | None = (1, 8, 8)
    qkv_bias: bool = False
    positions: Positions = Positions.SEPARATE
    stage_fusion: StreamFusion = StreamFusion.MEAN
    stage_mlp_ratio: float | None = None
    """Width ratio of an MLP parallel to a concatenation; None: no MLP."""
    stage_norm: bool = False
    """Whether a norm of epsilon 1e-5 precedes that MLP."""
    final_fusion: StreamFusion = StreamFusion.CONCATENATION
    mean_first: bool = False
    """Whether the mean of the tokens comes before the norm."""
    activation: Activation = Activation.SOFTMAX

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions is Positions.NONE:
            raise ValueError("positions: a reversible model has a table of positions")
        if any(block - 1 in {-1, *self.transitions} for block in self.transitions):
            raise ValueError(f"transitions: {self.transitions}, but each must follow a reversible block, whose streams it fuses")
        if self.depth - 1 in self.transitions:
            raise ValueError(f"transitions: block {self.depth - 1} is the last and must be reversible, for the head takes two streams")
        if self.final_fusion is not StreamFusion.CONCATENATION and not self.mean_first:
            raise ValueError(f"final_fusion: {self.final_fusion} needs mean_first, for otherwise the norm covers both streams")
        if (self.stage_mlp_ratio is not None or self.stage_norm) and self.stage_fusion is not StreamFusion.CONCATENATION:
            raise ValueError("stage_mlp_ratio, stage_norm: they belong to stage_fusion=concatenation")
        if self.stage_norm and self.stage_mlp_ratio is None:
            raise ValueError("stage_norm: there is no MLP before which to norm; set stage_mlp_ratio")
        for block in set(range(self.depth)) - set(self.transitions):
            if max(self.q_stride_of(block) or (1, 1, 1)) > 1 or factor_at(self.width_growth, block) != 1:
                raise ValueError(f"block {block}: only a transition can pool queries or change the width")
        for block, *stride in self.q_strides:
            if any(size % by for size, by in zip(self.grid_of(block), stride, strict=True)):
                raise ValueError(f"q_strides: {tuple(stride)} does not divide the grid {self.grid_of(block)} of block {block}")


class ReversibleBlock(nn.Module):
    """A reversible block: F is attn after norm1, G is mlp after norm2."""

    def __init__(self, attention: PoolingAttentionConfig, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        width = attention.width_out
        self.norm1 = nn.LayerNorm(attention.width, eps=attention.norm_eps)
        self.attn = PoolingAttention(attention)
        self.norm2 = nn.LayerNorm(width, eps=attention.norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = drop_path

    def forward(self, x: Tensor, grid: Grid, half: ResidualBranch) -> Tensor:
        """Apply F or G to one stream: (B, N, C) → (B, N, C)."""
        if half is ResidualBranch.ATTENTION:
            attended: Tensor = self.attn(self.norm1(x), grid)[0]
            return attended
        transformed: Tensor = self.mlp(self.norm2(x))
        return transformed

    def couple(self, x: Tensor, grid: Grid, keep: Tensor | None) -> ReversibleCoupling:
        return ReversibleCoupling(
            f_branch=lambda x2: self(x2, grid, ResidualBranch.ATTENTION),
            g_branch=lambda y1: self(y1, grid, ResidualBranch.MLP),
            parameters=tuple(self.parameters()),
            scale=drop_scale(x, self.drop_path, self.training, keep),
        )


class StageTransition(ReversibleBlock):
    """Stage-transition block: fuses two streams into one of twice the width on a coarser grid, with ordinary residuals."""

    def __init__(self, attention: PoolingAttentionConfig, config: RevMViTConfig, drop_path: float) -> None:
        super().__init__(attention, config.mlp_ratio, drop_path)
        self.fusion = config.stage_fusion
        self.fusion_norm = nn.LayerNorm(attention.width, eps=1e-5) if config.stage_norm else None
        self.fusion_mlp = Mlp(attention.width, int(attention.width * config.stage_mlp_ratio)) if config.stage_mlp_ratio else None
        self.proj = nn.Linear(attention.width, attention.width_out) if attention.width != attention.width_out else None

    def forward(self, z: Tensor, grid: Grid, keep: Tensor | None) -> Tensor:  # type: ignore[override]
        """Fuse and pool two streams: (B, N, 2C) → (B, N', C'). keep: (B,), 0 for samples whose output stochastic depth drops to zeros."""
        fused = self.fusion(z)
        if self.fusion_mlp is not None:
            fused = fused + self.fusion_mlp(fused if self.fusion_norm is None else self.fusion_norm(fused))
        shortcut = fused if self.proj is None else self.proj(fused)
        by_head = shortcut.unflatten(2, (self.attn.config.heads, -1)).transpose(1, 2)  # (B, H, N, D)
        pooled, _ = self.attn.pool_query(by_head, grid)  # by the convolution and norm of the queries
        attended, _ = self.attn(self.norm1(fused), grid)
        y = pooled.transpose(1, 2).flatten(2) + attended
        return drop_branch(y + self.mlp(self.norm2(y)), self.drop_path, self.training, keep)


class RevMViT(nn.Module):
    def __init__(self, config: RevMViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = OverlappingPatchEmbed(config)
        positions = make_position_table(config, class_token=False)
        assert positions is not None, "the config refuses a model without positions"
        self.pos_embed = positions
        self.blocks = nn.ModuleList()
        width = config.width
        for block, rate in enumerate(drop_path_rates(config.drop_path, config.depth)):
            if block in config.transitions:
                width_out = grow(width, factor_at(config.width_growth, block))
                attention = config.attention_config(block, config.stage_fusion.width(width), width_out)
                self.blocks.append(StageTransition(attention, config, rate))
                width = width_out
            else:
                attention = replace(
                    config.attention_config(block, width, width), q_stride=None
                )  # one that is listed as 1 makes no convolution
                self.blocks.append(ReversibleBlock(attention, config.mlp_ratio, rate))
        features = config.final_fusion.width(width)
        self.norm = nn.LayerNorm(features, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(features, config.classes)
        initialise_like_slowfast(self)
        for table in self.pos_embed.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, pixels: Tensor, *, keep: Tensor | None = None) -> MViTOutput:
        """Classify normalised images (B, channels, S, S) or clips (B, channels, T, S, S) of the configured size.

        keep: (depth, B) of 0 and 1, 0 for samples that skip a block by stochastic depth; None: drawn, in training. In training the
        activations of reversible blocks are not stored but recomputed in the backward pass.
        """
        x, grid = self.patch_embed(pixels)
        if grid != self.config.patch_grid:
            raise ValueError(f"pixels: {tuple(pixels.shape)} give a grid of {grid} patches where {self.config.patch_grid} are needed")
        z = self.forward_blocks(x + self.pos_embed(grid), keep)  # (B, N', 2C')
        fused = self.config.final_fusion(z)
        features = self.norm(fused.mean(dim=1)) if self.config.mean_first else self.norm(fused).mean(dim=1)
        return MViTOutput(features, self.head(self.dropout(features)), self.config.activation, x.shape[1], z.shape[1])

    def forward_blocks(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Apply all blocks to embedded patches (B, N, C); return both streams, concatenated: (B, N', 2C')."""
        dtype, recompute = x.dtype, self.training and torch.is_grad_enabled()
        streams: Streams = (x, x)
        pending: list[ReversibleCoupling] = []  # consecutive reversible blocks
        for index, block in enumerate(self.blocks):
            block_keep, grid = None if keep is None else keep[index], self.config.grid_of(index)
            if isinstance(block, StageTransition):
                z = torch.cat(run_reversible(pending, streams, recompute=recompute), dim=-1)
                x = block(z.to(dtype), grid, block_keep)
                streams, pending = (x, x), []
            else:
                assert isinstance(block, ReversibleBlock)
                pending.append(block.couple(x, grid, block_keep))
        return torch.cat(run_reversible(pending, streams, recompute=recompute), dim=-1).to(dtype)


PUBLISHED: Mapping[str, RevMViTConfig] = {
    "rev_mvit_b": RevMViTConfig(
        classes=1000,
        patch_kernel=(7, 7),
        patch_stride=(4, 4),
        patch_padding=(3, 3),
        qkv_bias=True,
        pool_kernel=(1, 3, 3),
        kv_stride=(1, 4, 4),
        positions=Positions.JOINT,
        stage_fusion=StreamFusion.CONCATENATION,
        stage_mlp_ratio=2.0,
        drop_path=0.1,
    ),
    "rev_mvit_b_16x4": RevMViTConfig(drop_path=0.05, dropout=0.5),
}

PLAIN_REV_VIT = ViTConfig(class_token=False, pool=Pool.NORM_MEAN, reversible=True)

PUBLISHED_VITS: Mapping[str, ViTConfig] = {
    "rev_vit_s": replace(PLAIN_REV_VIT, width=384, heads=6, drop_path=0.1),
    "rev_vit_b": replace(PLAIN_REV_VIT, drop_path=0.2),
    "rev_vit_l": replace(PLAIN_REV_VIT, width=1024, depth=24, heads=16),
}
"""Published sizes of Rev-ViT; the large one is in the paper only."""
