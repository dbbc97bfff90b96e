"""HMR 2.0 (arXiv 2305.20091): the crop of a person → pose, shape and camera. A ViT in ViTPose's layout, read by one query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import torch
from torch import Tensor, nn

from models.layers.block import Attention, CrossAttention, KVCache, Mlp, TransformerBlock, drop_path_rates
from models.layers.patches import PatchEmbed
from models.layers.reversible import run_trunk
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.people.crops import FOCAL, crop_translation
from models.people.smpl import STATE_VALUES, SMPLParameters, SMPLReadout


class QueryInit(StrEnum):
    """Initial value of the decoder's token."""

    ZERO = "zero"
    ESTIMATE = "mean_shape"
    """The current estimate, the mean person first."""


@dataclass(frozen=True)
class HMR2Config:
    """The defaults are the one published size: ViT-H/16 and a decoder of six layers, 670 M parameters."""

    image_size: int = 256
    side_cut: int = 32
    """Columns that the network drops on the left and on the right."""
    patch_size: int = 16
    patch_ratio: int = 1
    """The stride of patches is patch_size / patch_ratio pixels; from 2 on they overlap. Published: 1."""
    channels: int = 3
    width: int = 1280
    depth: int = 32
    heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    drop_path: float = 0.55
    proportional_attention: bool = True
    query: QueryInit = QueryInit.ZERO
    passes: int = 1
    decoder_width: int = 1024
    decoder_depth: int = 6
    decoder_heads: int = 8
    decoder_head_dim: int = 64
    decoder_hidden: int = 1024
    decoder_norm_eps: float = 1e-5
    focal: float = FOCAL
    """Focal length in pixels of the camera that `HMR2Output.translation` refers to."""

    def __post_init__(self) -> None:
        if self.patch_ratio < 1 or self.patch_size % self.patch_ratio:
            raise ValueError(f"patch_ratio: {self.patch_ratio} does not divide patch_size {self.patch_size}")

    @property
    def patch_stride(self) -> int:
        return self.patch_size // self.patch_ratio

    @property
    def patch_padding(self) -> int:
        """Pixels of zeros around the image, by ViTPose's rule: patches of 16 then come out whole."""
        return 4 + 2 * (self.patch_ratio // 2 - 1)

    @property
    def grid(self) -> tuple[int, int]:
        extra = 2 * self.patch_padding - self.patch_size
        height, width = self.image_size, self.image_size - 2 * self.side_cut
        return (height + extra) // self.patch_stride + 1, (width + extra) // self.patch_stride + 1


PUBLISHED: Mapping[str, HMR2Config] = {"hmr2_vit_huge_patch16": HMR2Config()}


@dataclass(frozen=True)
class HMR2Output:
    person: SMPLParameters
    translation: Tensor
    """(B, 3), the body's position in front of a camera of focal length `HMR2Config.focal` that takes the crop."""
    features: Tensor
    """(B, N, C), the backbone's tokens; row by row if none merged."""
    tokens_in: int
    tokens_out: int


class HMR2(nn.Module):
    def __init__(self, config: HMR2Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.decoder = HMR2Decoder(config)

    def forward(self, crops: Tensor, *, merge: MergeSchedule | None = None) -> HMR2Output:
        """Regress people from normalised square crops (B, channels, S, S). merge: schedule of the backbone."""
        size = self.config.image_size
        if crops.dim() != 4 or crops.shape[2:] != (size, size):
            raise ValueError(f"crops: shape {tuple(crops.shape)} where (batch, {self.config.channels}, {size}, {size}) is needed")
        tokens = self.backbone(crops[..., self.config.side_cut : size - self.config.side_cut], merge or MergeSchedule.off())
        person = self.decoder(tokens)
        rows, columns = self.config.grid
        return HMR2Output(person, crop_translation(person.camera, size, self.config.focal), tokens.x, rows * columns, tokens.x.shape[1])


class Backbone(nn.Module):
    def __init__(self, config: HMR2Config) -> None:
        super().__init__()
        self.config = config
        width, (rows, columns) = config.width, config.grid
        self.patch_embed = PatchEmbed(config.patch_size, config.channels, width, config.patch_padding, config.patch_stride)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, config.heads, int(width * config.mlp_ratio), qkv_bias=config.qkv_bias, norm_eps=config.norm_eps, drop_path=rate
            )
            for rate in drop_path_rates(config.drop_path, config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Tensor, merge: MergeSchedule) -> Tokens:
        """(B, channels, H, W) → (B, N, C). The class token's position, which ViTPose kept without the token, is added to every patch."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        tokens = Tokens(x, proportional_attention=self.config.proportional_attention)
        tokens = run_trunk(self.blocks, tokens, merge.expand(self.config.depth), reversible=False)
        return Tokens(self.norm(tokens.x), proportional_attention=tokens.proportional_attention, size=tokens.size)


class HMR2Decoder(nn.Module):
    def __init__(self, config: HMR2Config) -> None:
        super().__init__()
        self.config = config
        width = config.decoder_width
        self.token_embed = nn.Linear(1 if config.query is QueryInit.ZERO else STATE_VALUES, width)
        self.pos_embed = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(HMR2DecoderBlock(config) for _ in range(config.decoder_depth))
        self.readout = SMPLReadout(width)

    def forward(self, context: Tokens) -> SMPLParameters:
        """(B, N, C) → one person for each row. Keys and values are the same in every pass."""
        memories = [block.cross.project_kv(context.x, context.key_size) for block in cast(Iterable[HMR2DecoderBlock], self.blocks)]
        state = self.readout.mean_state(context.x.shape[0])  # (B, STATE)
        passes = self.config.passes
        if self.config.query is QueryInit.ZERO:  # every pass would have the same query
            return self.readout.to_parameters(state + passes * self._correction(torch.zeros_like(state[:, :1]), memories))
        for _ in range(passes):
            state = state + self._correction(state, memories)
        return self.readout.to_parameters(state)

    def _correction(self, query: Tensor, memories: list[KVCache]) -> Tensor:
        x = self.token_embed(query).unsqueeze(1) + self.pos_embed  # (B, 1, C)
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, memory)
        correction: Tensor = self.readout(x[:, 0])
        return correction


class HMR2DecoderBlock(nn.Module):
    """Pre-norm: self-attention, attention to the image (not normalised here), MLP."""

    def __init__(self, config: HMR2Config) -> None:
        super().__init__()
        width, heads, head_dim = config.decoder_width, config.decoder_heads, config.decoder_head_dim
        self.norm1 = nn.LayerNorm(width, eps=config.decoder_norm_eps)
        self.attn = Attention(width, heads, qkv_bias=False, head_dim=head_dim)
        self.norm2 = nn.LayerNorm(width, eps=config.decoder_norm_eps)
        self.cross = CrossAttention(width, config.width, heads, bias=False, head_dim=head_dim)
        self.norm3 = nn.LayerNorm(width, eps=config.decoder_norm_eps)
        self.mlp = Mlp(width, config.decoder_hidden)

    def forward(self, x: Tensor, memory: KVCache) -> Tensor:
        x = x + self.attn(self.norm1(x))[0]
        x = x + self.cross(self.norm2(x), memory)
        output: Tensor = x + self.mlp(self.norm3(x))
        return output
