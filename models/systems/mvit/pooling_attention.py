"""Pooling attention (MViT, arXiv 2104.11227; MViTv2, arXiv 2112.01526): q, k and v are pooled in space and time before attention."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.patches import Grid
from models.layers.stepwise import keep_for_current_stream

HEAD_ALIGNMENT = 8
"""Divisor of head widths that fast attention kernels require."""
OPS_PER_PART = 2e10
"""Floating-point operations per part of a forward pass in parts: about a second of one CPU core."""


@dataclass(frozen=True)
class PoolingAttentionConfig:
    width: int
    width_out: int
    heads: int
    qkv_bias: bool
    class_token: bool
    norm_eps: float
    kernel: Grid | None
    """Kernel of every pooling; None: stride + 1 on each axis with a stride above 1."""
    q_stride: Grid | None
    kv_stride: Grid | None
    """Strides of the poolings; None: neither pooling nor norm."""
    residual: bool = False
    """Add the pooled q to the output, section 4.1 of MViTv2."""
    space_rows: int | None = None
    time_rows: int | None = None
    """Lengths of the tables of relative positions; None: no table."""

    def __post_init__(self) -> None:
        if self.width_out % self.heads:
            raise ValueError(f"an attention of width {self.width_out} cannot be split into {self.heads} heads")


class PoolingAttention(nn.Module):
    """Pooling attention with the published parameter names; the rows of `qkv` are q, k and v, each split into heads contiguously."""

    def __init__(self, config: PoolingAttentionConfig) -> None:
        super().__init__()
        self.config = config
        head_width = config.width_out // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width_out, bias=config.qkv_bias)
        self.pool_q, self.norm_q = _make_pooling(head_width, config.kernel, config.q_stride, config.norm_eps)
        self.pool_k, self.norm_k = _make_pooling(head_width, config.kernel, config.kv_stride, config.norm_eps)
        self.pool_v, self.norm_v = _make_pooling(head_width, config.kernel, config.kv_stride, config.norm_eps)
        self.rel_pos_h, self.rel_pos_w = _make_table(config.space_rows, head_width), _make_table(config.space_rows, head_width)
        self.rel_pos_t = _make_table(config.time_rows, head_width)
        self.proj = nn.Linear(config.width_out, config.width_out)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Attend among tokens (B, N, width) on a grid → (B, N', width_out) on the pooled grid. A class token comes first and is not
        pooled."""
        q, k, v = self._project(x)
        q, q_grid = self.pool_query(q, grid)
        k, k_grid = pool_tokens(k, grid, self.pool_k, self.norm_k, self.config.class_token)
        v, _ = pool_tokens(v, grid, self.pool_v, self.norm_v, self.config.class_token)
        return self._merge_heads(q, self._attend(q, k, v, q_grid, k_grid)), q_grid

    def forward_in_parts(self, x: Tensor, grid: Grid, *others: Tensor) -> Generator[int, None, tuple[Tensor, Grid]]:
        """Compute `forward` in parts of about `OPS_PER_PART` operations, (B, N, C) → (B, N', C'): projection, each pooling, attention of
        some queries.

        Yields, after each part, the bytes of its live tensors and of `others`, those of its caller.
        """
        q, k, v = self._project(x)
        del x
        yield from pause(q, k, v, *others)
        q, q_grid = self.pool_query(q, grid)
        yield from pause(q, k, v, *others)
        k, k_grid = pool_tokens(k, grid, self.pool_k, self.norm_k, self.config.class_token)
        yield from pause(q, k, v, *others)
        v, _ = pool_tokens(v, grid, self.pool_v, self.norm_v, self.config.class_token)
        yield from pause(q, k, v, *others)
        queries, keys, values, scale = self._append_relative(q, k, v, q_grid, k_grid)
        width = v.shape[-1]
        del k, v
        part_queries = max(1, int(OPS_PER_PART / (4 * prod(keys.shape))))
        attended: list[Tensor] = []
        for part in queries.split(part_queries, dim=2):  # type: ignore[no-untyped-call]
            attended.append(F.scaled_dot_product_attention(part, keys, values, scale=scale)[..., :width])
            yield from pause(q, queries, keys, values, *attended, *others)
        return self._merge_heads(q, torch.cat(attended, dim=2)), q_grid

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens (B, N, width) to q, k and v, (B, H, N, D) each."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _merge_heads(self, q: Tensor, attended: Tensor) -> Tensor:
        """Merge heads and project: q and attended (B, H, N', D) → (B, N', width_out)."""
        if self.config.residual:
            attended = attended + (F.pad(q[:, :, 1:], (0, 0, 1, 0)) if self.config.class_token else q)  # not for the class token
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected

    def pool_query(self, q: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Pool and normalise queries (B, H, N, D) on a grid; return them with the pooled grid."""
        return pool_tokens(q, grid, self.pool_q, self.norm_q, self.config.class_token)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:
        queries, keys, values, scale = self._append_relative(q, k, v, q_grid, k_grid)
        return F.scaled_dot_product_attention(queries, keys, values, scale=scale)[..., : v.shape[-1]]

    def _append_relative(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> tuple[Tensor, Tensor, Tensor, float | None]:
        """Append relative positions to q and k as channels, so that no bias of size (N', N'') is materialised. Returns q, k, v and the
        scale of the softmax; the first channels of the result are those of v.

        The bias of query i and key j is the sum over axes of q_i · table[distance of i and j on that axis]. It depends on j only by its
        row, column and time: q gets its products with all rows, columns and times, and k ones at its own.
        """
        if self.rel_pos_h is None and self.rel_pos_t is None:
            return q, k, v, None
        width = v.shape[-1]
        q_position, k_position = self._relative_channels(q, q_grid, k_grid)
        q = torch.cat([q * width**-0.5, q_position], dim=-1)
        k = torch.cat([k, k_position.expand(*k.shape[:2], -1, -1)], dim=-1)
        padding = -q.shape[-1] % HEAD_ALIGNMENT
        q, k = F.pad(q, (0, padding)), F.pad(k, (0, padding))
        return q, k, F.pad(v, (0, q.shape[-1] - width)), 1.0  # kernels want one width for all three

    def _relative_channels(self, q: Tensor, q_grid: Grid, k_grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the extra channels of q, (B, H, N', rows + columns + times), and of k, (N'', the same), zeros for a class token.

        The sizes are those of the keys' grid.
        """
        special = int(self.config.class_token)
        patches = q[:, :, special:].reshape(*q.shape[:2], *q_grid, -1)  # (B, H, t, y, x, D)
        times, rows, columns = (torch.arange(size, device=q.device) for size in k_grid)
        time, row, column = torch.meshgrid(times, rows, columns, indexing="ij")
        products, one_hots = [], []
        if self.rel_pos_h is not None and self.rel_pos_w is not None:
            products += [
                torch.einsum("bhtyxd,ykd->bhtyxk", patches, relative_rows(self.rel_pos_h, q_grid[1], k_grid[1])),
                torch.einsum("bhtyxd,xkd->bhtyxk", patches, relative_rows(self.rel_pos_w, q_grid[2], k_grid[2])),
            ]
            one_hots += [F.one_hot(row.flatten(), k_grid[1]), F.one_hot(column.flatten(), k_grid[2])]
        if self.rel_pos_t is not None:
            products.append(torch.einsum("bhtyxd,tkd->bhtyxk", patches, relative_rows(self.rel_pos_t, q_grid[0], k_grid[0])))
            one_hots.append(F.one_hot(time.flatten(), k_grid[0]))
        q_position = torch.cat(products, dim=-1).flatten(2, 4)
        k_position = torch.cat(one_hots, dim=-1).to(q.dtype)
        return F.pad(q_position, (0, 0, special, 0)), F.pad(k_position, (0, 0, special, 0))


def pool_tokens(x: Tensor, grid: Grid, conv: nn.Module | None, norm: nn.Module | None, class_token: bool) -> tuple[Tensor, Grid]:
    """Pool tokens (B, H, N, D) on a grid → (B, H, N', D) and the pooled grid. The class token skips the convolution, not the norm."""
    if conv is None or norm is None:
        return x, grid
    batch, heads, _, width = x.shape
    front, patches = x[:, :, : int(class_token)], x[:, :, int(class_token) :]
    volume = patches.reshape(batch * heads, *grid, width).permute(0, 4, 1, 2, 3)  # (B · H, D, T, Y, X), the channel fastest in memory
    if volume.device.type == "cpu" and volume.dtype is torch.bfloat16 and any(weight.requires_grad for weight in conv.parameters()):
        volume = volume.contiguous()  # with the channel fastest, oneDNN's gradient of a depthwise kernel is garbage (seen in torch 2.13)
    pooled = conv(volume)
    grid = (pooled.shape[2], pooled.shape[3], pooled.shape[4])
    patches = pooled.permute(0, 2, 3, 4, 1).reshape(batch, heads, prod(grid), width)
    return norm(torch.cat([front, patches], dim=2)), grid


def pause(*tensors: Tensor) -> Generator[int, None, None]:
    """Yield the memory of all live tensors in bytes. The thread that goes on may use another CUDA stream, so that their memory, which the
    allocator would give to the stream that made them, stays theirs until that stream has read them."""
    yield storage_bytes(*tensors)
    for tensor in tensors:
        keep_for_current_stream(tensor)


def storage_bytes(*tensors: Tensor) -> int:
    """Return the memory of tensors in bytes; storage shared by views counts once."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def relative_rows(table: Tensor, queries: int, keys: int) -> Tensor:
    """Return the table's rows for the distances of queries and keys on one axis: (rows, D) → (queries, keys, D).

    Distances are measured on the finer of both grids. A table of another length than 2 · max(queries, keys) - 1 is interpolated linearly.
    The arithmetic is float32 with truncation, as published: at ratios that are not integers, anything more exact picks other rows.
    """
    length = 2 * max(queries, keys) - 1
    if table.shape[0] != length:
        table = F.interpolate(table.T.unsqueeze(0), size=length, mode="linear").squeeze(0).T
    q_positions = torch.arange(queries, device=table.device).unsqueeze(1) * max(keys / queries, 1.0)
    k_positions = torch.arange(keys, device=table.device).unsqueeze(0) * max(queries / keys, 1.0)
    distance = (q_positions - k_positions) + (keys - 1) * max(queries / keys, 1.0)
    return table[distance.long()]


def _make_pooling(width: int, kernel: Grid | None, stride: Grid | None, eps: float) -> tuple[nn.Conv3d | None, nn.LayerNorm | None]:
    """Build a convolution per channel and the norm after it; None for both if neither kernel nor stride would have an effect."""
    if stride is None:
        return None, None
    kernel = kernel or default_kernel(stride)
    if prod(kernel) == prod(stride) == 1:
        return None, None
    times, rows, columns = kernel
    padding = (times // 2, rows // 2, columns // 2)
    return nn.Conv3d(width, width, kernel, stride, padding, groups=width, bias=False), nn.LayerNorm(width, eps=eps)


def default_kernel(stride: Grid) -> Grid:
    """Return the stride plus one on each axis whose stride is above 1."""
    times, rows, columns = (size + 1 if size > 1 else size for size in stride)
    return times, rows, columns


def _make_table(rows: int | None, width: int) -> nn.Parameter | None:
    return None if rows is None else nn.Parameter(torch.zeros(rows, width))
