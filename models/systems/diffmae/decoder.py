"""The decoder of DiffMAE (arXiv 2304.03283): its context of an image, and the block that attends to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import Attention, CrossAttention, KVCache, Mlp


class DecoderType(StrEnum):
    """Tokens that a noisy patch attends to."""

    JOINT = "joint"
    """All patches: visible ones go through every block together with the noisy ones."""
    CROSS = "cross"
    CROSS_SELF = "cross_self"
    """Visible patches, then the other noisy ones."""


@dataclass(frozen=True)
class DecoderContext:
    """Everything that a step needs of an image and its mask. It holds neither time nor noise: one serves all steps of all samples."""

    positions: Tensor
    """(B, M, C) of the masked patches."""
    masked_size: Tensor | None
    """(B, M, 1), 0 for padding."""
    memories: tuple[KVCache, ...] = ()
    """Keys and values for each block of a cross decoder."""
    visible: Tensor | None = None
    """(B, 1 + V, C), visible tokens at the start of a joint decoder."""
    visible_size: Tensor | None = None
    """(B, 1 + V, 1), 0 for padding."""

    @cached_property
    def nbytes(self) -> int:
        visible = 0 if self.visible is None else self.visible.nbytes
        return self.positions.nbytes + sum(memory.nbytes for memory in self.memories) + visible

    def rows(self, rows: slice) -> DecoderContext:

        def copy(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows].clone()

        return self._each(copy, tuple(memory.select(rows) for memory in self.memories))

    def repeat(self, count: int) -> DecoderContext:
        """Expand one image's context to several samples of it, without a copy."""

        def view(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.expand(count, *value.shape[1:])

        return self._each(view, tuple(memory.repeat(count) for memory in self.memories))

    def _each(self, change: Callable[[Tensor | None], Tensor | None], memories: tuple[KVCache, ...]) -> DecoderContext:
        positions = change(self.positions)
        assert positions is not None
        return DecoderContext(
            positions,
            change(self.masked_size),
            memories,
            change(self.visible),
            change(self.visible_size),
        )

    @staticmethod
    def join(contexts: Sequence[DecoderContext]) -> DecoderContext:
        """Join contexts into one batch and pad the shorter ones; values of padding have no influence."""
        layers = zip(*(context.memories for context in contexts), strict=True)
        positions = [context.positions for context in contexts]
        joint = [context.visible for context in contexts if context.visible is not None]
        return DecoderContext(
            positions=_pad_and_join(positions),
            masked_size=_join_sizes([context.masked_size for context in contexts], positions),
            memories=tuple(_join_memories(layer) for layer in layers),
            visible=_pad_and_join(joint) if joint else None,
            visible_size=_join_sizes([context.visible_size for context in contexts], joint) if joint else None,
        )


class DiffMAEDecoderBlock(nn.Module):
    def __init__(self, kind: DecoderType, width: int, context_width: int, heads: int, hidden: int, norm_eps: float) -> None:
        super().__init__()
        crosses, joins = kind is not DecoderType.JOINT, kind is not DecoderType.CROSS
        self.norm_cross = nn.LayerNorm(width, eps=norm_eps) if crosses else None
        self.norm_ctx = nn.LayerNorm(context_width, eps=norm_eps) if crosses else None
        self.cross_attn = CrossAttention(width, context_width, heads) if crosses else None
        self.norm_self = nn.LayerNorm(width, eps=norm_eps) if joins else None
        self.attn = Attention(width, heads) if joins else None
        self.norm_mlp = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden)

    def remember(self, features: Tensor, size: Tensor | None) -> KVCache:
        """Project encoder features (B, 1 + V, D) to the keys and values of this block's cross-attention."""
        assert self.cross_attn is not None and self.norm_ctx is not None, "a joint decoder has nothing to remember"
        return self.cross_attn.project_kv(self.norm_ctx(features), size)

    def forward(self, z: Tensor, size: Tensor | None, memory: KVCache | None) -> Tensor:
        """Transform tokens (B, N, C) with sizes (B, N, 1), given the memory of a cross decoder: → (B, N, C)."""
        if self.cross_attn is not None:
            assert self.norm_cross is not None and memory is not None, "a cross decoder needs its memory"
            z = z + self.cross_attn(self.norm_cross(z), memory)
        if self.attn is not None:
            assert self.norm_self is not None
            z = z + self.attn(self.norm_self(z), size)[0]
        output: Tensor = z + self.mlp(self.norm_mlp(z))
        return output


class TimeEmbedding(nn.Module):
    """Sinusoids of the training time, followed by two layers."""

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        if frequencies % 2:
            raise ValueError(f"time_width {frequencies} is odd; it is half cosines, half sines")
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times: (B,) → (B, C). The sinusoids are double precision: in bfloat16, times near 1000 would be eight apart."""
        embedded: Tensor = self.mlp(self.waves(t).to(self.mlp.get_parameter("0.weight").dtype))
        return embedded

    def waves(self, t: Tensor) -> Tensor:
        """Compute sinusoids of times in double precision: (B,) → (B, frequencies)."""
        half = self.frequencies // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64, device=t.device) / half)
        angles = t.double().unsqueeze(1) * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def _join_memories(layer: Sequence[KVCache]) -> KVCache:
    sizes = _join_sizes([memory.size for memory in layer], [memory.keys for memory in layer])
    return KVCache(_pad_and_join([memory.keys for memory in layer]), _pad_and_join([memory.values for memory in layer]), sizes)


def _pad_and_join(parts: Sequence[Tensor]) -> Tensor:
    """Join parts (b, ..., n, C) to (B, ..., N, C), padded with zeros to the longest."""
    longest = max(part.shape[-2] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[-2])) for part in parts])


def _join_sizes(sizes: Sequence[Tensor | None], tokens: Sequence[Tensor]) -> Tensor | None:
    """Join sizes (b, n, 1) to (B, N, 1). Return None if no part has sizes and all are equally long."""
    if all(size is None for size in sizes) and len({part.shape[-2] for part in tokens}) == 1:
        return None
    ones = (part.new_ones(part.shape[0], part.shape[-2], 1, dtype=torch.float32) for part in tokens)
    return _pad_and_join([one if size is None else size for size, one in zip(sizes, ones, strict=True)])
