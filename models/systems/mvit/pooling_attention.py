"""Pooling attention (MViT, arXiv 2104.11227; MViTv2, arXiv 2112.01526): q, k and v shrink in space and time before they meet."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.space_time_positions import Grid

ALIGNMENT = 8
"""Head widths that fast attention kernels want are multiples of this."""
PART = 2e10
"""Floating-point operations of a part, where work is done in parts: about a second of one core of a CPU."""


@dataclass(frozen=True)
class AttentionPlan:
    """Dimensions of one pooling attention."""

    width: int
    width_out: int
    heads: int
    qkv_bias: bool
    class_token: bool
    norm_eps: float
    kernel: Grid | None
    """Kernel of every pooling; None: one more than the stride on each axis that has one."""
    q_stride: Grid | None
    kv_stride: Grid | None
    """None: no pooling, and no norm either."""
    residual: bool = False
    """Add the pooled q to the output, section 4.1 of MViTv2."""
    space_rows: int | None = None
    time_rows: int | None = None
    """Lengths of the tables of relative positions; None: none."""

    def __post_init__(self) -> None:
        if self.width_out % self.heads:
            raise ValueError(f"an attention of width {self.width_out} cannot be split into {self.heads} heads")


class PoolingAttention(nn.Module):
    """The published parameter names; the rows of `qkv` are q, k and v, each split into heads contiguously."""

    def __init__(self, plan: AttentionPlan) -> None:
        super().__init__()
        self.plan = plan
        head_width = plan.width_out // plan.heads
        self.qkv = nn.Linear(plan.width, 3 * plan.width_out, bias=plan.qkv_bias)
        self.pool_q, self.norm_q = _pooling(head_width, plan.kernel, plan.q_stride, plan.norm_eps)
        self.pool_k, self.norm_k = _pooling(head_width, plan.kernel, plan.kv_stride, plan.norm_eps)
        self.pool_v, self.norm_v = _pooling(head_width, plan.kernel, plan.kv_stride, plan.norm_eps)
        self.rel_pos_h, self.rel_pos_w = _table(plan.space_rows, head_width), _table(plan.space_rows, head_width)
        self.rel_pos_t = _table(plan.time_rows, head_width)
        self.proj = nn.Linear(plan.width_out, plan.width_out)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens (B, N, width) on a grid → (B, N', width_out) on the pooled grid. A class token stands in front and is not pooled."""
        q, k, v = self._split(x)
        q, q_grid = self.pool_query(q, grid)
        k, k_grid = pool_tokens(k, grid, self.pool_k, self.norm_k, self.plan.class_token)
        v, _ = pool_tokens(v, grid, self.pool_v, self.norm_v, self.plan.class_token)
        return self._finish(q, self._attend(q, k, v, q_grid, k_grid)), q_grid

    def in_parts(self, x: Tensor, grid: Grid, beside: int = 0) -> Generator[int, None, tuple[Tensor, Grid]]:
        """As `forward`, in parts of about `PART` operations: projection, poolings, and attention of some queries after the other.

        Yields, after each part, the bytes of what it keeps and of what its caller keeps `beside` it.
        """
        q, k, v = self._split(x)
        del x
        yield beside + storage_bytes(q, k, v)
        q, q_grid = self.pool_query(q, grid)
        yield beside + storage_bytes(q, k, v)
        k, k_grid = pool_tokens(k, grid, self.pool_k, self.norm_k, self.plan.class_token)
        yield beside + storage_bytes(q, k, v)
        v, _ = pool_tokens(v, grid, self.pool_v, self.norm_v, self.plan.class_token)
        yield beside + storage_bytes(q, k, v)
        queries, keys, values, scale = self._placed(q, k, v, q_grid, k_grid)
        width = v.shape[-1]
        del k, v
        some = max(1, int(PART / (4 * prod(keys.shape))))
        attended: list[Tensor] = []
        for few in queries.split(some, dim=2):  # type: ignore[no-untyped-call]
            attended.append(F.scaled_dot_product_attention(few, keys, values, scale=scale)[..., :width])
            yield beside + storage_bytes(q, queries, keys, values, *attended)
        return self._finish(q, torch.cat(attended, dim=2)), q_grid

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, width) → q, k and v, (B, H, N, D) each."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.plan.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _finish(self, q: Tensor, attended: Tensor) -> Tensor:
        """(B, H, N', D), (B, H, N', D) → (B, N', width_out)."""
        if self.plan.residual:
            attended = attended + (F.pad(q[:, :, 1:], (0, 0, 1, 0)) if self.plan.class_token else q)  # not for the class token
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected

    def pool_query(self, q: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B, H, N, D) on a grid → pooled and normed, and the grid then."""
        return pool_tokens(q, grid, self.pool_q, self.norm_q, self.plan.class_token)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:
        queries, keys, values, scale = self._placed(q, k, v, q_grid, k_grid)
        return F.scaled_dot_product_attention(queries, keys, values, scale=scale)[..., : v.shape[-1]]

    def _placed(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> tuple[Tensor, Tensor, Tensor, float | None]:
        """→ q, k, v and the scale of softmax attention, with relative positions as further channels of q and k, so that no bias of size
        (N', N'') is ever made; the first channels of what is attended are those of v.

        The bias of query i and key j is the sum over axes of q_i · table[distance of i and j on that axis]. It depends on j only by its
        row, its column and its time: q is followed by its products with all rows, columns and times, and k by ones at its own.
        """
        if self.rel_pos_h is None and self.rel_pos_t is None:
            return q, k, v, None
        width = v.shape[-1]
        q_position, k_position = self._relative(q, q_grid, k_grid)
        q = torch.cat([q * width**-0.5, q_position], dim=-1)
        k = torch.cat([k, k_position.expand(*k.shape[:2], -1, -1)], dim=-1)
        padding = -q.shape[-1] % ALIGNMENT
        q, k = F.pad(q, (0, padding)), F.pad(k, (0, padding))
        return q, k, F.pad(v, (0, q.shape[-1] - width)), 1.0  # kernels want one width for all three

    def _relative(self, q: Tensor, q_grid: Grid, k_grid: Grid) -> tuple[Tensor, Tensor]:
        """→ (B, H, N', rows + columns + times of the keys) and (N'', the same), zeros for a class token."""
        special = int(self.plan.class_token)
        patches = q[:, :, special:].reshape(*q.shape[:2], *q_grid, -1)  # (B, H, t, y, x, D)
        times, rows, columns = (torch.arange(size, device=q.device) for size in k_grid)
        time, row, column = torch.meshgrid(times, rows, columns, indexing="ij")
        products, places = [], []
        if self.rel_pos_h is not None and self.rel_pos_w is not None:
            products += [
                torch.einsum("bhtyxd,ykd->bhtyxk", patches, relative_rows(self.rel_pos_h, q_grid[1], k_grid[1])),
                torch.einsum("bhtyxd,xkd->bhtyxk", patches, relative_rows(self.rel_pos_w, q_grid[2], k_grid[2])),
            ]
            places += [F.one_hot(row.flatten(), k_grid[1]), F.one_hot(column.flatten(), k_grid[2])]
        if self.rel_pos_t is not None:
            products.append(torch.einsum("bhtyxd,tkd->bhtyxk", patches, relative_rows(self.rel_pos_t, q_grid[0], k_grid[0])))
            places.append(F.one_hot(time.flatten(), k_grid[0]))
        q_position = torch.cat(products, dim=-1).flatten(2, 4)
        k_position = torch.cat(places, dim=-1).to(q.dtype)
        return F.pad(q_position, (0, 0, special, 0)), F.pad(k_position, (0, 0, special, 0))


def pool_tokens(x: Tensor, grid: Grid, conv: nn.Module | None, norm: nn.Module | None, class_token: bool) -> tuple[Tensor, Grid]:
    """(B, H, N, D) on a grid → (B, H, N', D) and the grid then. The convolution passes a class token by; the norm does not."""
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


def storage_bytes(*tensors: Tensor) -> int:
    """Memory that tensors keep, in bytes; what views share counts once."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def relative_rows(table: Tensor, queries: int, keys: int) -> Tensor:
    """(rows, D) → (queries, keys, D), the row for the distance of each query and key on one axis, measured on the finer of the two.

    A table of another length than 2 · max(queries, keys) - 1 is stretched linearly. The arithmetic is float32 with truncation, as in the
    published code: at ratios that are no integers, anything more exact picks other rows.
    """
    needed = 2 * max(queries, keys) - 1
    if table.shape[0] != needed:
        table = F.interpolate(table.T.unsqueeze(0), size=needed, mode="linear").squeeze(0).T
    q_places = torch.arange(queries, device=table.device).unsqueeze(1) * max(keys / queries, 1.0)
    k_places = torch.arange(keys, device=table.device).unsqueeze(0) * max(queries / keys, 1.0)
    distance = (q_places - k_places) + (keys - 1) * max(queries / keys, 1.0)
    return table[distance.long()]


def _pooling(width: int, kernel: Grid | None, stride: Grid | None, eps: float) -> tuple[nn.Conv3d | None, nn.LayerNorm | None]:
    """A convolution per channel and the norm behind it; none of both where neither kernel nor stride would do anything."""
    if stride is None:
        return None, None
    kernel = kernel or skip_kernel(stride)
    if prod(kernel) == prod(stride) == 1:
        return None, None
    times, rows, columns = kernel
    padding = (times // 2, rows // 2, columns // 2)
    return nn.Conv3d(width, width, kernel, stride, padding, groups=width, bias=False), nn.LayerNorm(width, eps=eps)


def skip_kernel(stride: Grid) -> Grid:
    """One more than the stride on each axis that has one."""
    times, rows, columns = (size + 1 if size > 1 else size for size in stride)
    return times, rows, columns


def _table(rows: int | None, width: int) -> nn.Parameter | None:
    return None if rows is None else nn.Parameter(torch.zeros(rows, width))
