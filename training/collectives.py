"""Sums, means and concatenations over the ranks of a run; on one process, nothing happens.

DDP and FSDP average gradients over ranks. So the loss of a rank is its term of a mean over ranks: with `term_of_mean` and `all_gather`
these terms average to the loss of the whole batch, and their gradients to its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ALONE = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Compute as if this process were the only one."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if _distributed() else 1


def rank() -> int:
    return dist.get_rank() if _distributed() else 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum a tensor of any shape over ranks, without gradients. One process returns `value` itself."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(value: Tensor) -> Tensor:
    """Average a tensor of any shape over ranks, as float, without gradients."""
    return all_reduce_sum(value) / world_size()


def term_of_mean(mean: Tensor, count: Tensor | int) -> Tensor:
    """Return this rank's term, a scalar, of a mean over all ranks, from its own mean over `count` items; 0 if no rank has items.

    The mean of these terms over ranks is the mean over all items, however they are distributed.
    """
    if world_size() == 1:
        return mean
    local_count = torch.as_tensor(count, device=mean.device, dtype=torch.float64)
    share = local_count * world_size() / all_reduce_sum(local_count).clamp(min=1)
    return mean * share.to(mean.dtype)


def all_gather(rows: Tensor) -> Tensor:
    """Concatenate (B, ...) of each rank to (world · B, ...) in the order of ranks. Gradients are summed over ranks.

    All ranks have the same number of rows.
    """
    if world_size() == 1:
        return rows
    joined: Tensor = _AllGather.apply(rows)  # type: ignore[no-untyped-call]
    return joined


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.narrow(0, rank() * ctx.count, ctx.count)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and not _ALONE.get()
