"""Attention from one sequence to another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from kernels import ops


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a context, computed once for all that attends to them."""

    keys: Tensor
    values: Tensor
    """(B, H, M, D) each."""
    size: Tensor | None = None
    """(B, M, 1), how many tokens each key counts for."""

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def repeat(self, count: int) -> KVCache:
        """Repeat one sample's keys and values for `count` samples, without a copy."""
        size = None if self.size is None else self.size.expand(count, -1, -1)
        return KVCache(self.keys.expand(count, -1, -1, -1), self.values.expand(count, -1, -1, -1), size)

    def select(self, samples: slice) -> KVCache:
        """Copy keys and values of some samples."""
        return KVCache(self.keys[samples].clone(), self.values[samples].clone(), None if self.size is None else self.size[samples].clone())


class CrossAttention(nn.Module):
    """Cross-attention. The rows of `kv` are k and v, each split into heads contiguously.

    bias: of q, k and v. head_dim: channels of a head; None for width / heads.
    """

    def __init__(self, width: int, context_width: int, heads: int, *, bias: bool = True, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads")
        inner = width if head_dim is None else heads * head_dim
        self.heads = heads
        self.q = nn.Linear(width, inner, bias=bias)
        self.kv = nn.Linear(context_width, 2 * inner, bias=bias)
        self.proj = nn.Linear(inner, width)

    def project_kv(self, context: Tensor, size: Tensor | None = None) -> KVCache:
        """Project a context (B, M, context_width), with sizes (B, M, 1), to keys and values."""
        keys, values = (self._split(part).contiguous() for part in self.kv(context).chunk(2, dim=-1))
        return KVCache(keys, values, size)

    def forward(self, x: Tensor, cache: KVCache) -> Tensor:
        """Attend from x (B, N, C) to cached keys and values → (B, N, C)."""
        output: Tensor = self.proj(self.attend(self.q(x), cache))
        return output

    def attend(self, queries: Tensor, cache: KVCache) -> Tensor:
        """Attend with queries (B, N, inner), the output of `q` → (B, N, inner), the input of `proj`."""
        attended = ops.size_biased_attention(self._split(queries), cache.keys, cache.values, cache.size)
        return attended.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        by_head: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]  # (B, H, N, D)
        return by_head
