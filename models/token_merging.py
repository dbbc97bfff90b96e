"""Tokens on their way through a transformer that merges them (ToMe, arXiv 2210.09461): all state of one forward pass, and its picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from kernels import ops


@dataclass(frozen=True)
class Tokens:
    """The residual stream of one forward pass. Nothing of it is kept on a module, so that threads can share a model."""

    x: Tensor
    """(B, N, C)."""
    protected: int = 0
    """Special tokens in front that never merge: 0, 1 (class) or 2 (class and distillation)."""
    proportional: bool = False
    """Proportional attention: keys count by their size."""
    traced: bool = False
    size: Tensor | None = None
    """(B, N, 1), how many input tokens each token stands for; None before the first merge."""
    source: Tensor | None = None
    """(B, N, N_in) of 0 and 1, which input tokens each token holds; None before the first merge and when not traced."""

    @property
    def key_size(self) -> Tensor | None:
        return self.size if self.proportional else None

    def add(self, residual: Tensor) -> Tokens:
        return replace(self, x=self.x + residual)

    def merge(self, metric: Tensor, r: int) -> Tokens:
        """Merge r tokens, or as many as can. metric: (B, N, D), by whose cosine tokens are compared."""
        r = ops.effective_r(self.x.shape[1], r, self.protected)
        if r == 0:
            return self
        matching = ops.bipartite_match(metric, r, protected=self.protected)
        x, size = ops.merge(self.x, self.size, matching)
        source = ops.merge_source(self.source, matching) if self.traced else None
        return replace(self, x=x, size=size, source=source)

    def mean(self, first: int, count: int) -> Tensor:
        """Mean content of the tokens from `first` on: (B, C). count: how many there were before any merge, the sum of their sizes."""
        x = self.x[:, first:]
        if self.size is None:
            return x.mean(dim=1)
        return (x * self.size[:, first:].to(x.dtype)).sum(dim=1) / count
