"""Reversible residual streams (Rev-ViT, arXiv 2302.04869): training memory that does not grow with depth.

Two streams pass through every block, y1 = x1 + F(x2), y2 = x2 + G(y1), with attention as F and the MLP as G. The inputs follow from the
outputs, so that a forward pass keeps only the two ends of a run of blocks, and the backward pass recomputes the activations between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.layers.block import ResidualBranch, TransformerBlock, drop_scale
from models.layers.token_merging import Tokens

Streams = tuple[Tensor, Tensor]
Branch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ReversibleCoupling:
    """One block of two streams, for one batch: what it will drop is already drawn, so that recomputing repeats it."""

    f_branch: Branch
    g_branch: Branch
    """F and G, with their norms and without residuals."""
    parameters: tuple[nn.Parameter, ...]
    scale: Tensor | None = None
    """(B, 1, 1), by which stochastic depth multiplies both branches: section 7 of the paper's code draws one mask for the two."""

    def forward(self, x1: Tensor, x2: Tensor) -> Streams:
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)

    def inverse(self, y1: Tensor, y2: Tensor) -> Streams:
        x2 = y2 - self.g(y1)
        return y1 - self.f(x2), x2

    def f(self, x: Tensor) -> Tensor:
        return self._run(self.f_branch, x)

    def g(self, x: Tensor) -> Tensor:
        return self._run(self.g_branch, x)

    def _run(self, branch: Branch, x: Tensor) -> Tensor:
        """Run a branch in the type of its weights; streams keep theirs."""
        y = branch(x.to(self.parameters[0].dtype)).to(x.dtype)
        return y if self.scale is None else y * self.scale


def run_reversible(couplings: Sequence[ReversibleCoupling], streams: Streams, *, recompute: bool) -> Streams:
    """Run all couplings. recompute: keep only the result for the backward pass; the streams then become float32 or finer, since a sum that
    was rounded cannot be undone."""
    x1, x2 = streams
    if recompute and couplings:
        parameters = tuple(dict.fromkeys(p for coupling in couplings for p in coupling.parameters if p.requires_grad))
        fine = torch.promote_types(x1.dtype, torch.float32)
        y1, y2 = _RecomputeBackward.apply(couplings, parameters, x1.to(fine), x2.to(fine), *parameters)  # type: ignore[no-untyped-call]
        return y1, y2
    for coupling in couplings:
        x1, x2 = coupling.forward(x1, x2)
    return x1, x2


class _RecomputeBackward(torch.autograd.Function):
    """Run of couplings that recomputes activations in its backward pass.

    Parameters are inputs here, so that their gradients are returned like any others: frozen stems, hooks and `autograd.grad` work. The
    first F's input is stored, not recomputed: a sample that stochastic depth dropped before is 0 in every channel there, and F's norm would
    turn rounding errors into a signal.
    """

    @staticmethod
    def forward(
        ctx: Any, couplings: Sequence[ReversibleCoupling], parameters: tuple[nn.Parameter, ...], x1: Tensor, x2: Tensor, *_: nn.Parameter
    ) -> Streams:
        ctx.couplings, ctx.parameters = couplings, parameters
        device = x1.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        y1, y2 = run_reversible(couplings, (x1, x2), recompute=False)
        ctx.save_for_backward(x2, y1, y2)
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> tuple[Any, ...]:
        gradients: dict[nn.Parameter, Tensor] = {}
        first, y1, y2 = ctx.saved_tensors
        device, dtype, enabled = ctx.autocast
        with torch.autocast(device, dtype=dtype, enabled=enabled):  # recomputing must round as the forward pass did
            for coupling in reversed(ctx.couplings):
                trained = [p for p in coupling.parameters if p.requires_grad]
                change, gradient = _differentiate(coupling.g, y1, d2, trained, gradients)
                x2, d1 = first if coupling is ctx.couplings[0] else y2 - change, d1 + gradient
                change, gradient = _differentiate(coupling.f, x2, d1, trained, gradients)
                y1, y2, d2 = y1 - change, x2, d2 + gradient
        return None, None, d1, d2, *(gradients.get(p) for p in ctx.parameters)


def _differentiate(
    branch: Branch, x: Tensor, gradient: Tensor, parameters: Sequence[nn.Parameter], gradients: dict[nn.Parameter, Tensor]
) -> Streams:
    """Run a branch again → its output, and the gradient of its input. The gradients of its parameters are added to `gradients`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = branch(x)
        input_gradient, *parameter_gradients = torch.autograd.grad(y, (x, *parameters), gradient, allow_unused=True)
    for parameter, value in zip(parameters, parameter_gradients, strict=True):
        if value is not None:
            gradients[parameter] = gradients[parameter] + value if parameter in gradients else value
    return y.detach(), input_gradient


def run_trunk(
    blocks: nn.ModuleList, tokens: Tokens, schedule: Sequence[int], keep: Tensor | None = None, *, reversible: bool, training: bool = False
) -> Tokens:
    """Run the blocks of a transformer, each with its r: (B, N, C) → (B, N', C), or (B, N', 2C) from a reversible trunk.

    keep: as for `TransformerBlock`, one row for each block, or as for `run_blocks`. training: recompute activations of a reversible trunk
    in the backward pass.
    """
    if reversible:
        return run_blocks(blocks, tokens, schedule, keep, recompute=training and torch.is_grad_enabled())
    for block, r, block_keep in zip(blocks, schedule, [None] * len(schedule) if keep is None else keep, strict=True):
        tokens = block(tokens, r, block_keep)  # (B, N - r, C)
    return tokens


def run_blocks(blocks: Iterable[nn.Module], tokens: Tokens, schedule: Sequence[int], keep: Tensor | None, *, recompute: bool) -> Tokens:
    """Run the blocks of a ViT as a reversible trunk: (B, N, C) → both streams concatenated, (B, N', 2C).

    Blocks that merge tokens cannot be undone and keep what the backward pass needs; runs of others are recomputed. keep: (depth, B) of 0
    and 1, which samples keep each block in stochastic depth; None: drawn, in training.
    """
    dtype = tokens.x.dtype
    numbered = zip(blocks, schedule, [None] * len(schedule) if keep is None else keep, strict=True)
    tokens = replace(tokens, x=torch.cat([tokens.x, tokens.x], dim=-1))
    for merges, group in groupby(numbered, key=lambda item: item[1] > 0):
        if merges:
            for block, r, block_keep in group:
                tokens = _merge_streams(block, tokens, r, block_keep)
        else:
            couplings = [couple(block, tokens, block_keep) for block, _, block_keep in group]
            streams = run_reversible(couplings, split_streams(tokens.x), recompute=recompute)
            tokens = replace(tokens, x=torch.cat(streams, dim=-1))
    return replace(tokens, x=tokens.x.to(dtype))


def couple(block: nn.Module, tokens: Tokens, keep: Tensor | None = None) -> ReversibleCoupling:
    """Return the coupling of a ViT's block, for one batch."""
    assert isinstance(block, TransformerBlock)
    return ReversibleCoupling(
        f_branch=lambda x: block(replace(tokens, x=x), half=ResidualBranch.ATTENTION).x,
        g_branch=lambda x: block(replace(tokens, x=x), half=ResidualBranch.MLP).x,
        parameters=tuple(block.parameters()),
        scale=drop_scale(tokens.x, block.drop_path, block.training, keep),
    )


def _merge_streams(block: nn.Module, tokens: Tokens, r: int, keep: Tensor | None) -> Tokens:
    """Run a block that merges after attention, as `TransformerBlock` does, both streams by the same matching."""
    metrics: list[Tensor] = []

    def f_branch(x: Tensor) -> Tensor:
        half: Tokens = block(replace(tokens, x=x), half=ResidualBranch.ATTENTION)
        assert half.metric is not None
        metrics.append(half.metric)
        return half.x

    coupling = replace(couple(block, tokens, keep), f_branch=f_branch)
    x1, x2 = split_streams(tokens.x)
    tokens = replace(tokens, x=torch.cat([x1 + coupling.f(x2), x2], dim=-1)).merge(metrics[0], r)
    y1, x2 = split_streams(tokens.x)
    return replace(tokens, x=torch.cat([y1, x2 + coupling.g(y1)], dim=-1))


def split_streams(x: Tensor) -> Streams:
    """Split a trunk's output (B, N, 2C) → two of (B, N, C)."""
    x1, x2 = x.chunk(2, dim=-1)
    return x1, x2
