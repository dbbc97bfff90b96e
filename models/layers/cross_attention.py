"""Attention from one sequence to another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from kernels import ops


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a context: computed once, whatever attends to them later."""

    keys: Tensor
    values: Tensor
    """(B, H, M, D) each."""
    size: Tensor | None = None
    """(B, M, 1), how many tokens each key counts for."""

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def repeat(self, count: int) -> KVCache:
        """One sample's memory for several that attend to it, without a copy."""
        size = None if self.size is None else self.size.expand(count, -1, -1)
        return KVCache(self.keys.expand(count, -1, -1, -1), self.values.expand(count, -1, -1, -1), size)

    def rows(self, rows: slice) -> KVCache:
        """Keys and values of some samples, in storage of their own."""
        return KVCache(self.keys[rows].clone(), self.values[rows].clone(), None if self.size is None else self.size[rows].clone())


class CrossAttention(nn.Module):
    """The rows of `kv` are k and v, each split into heads contiguously.

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

    def remember(self, context: Tensor, size: Tensor | None = None) -> KVCache:
        """(B, M, context_width), (B, M, 1) → keys and values."""
        keys, values = (self._split(part).contiguous() for part in self.kv(context).chunk(2, dim=-1))
        return KVCache(keys, values, size)

    def forward(self, x: Tensor, memory: KVCache) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        output: Tensor = self.proj(self.attend(self.q(x), memory))
        return output

    def attend(self, queries: Tensor, memory: KVCache) -> Tensor:
        """(B, N, inner) from `q` → (B, N, inner) for `proj`."""
        attended = ops.size_biased_attention(self._split(queries), memory.keys, memory.values, memory.size)
        return attended.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        by_head: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]  # (B, H, N, D)
        return by_head
