"""The hot operations of token merging (ToMe, arXiv 2210.09461). This file fixes what they take, give and refuse; they hold no state.

Tokens are (B, T, C) and sizes (B, T, 1), the number of input tokens that a token stands for, float32. `None` for a size means that nothing
has merged yet. Everything but the matching is differentiable; matchings are constants.

Which implementation runs is decided here: `kernels.triton` for the bipartite matching, the weighted merge and proportional attention on
CUDA, where Triton works; `kernels.numba_loops` for the first two on a CPU, in inference, within `compiled_loops`; `kernels.reference` for
everything else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from kernels import reference
from kernels.key_padding import padded_attention
from kernels.reference import Matching, Reduction

triton: ModuleType | None = None
if torch.version.cuda is not None and find_spec("triton") is not None:
    with suppress(ImportError):  # a Triton that is too old for the kernels
        triton = import_module("kernels.triton")

_loops: ContextVar[ModuleType | None] = ContextVar("loops", default=None)

__all__ = [
    "Matching",
    "Reduction",
    "bipartite_match",
    "compiled_loops",
    "effective_r",
    "kth_match",
    "merge",
    "merge_source",
    "merge_traced",
    "random_match",
    "reduce",
    "size_biased_attention",
    "unmerge",
]


@contextmanager
def compiled_loops(loops: ModuleType) -> Iterator[None]:
    """Run matching and merging by `loops`, the module `kernels.numba_loops`, if they can: inference on a CPU in float32 or bfloat16.

    It affects only this thread; `torch.compile` and `torch.export` see the reference.
    """
    token = _loops.set(loops)
    try:
        yield
    finally:
        _loops.reset(token)


def effective_r(tokens: int, r: int, protected: int) -> int:
    """Return how many of `tokens` merge if r are requested: at most half of those that are not protected, and at least 0."""
    return max(0, min(r, (tokens - protected) // 2))


@torch.no_grad()
def bipartite_match(metric: Tensor, r: int, *, protected: int = 0) -> Matching:
    """Match the r tokens at even positions that are most similar to one at an odd position with that one. Section 3.1 of the paper.

    metric: (B, T, C), compared by cosine, or (B, H, T, C), of which the sum over heads is. A row without a direction (zeros, or what is
    not a number) is as similar as can be to every other: it merges first, and other rows merge into it.
    r: clipped by `effective_r`; with nothing left to merge the matching keeps every token in place.
    protected: 0; 1, the class token at position 0 neither merges nor is merged into; 2, nor does the distillation token at position 1.
    Output order: the even tokens that stay (ascending if any token is protected, else by falling similarity), then all odd tokens;
    special tokens stay in front. Of exact ties the earlier position comes first, for sources and for destinations.
    """
    if metric.dim() != 4:
        _expect_tokens(metric, "metric")
    if protected not in (0, 1, 2):
        raise ValueError(f"protected: {protected} special tokens; it can be 0, 1 (class) or 2 (class and distillation)")
    r = effective_r(metric.shape[-2], r, protected)
    if r == 0:
        return _identity(metric)
    if (loops := _usable_loops(metric)) and (matching := loops.bipartite_match(metric, r, protected)):
        return matching  # type: ignore[no-any-return]
    metric = metric.sum(dim=1) if metric.dim() == 4 else metric
    if (kernels := _kernels(metric)) and metric.dtype is not torch.float64:
        return Matching(*kernels.bipartite_match(metric, r, protected))
    return reference.bipartite_match(metric, r, protected)


@torch.no_grad()
def kth_match(metric: Tensor, k: int) -> Matching:
    """Keep the last of every k tokens and match each other one with the most similar that stays. k = 2 halves the tokens; k <= 1 keeps all.

    metric: (B, T, C). The tail of T modulo k tokens is dropped. No token is protected.
    """
    _expect_tokens(metric, "metric")
    return reference.kth_match(metric, k) if k > 1 else _identity(metric)


@torch.no_grad()
def random_match(metric: Tensor, r: int, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Matching:
    """Match r tokens chosen at random with their most similar one among the others, which stay in random order. For ablations.

    metric: (B, T, C); noise: (B, T), whose ascending order is the permutation, drawn from `generator` if not given. No token is protected.
    """
    _expect_tokens(metric, "metric")
    if not 0 <= r < metric.shape[1]:
        raise ValueError(f"r: {r} of {metric.shape[1]} tokens cannot merge; one must stay")
    if noise is None:
        noise = torch.rand(metric.shape[:2], device=metric.device, generator=generator)
    return reference.random_match(metric, r, noise)


def reduce(x: Tensor, matching: Matching, reduction: Reduction = "mean") -> Tensor:
    """Merge rows regardless of their sizes: (B, T, C) → (B, T_out, C). The token merged into is part of the mean, sum or maximum."""
    _expect_tokens(x, "x")
    return reference.reduce(x, matching, reduction)


def merge(x: Tensor, size: Tensor | None, matching: Matching, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Merge tokens as the mean of their contents, weighted by size: (B, T, C), (B, T, 1) → (B, T_out, C), (B, T_out, 1).

    residual: (B, T, C), added to x before; None: nothing is.
    """
    _expect_tokens(x, "x")
    alike = (residual is None or residual.dtype is x.dtype) and (size is None or size.dtype is torch.float32)
    if alike and (loops := _usable_loops(x, residual, size)):
        merged, merged_size = loops.merge(x, size, matching, residual)
        return merged, merged_size
    x = x if residual is None else x + residual
    if (kernels := _kernels(x)) and not _needs_gradient(size):
        merged, merged_size, _ = kernels.merge(x, size, None, matching.unmerged, matching.src, matching.dst, traced=False)
        return merged, merged_size
    return reference.merge(x, size, matching)


def merge_source(source: Tensor | None, matching: Matching) -> Tensor:
    """Follow which input tokens are in which token: (B, T, T_in) of 0 and 1 → (B, T_out, T_in). None: nothing has merged before."""
    if source is None:
        batch, tokens = matching.unmerged.shape[0], matching.unmerged.shape[1] + matching.src.shape[1]
        source = torch.eye(tokens, device=matching.unmerged.device).expand(batch, -1, -1)
    return reference.reduce(source, matching, "amax")


def merge_traced(x: Tensor, size: Tensor | None, source: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor, Tensor]:
    """Apply `merge` and `merge_source`, in one pass over the tokens if there is a kernel for it: (B, T_out, C), (B, T_out, 1) and
    (B, T_out, T_in)."""
    _expect_tokens(x, "x")
    if (kernels := _kernels(x)) and not _needs_gradient(size):
        merged, merged_size, merged_source = kernels.merge(x, size, source, matching.unmerged, matching.src, matching.dst, traced=True)
        return merged, merged_size, merged_source
    return *reference.merge(x, size, matching), merge_source(source, matching)


def unmerge(y: Tensor, matching: Matching) -> Tensor:
    """Give every token the row that it went into: (B, T_out, C) → (B, T, C), the order from before the matching."""
    _expect_tokens(y, "y")
    return reference.unmerge(y, matching)


def size_biased_attention(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None = None, *, dropout: float = 0.0, key_multiple: int = 1
) -> Tensor:
    """Softmax attention in which a token of size s counts as s tokens: log s is added to its logits. Section 3.2 of the paper.

    q, k, v: (B, H, N, D); size: (B, N, 1) of the keys, None for plain attention; dropout: probability on the weights;
    key_multiple: on a CPU, without dropout, compute with so many keys or a multiple (`kernels.key_padding`). Returns (B, H, N, D).
    """
    if size is not None and dropout == 0.0 and (kernels := _kernels(q)) and kernels.has_tiles(q) and not _needs_gradient(size):
        attended, _ = kernels.size_biased_attention(q, k, v, size)
        return attended  # type: ignore[no-any-return]
    if key_multiple > 1 and dropout == 0.0 and not q.is_cuda:
        return padded_attention(q, k, v, size, key_multiple)
    trained_on_cpu = dropout == 0.0 and q.device.type == "cpu" and q.requires_grad
    if trained_on_cpu and not torch.backends.cuda.flash_sdp_enabled():  # type: ignore[no-untyped-call]
        return reference.attention_in_products(q, k, v, size)
    return reference.size_biased_attention(q, k, v, size, dropout)


def _kernels(x: Tensor) -> ModuleType | None:
    """Return the module of Triton's kernels if x is on CUDA and they run there, else None."""
    if not x.is_cuda or triton is None:
        return None
    return triton if torch.compiler.is_compiling() or _work_on(triton, x.device) else None


@cache
def _work_on(kernels: ModuleType, device: torch.device) -> bool:
    """Return True if the kernels run on this device. If not, one warning says why PyTorch replaces them. Tried once per process."""
    try:
        kernels.check_triton(device)
    except Exception as error:  # of Triton, of what it calls, or of the driver
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        warnings.warn(f"Triton does not work on {device}, so merging runs as plain PyTorch: {reason}", RuntimeWarning, stacklevel=2)
        return False
    return True


def _usable_loops(x: Tensor, *others: Tensor | None) -> ModuleType | None:
    """Return the module of compiled loops, or None if it cannot be used."""
    if torch.compiler.is_compiling() or (loops := _loops.get()) is None:
        return None
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return None
    differentiated = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, *others))
    return None if differentiated else loops


def _needs_gradient(size: Tensor | None) -> bool:
    """Return True if sizes require a gradient, which the kernels do not compute: sizes are counts in every model."""
    return size is not None and size.requires_grad


def _identity(metric: Tensor) -> Matching:
    batch, tokens = metric.shape[0], metric.shape[-2]
    nothing = torch.empty(batch, 0, dtype=torch.int64, device=metric.device)
    return Matching(unmerged=torch.arange(tokens, device=metric.device).expand(batch, -1), src=nothing, dst=nothing)


def _expect_tokens(x: Tensor, name: str) -> None:
    if x.dim() != 3:
        raise ValueError(f"{name}: shape {tuple(x.shape)} where (batch, tokens, channels) is needed")
