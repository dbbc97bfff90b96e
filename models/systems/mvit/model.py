"""MViTv2 (arXiv 2112.01526) and MViT (2104.11227): transformers whose grid of tokens shrinks as their channels grow."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import Mlp, drop_branch, drop_path_rates, initialise_like_slowfast
from models.layers.patches import Grid
from models.systems.mvit.pooling_attention import OPS_PER_PART, PoolingAttention, PoolingAttentionConfig, default_kernel, pause
from models.systems.mvit.trunk import OverlappingPatchEmbed, Positions, TrunkConfig, factor_at, grow, make_position_table


@dataclass(frozen=True)
class BoxPooling:
    """RoIAlign (Mask R-CNN, arXiv 1703.06870) with a number of samples that grows with the box, and the maximum over its bins."""

    bins: int = 7
    scale: float = 1 / 16
    """Cells of the feature map per pixel of the input."""
    aligned: bool = True
    """Whether pixel centres are at half coordinates; otherwise at whole ones, and no box is smaller than a cell of the map."""

    def __call__(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Pool boxes (K, 5) of a map (B, C, H, W): index in the batch, x1, y1, x2, y2 in pixels of the input → (K, C)."""
        return roi_align(features, boxes, self.bins, self.scale, self.aligned).amax(dim=(2, 3))


def roi_align(features: Tensor, boxes: Tensor, bins: int, scale: float, aligned: bool) -> Tensor:
    """Compute RoIAlign as torchvision does with `sampling_ratio=0`: (B, C, H, W), (K, 5) → (K, C, bins, bins).

    A bin is the mean of bilinear samples at the centres of its equal cells. Rows and columns are weighted independently, so that a box is
    two matrix products.
    """
    height, width = features.shape[2:]
    boxes = boxes.float()
    rows = _axis_weights(boxes[:, 2], boxes[:, 4], height, bins, scale, aligned).to(features.dtype)  # (K, bins, H)
    columns = _axis_weights(boxes[:, 1], boxes[:, 3], width, bins, scale, aligned).to(features.dtype)
    maps = features[boxes[:, 0].long()]  # (K, C, H, W)
    return rows.unsqueeze(1) @ maps @ columns.unsqueeze(1).transpose(2, 3)


def _axis_weights(start: Tensor, end: Tensor, size: int, bins: int, scale: float, aligned: bool) -> Tensor:
    """Return the weight of each cell of one axis in each bin: starts (K,), ends (K,) → (K, bins, size)."""
    offset = 0.5 if aligned else 0.0
    start = start * scale - offset
    length = end * scale - offset - start  # in this order: a rounding error here is another number of samples
    if not aligned:
        length = length.clamp(min=1.0)
    samples = (length / bins).ceil().clamp(min=0)  # (K,), in each bin
    bin_start = start.unsqueeze(1) + torch.arange(bins, device=start.device) * (length / bins).unsqueeze(1)  # (K, bins)
    step = (length / bins / samples.clamp(min=1)).unsqueeze(1)
    # Steps are longer than half a cell if a bin has several samples: so few consecutive ones can be on the map.
    first = ((-1 - bin_start) / step.clamp(min=1e-6)).floor().clamp(min=0) - 1
    sample_index = first.unsqueeze(2) + torch.arange(2 * size + 6, device=start.device)  # (K, bins, 2 · size + 6)
    position = bin_start.unsqueeze(2) + (sample_index + 0.5) * step.unsqueeze(2)
    inside = (position >= -1.0) & (position <= size)  # beyond the map a sample is 0, but stays in the mean
    counted = inside & (sample_index >= 0) & (sample_index < samples.view(-1, 1, 1))
    position = position.clamp(0, size - 1)
    tent = (1 - (position.unsqueeze(3) - torch.arange(size, device=start.device)).abs()).clamp(min=0)  # (K, bins, 2 · size + 6, size)
    return (tent * counted.unsqueeze(3)).sum(dim=2) / samples.clamp(min=1).view(-1, 1, 1)


class Activation(StrEnum):
    """Function that turns logits into scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class MViTConfig(TrunkConfig):
    """Config of MViT and MViTv2. The defaults are MViTv2-S 16x4 on Kinetics-400."""

    q_strides: tuple[tuple[int, int, int, int], ...] = tuple(
        (block, 1, 2, 2) if block in (1, 3, 14) else (block, 1, 1, 1) for block in range(16)
    )
    kv_stride: Grid | None = (1, 8, 8)
    class_token: bool = True
    relative_space: bool = True
    relative_time: bool = True
    """Decomposed relative positions, section 4.1 of MViTv2."""
    relative_zero: bool = False
    """Whether tables of relative positions are initialised to zero."""
    residual_pooling: bool = True
    expand_in_attention: bool = True
    """Channels grow in attention (MViTv2); otherwise in the MLP of the block before (MViT)."""
    layer_scale: float | None = None
    """Initial value of LayerScale (CaiT, arXiv 2103.17239), the factor of each channel of a branch; None: no such factors."""
    mean_pooling: bool = False
    """Pool by the mean of the patches, then norm (MaskFeat); otherwise norm first, then the class token, or the mean without one."""
    activation: Activation = Activation.SOFTMAX
    boxes: BoxPooling | None = None
    """RoIAlign for models that classify boxes of people instead of whole clips; None for all others."""

    @property
    def special_tokens(self) -> int:
        return int(self.class_token)

    def relative_rows(self, block: int) -> tuple[int, int]:
        """Return the lengths of a block's tables of relative positions in space and in time, for grids divided without remainder.

        At run time they are interpolated if pooling rounds up.
        """
        side, strides = self.grid_of(block)[1], (self.q_stride_of(block), self.kv_stride_of(block))
        finest = max(side // (stride[1] if stride else 1) for stride in strides)
        return 2 * finest - 1, 2 * self.patch_grid[0] - 1


@dataclass(frozen=True)
class MViTOutput:
    """Output for clips, or for boxes in them."""

    features: Tensor
    """(B, C), or (K, C) for boxes: input of the head."""
    logits: Tensor
    """(B, classes) or (K, classes)."""
    activation: Activation
    tokens_in: int
    tokens_out: int
    """Number of tokens before the first and after the last block, a class token included."""

    @property
    def scores(self) -> Tensor:
        return self.logits.sigmoid() if self.activation is Activation.SIGMOID else self.logits.softmax(dim=-1)


class PoolingBlock(nn.Module):
    """Pooling attention and MLP with residuals. If the width changes, `proj` is on the shortcut of the branch that changes it."""

    def __init__(self, attention: PoolingAttentionConfig, width_out: int, config: MViTConfig, drop_path: float) -> None:
        super().__init__()
        for width in (attention.width, width_out):
            if width % attention.heads:
                raise ValueError(f"a block of width {width} cannot be split into {attention.heads} heads")
        attention_width = attention.width_out
        self.norm1 = nn.LayerNorm(attention.width, eps=attention.norm_eps)
        self.attn = PoolingAttention(attention)
        self.norm2 = nn.LayerNorm(attention_width, eps=attention.norm_eps)
        self.mlp = Mlp(attention_width, int(attention_width * config.mlp_ratio), width_out)
        self._mlp_weights = sum(weight.numel() for weight in self.mlp.parameters())  # packed layers have no parameters
        self.proj = nn.Linear(attention.width, width_out) if attention.width != width_out else None
        self.gamma_1 = _make_layer_scale(attention_width, config.layer_scale)
        self.gamma_2 = _make_layer_scale(width_out, config.layer_scale)
        self.drop_path = drop_path
        self._expands_in_attention = attention_width != attention.width

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        normed = self.norm1(x)
        attended, pooled_grid = self.attn(normed, grid)
        x = self._pool(self._attention_shortcut(x, normed), grid) + self._branch(attended, self.gamma_1)
        return self._feed_forward(x), pooled_grid

    def forward_in_parts(self, x: Tensor, grid: Grid) -> Generator[int, None, tuple[Tensor, Grid]]:
        """Compute `forward` of a model in inference in parts of about `OPS_PER_PART` operations: (B, N, C) → (B, N', C'). Yields, after
        each part, the bytes of its live tensors."""
        normed = self.norm1(x)
        attended, pooled_grid = yield from self.attn.forward_in_parts(normed, grid, x, normed)
        shortcut = self._attention_shortcut(x, normed)
        del normed
        yield from pause(x, shortcut, attended)
        x = self._pool(shortcut, grid) + self._branch(attended, self.gamma_1)
        del attended, shortcut
        yield from pause(x)
        part_tokens = max(1, int(OPS_PER_PART / (2 * x.shape[0] * self._mlp_weights)))
        outputs: list[Tensor] = []
        for part in x.split(part_tokens, dim=1):  # type: ignore[no-untyped-call]
            outputs.append(self._feed_forward(part))
            yield from pause(x, *outputs)
        return torch.cat(outputs, dim=1), pooled_grid

    def _attention_shortcut(self, x: Tensor, normed: Tensor) -> Tensor:
        """Return the shortcut of attention, before pooling."""
        return x if self.proj is None or not self._expands_in_attention else self.proj(normed)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """Apply the MLP branch, which processes each token separately."""
        normed = self.norm2(x)
        shortcut = x if self.proj is None or self._expands_in_attention else self.proj(normed)
        return shortcut + self._branch(self.mlp(normed), self.gamma_2)

    def _branch(self, x: Tensor, factors: Tensor | None) -> Tensor:
        return drop_branch(x if factors is None else x * factors, self.drop_path, self.training)

    def _pool(self, x: Tensor, grid: Grid) -> Tensor:
        """Max-pool tokens by the queries' stride, except the class token."""
        stride = self.attn.config.q_stride
        if stride is None or prod(stride) == 1:
            return x
        special, kernel = int(self.attn.config.class_token), default_kernel(stride)
        times, rows, columns = (size // 2 for size in kernel)
        volume = x[:, special:].transpose(1, 2).reshape(x.shape[0], -1, *grid)  # (B, C, t, h, w)
        pooled = F.max_pool3d(volume, kernel, stride, (times, rows, columns)).flatten(2).transpose(1, 2)
        return torch.cat([x[:, :special], pooled], dim=1)


class MViT(nn.Module):
    def __init__(self, config: MViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = OverlappingPatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.pos_embed = make_position_table(config, class_token=config.class_token)
        self.blocks = nn.ModuleList()
        width = config.width
        for block, rate in enumerate(drop_path_rates(config.drop_path, config.depth)):
            grows_at = block if config.expand_in_attention else block + 1
            width_out = grow(width, factor_at(config.width_growth, grows_at))
            attention = _attention_config(config, block, width, width_out if config.expand_in_attention else width)
            self.blocks.append(PoolingBlock(attention, width_out, config, rate))
            width = width_out
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, config.classes)
        self._initialise()

    def _initialise(self) -> None:
        initialise_like_slowfast(self)
        for name, parameter in self.named_parameters():
            if name == "cls_token" or name.startswith("pos_embed.") or (".rel_pos_" in name and not self.config.relative_zero):
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, pixels: Tensor, boxes: Tensor | None = None) -> MViTOutput:
        """Classify normalised clips (B, channels, T, H, W), or images (B, channels, H, W), of any size that leaves a token after all
        strides.

        boxes: (K, 5), index in the batch and x1, y1, x2, y2 in pixels of the input, for a model that classifies boxes.
        """
        config = self.config
        if (boxes is None) != (config.boxes is None):
            raise ValueError("boxes: this model classifies boxes" if boxes is None else "boxes: this model classifies whole clips")
        x, grid = self.embed(pixels)
        tokens_in = x.shape[1]
        for block in self.blocks:
            x, grid = block(x, grid)
        features = self._pool_clip(x) if boxes is None else self.pool_boxes(x, grid, boxes)
        return MViTOutput(features, self.head(self.dropout(features)), config.activation, tokens_in, x.shape[1])

    def embed(self, pixels: Tensor) -> tuple[Tensor, Grid]:
        """Embed pixels: tokens (B, special + t·h·w, C) and the grid of the patches."""
        x, grid = self.patch_embed(pixels)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return (x if self.pos_embed is None else x + self.pos_embed(grid)), grid

    def _pool_clip(self, x: Tensor) -> Tensor:
        special = self.config.special_tokens
        if self.config.mean_pooling:
            pooled: Tensor = self.norm(x[:, special:].mean(dim=1))
            return pooled
        first: Tensor = self.norm(x[:, 0]) if special else self.norm(x).mean(dim=1)
        return first

    def pool_boxes(self, x: Tensor, grid: Grid, boxes: Tensor) -> Tensor:
        """Pool features of boxes from the tokens after the last block: boxes (K, 5) → (K, C)."""
        assert self.config.boxes is not None
        tokens = self.norm(x[:, self.config.special_tokens :])
        frames = 1 if self.config.images else self.config.frames // self.config.patch_stride[0]
        if grid[0] != frames:
            raise ValueError(f"pixels: a clip of {grid[0]} times after pooling where boxes need {frames}")
        return self.config.boxes(tokens.unflatten(1, grid).mean(dim=1).permute(0, 3, 1, 2), boxes)


def _make_layer_scale(width: int, initial: float | None) -> nn.Parameter | None:
    return None if initial is None else nn.Parameter(torch.full((width,), initial))


def _attention_config(config: MViTConfig, block: int, width: int, width_out: int) -> PoolingAttentionConfig:
    space, time = config.relative_rows(block)
    return replace(
        config.attention_config(block, width, width_out, class_token=config.class_token),
        residual=config.residual_pooling,
        space_rows=space if config.relative_space else None,
        time_rows=time if config.relative_time else None,
    )


def _mvitv2(depth: int, transitions: tuple[int, ...], **fields: object) -> MViTConfig:
    """Return the config of a published MViTv2: each transition doubles width and heads, and divides the number of tokens by four."""
    doubling = tuple((block, 2.0) for block in transitions)
    strides = tuple((block, 1, 2, 2) if block in transitions else (block, 1, 1, 1) for block in range(depth))
    return replace(MViTConfig(), depth=depth, width_growth=doubling, head_growth=doubling, q_strides=strides, dropout=0.5, **fields)  # type: ignore[arg-type]


PUBLISHED: Mapping[str, MViTConfig] = {
    "mvitv2_s_16x4": _mvitv2(16, (1, 3, 14), drop_path=0.2),
    "mvitv2_b_32x3": _mvitv2(24, (2, 5, 21), frames=32, drop_path=0.3),
    "mvitv2_l_40x3": _mvitv2(48, (2, 8, 44), frames=40, image_size=312, width=144, heads=2, drop_path=0.75),
    "mvitv1_b_16x4": MViTConfig(
        width_growth=((1, 2.0), (3, 2.0), (14, 2.0)),
        q_strides=((1, 1, 2, 2), (3, 1, 2, 2), (14, 1, 2, 2)),
        positions=Positions.SEPARATE,
        relative_space=False,
        relative_time=False,
        residual_pooling=False,
        expand_in_attention=False,
        drop_path=0.2,
        dropout=0.5,
    ),
}
