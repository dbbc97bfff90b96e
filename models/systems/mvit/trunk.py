"""Parts that MViT and Rev-MViT share: width, heads and strides by block, patch embedding, and position tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from models.layers.patches import Grid, SpaceTimePositions
from models.systems.mvit.pooling_attention import PoolingAttentionConfig


class Positions(StrEnum):
    NONE = "none"
    JOINT = "joint"
    """One table for all positions in space and time."""
    SEPARATE = "separate"
    """One table for space and one for time, which are added."""


@dataclass(frozen=True)
class TrunkConfig:
    """Config of the trunk. The defaults are the stages of MViTv2-S: 1, 2, 11 and 2 blocks, each stage twice as wide on a quarter of the
    tokens."""

    image_size: int = 224
    frames: int = 16
    channels: int = 3
    classes: int = 400
    patch_kernel: tuple[int, ...] = (3, 7, 7)
    patch_stride: tuple[int, ...] = (2, 4, 4)
    patch_padding: tuple[int, ...] = (1, 3, 3)
    """Time, rows, columns; without time the model takes images."""
    width: int = 96
    depth: int = 16
    heads: int = 1
    width_growth: tuple[tuple[int, float], ...] = ((1, 2.0), (3, 2.0), (14, 2.0))
    """(block, factor)."""
    head_growth: tuple[tuple[int, float], ...] = ((1, 2.0), (3, 2.0), (14, 2.0))
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    pool_kernel: Grid | None = (3, 3, 3)
    """Kernel of every pooling in attention; None: stride + 1 on each axis with a stride above 1."""
    q_strides: tuple[tuple[int, int, int, int], ...] = ()
    """(block, time, rows, columns). A stride of 1 pools too, by its kernel; a block that is not listed does not pool its queries."""
    kv_stride: Grid | None = None
    """Stride of the first block's keys and values; each q stride divides it after that. None: `kv_strides` lists the blocks that pool."""
    kv_strides: tuple[tuple[int, int, int, int], ...] = ()
    positions: Positions = Positions.NONE
    drop_path: float = 0.0
    dropout: float = 0.0
    """Dropout rate before the head, in training."""

    def __post_init__(self) -> None:
        if not len(self.patch_kernel) == len(self.patch_stride) == len(self.patch_padding) or len(self.patch_kernel) not in (2, 3):
            raise ValueError("patch_kernel, patch_stride and patch_padding need three numbers each for clips, two for images")
        if min(self.patch_stride) < 1 or min(self.patch_grid) < 1:
            raise ValueError(f"{self.frames} frames of {self.image_size} px hold no patch of stride {self.patch_stride}")

    @property
    def images(self) -> bool:
        return len(self.patch_kernel) == 2

    @property
    def special_tokens(self) -> int:
        return 0

    @property
    def patch_grid(self) -> Grid:
        side = self.image_size // self.patch_stride[-1]
        return 1 if self.images else self.frames // self.patch_stride[0], side, side

    def heads_of(self, block: int) -> int:
        heads = self.heads
        for index in range(block + 1):
            heads = grow(heads, factor_at(self.head_growth, index))
        return heads

    def q_stride_of(self, block: int) -> Grid | None:
        return stride_at(self.q_strides, block)

    def kv_stride_of(self, block: int) -> Grid | None:
        if self.kv_stride is None:
            return stride_at(self.kv_strides, block)
        stride = self.kv_stride
        for index in range(block + 1):
            stride = shrink(stride, self.q_stride_of(index))
        return stride

    def grid_of(self, block: int) -> Grid:
        """Return the grid before a block if every stride divides it without remainder. Poolings round up: the true grid may be larger."""
        grid = self.patch_grid
        for index in range(block):
            grid = shrink(grid, self.q_stride_of(index))
        return grid

    def attention_config(self, block: int, width: int, width_out: int, *, class_token: bool = False) -> PoolingAttentionConfig:
        return PoolingAttentionConfig(
            width=width,
            width_out=width_out,
            heads=self.heads_of(block),
            qkv_bias=self.qkv_bias,
            class_token=class_token,
            norm_eps=self.norm_eps,
            kernel=self.pool_kernel,
            q_stride=self.q_stride_of(block),
            kv_stride=self.kv_stride_of(block),
        )


def factor_at(growth: tuple[tuple[int, float], ...], block: int) -> float:
    return next((factor for index, factor in growth if index == block), 1.0)


def grow(value: int, factor: float) -> int:
    """Multiply a width or a number of heads. Raises ValueError if the result is not whole: the published code rounds, but no published
    model needs that."""
    if value * factor != int(value * factor):
        raise ValueError(f"width_growth or head_growth: {value} times {factor} is not a whole number")
    return int(value * factor)


def stride_at(strides: tuple[tuple[int, int, int, int], ...], block: int) -> Grid | None:
    return next(((times, rows, columns) for index, times, rows, columns in strides if index == block), None)


def shrink(size: Grid, stride: Grid | None) -> Grid:
    """Divide a grid without remainder, to at least 1 on each axis."""
    if stride is None:
        return size
    times, rows, columns = (max(a // b, 1) for a, b in zip(size, stride, strict=True))
    return times, rows, columns


def make_position_table(config: TrunkConfig, *, class_token: bool) -> SpaceTimePositions | None:
    """Build the learned positions of all patches, and of the class token if there is one; None without positions."""
    if config.positions is Positions.NONE:
        return None
    separate = config.positions is Positions.SEPARATE
    return SpaceTimePositions(config.width, config.patch_grid, class_token=class_token, separate=separate)


class OverlappingPatchEmbed(nn.Module):
    """Patch embedding, (B, channels, H, W) or (B, channels, T, H, W) → (B, t·h·w, C), time slowest, and the grid of the patches."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        build: Callable[..., nn.Conv2d | nn.Conv3d] = nn.Conv2d if config.images else nn.Conv3d
        self.proj = build(config.channels, config.width, config.patch_kernel, config.patch_stride, config.patch_padding)
        self._shape = "(batch, {0}, height, width)" if config.images else "(batch, {0}, frames, height, width)"
        self._dimensions = 4 if config.images else 5

    def forward(self, pixels: Tensor) -> tuple[Tensor, Grid]:
        channels = self.proj.in_channels
        if pixels.dim() != self._dimensions or pixels.shape[1] != channels:
            raise ValueError(f"pixels: shape {tuple(pixels.shape)} where {self._shape.format(channels)} is needed")
        x: Tensor = self.proj(pixels)
        grid = (1, *x.shape[2:]) if x.dim() == 4 else tuple(x.shape[2:])
        return x.flatten(2).transpose(1, 2), (grid[0], grid[1], grid[2])
