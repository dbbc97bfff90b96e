"""The decoder for holes of different sizes, without padding. Linear layers see the concatenated noisy patches of all jobs; each job attends
to its own patches only, through its keys and values, which are not copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from kernels import ops
from models.layers.block import KVCache
from models.systems.diffmae.decoder import DecoderContext, DiffMAEDecoderBlock
from models.systems.diffmae.diffusion import SamplerTable
from models.systems.diffmae.inpaint_state import InpaintState, WindowDenoising, known_pixels_of
from models.systems.diffmae.model import DiffMAE
from models.systems.diffmae.sampling import KnownPixels


@dataclass(frozen=True)
class PackedPart:
    """Samples of one hole."""

    x: Tensor
    """(n, M, P), noisy."""
    time: Tensor
    """(n,), training times."""
    context: DecoderContext
    """Context of one sample or of n."""

    @property
    def samples(self) -> int:
        return self.x.shape[0]

    @property
    def tokens(self) -> int:
        """Number of tokens of each sample in the decoder, including visible ones if it is a joint decoder."""
        visible = self.context.visible
        return self.x.shape[1] + (0 if visible is None else visible.shape[1])

    @property
    def rows(self) -> int:
        return self.samples * self.tokens


@dataclass(frozen=True)
class PackedBatch:
    """The next step of several jobs. Each of the R noisy patches of all samples counts as a sample with one patch."""

    fillings: tuple[InpaintState, ...]
    current: tuple[WindowDenoising, ...]
    x: Tensor
    """(R, 1, P)."""
    steps: SamplerTable
    """R rows."""
    parts: tuple[PackedPart, ...]
    known_pixels: KnownPixels

    @staticmethod
    def join(fillings: Sequence[InpaintState]) -> PackedBatch:
        """Join jobs that all have a current window."""
        current = tuple(filling.current for filling in fillings if filling.current is not None)
        next_steps = [filling.next_step for filling in fillings]
        known_pixels = [known_pixels_of(filling, now) for filling, now in zip(fillings, current, strict=True)]
        patches = torch.cat([torch.full((len(now.x),), now.x.shape[1]) for now in current])
        return PackedBatch(
            fillings=tuple(fillings),
            current=current,
            x=_pack([now.x for now in current]),
            steps=SamplerTable.join(next_steps).rows(torch.arange(len(patches)).repeat_interleave(patches)).to(current[0].x.device),
            parts=tuple(PackedPart(now.x, steps.time, now.context) for now, steps in zip(current, next_steps, strict=True)),
            known_pixels=KnownPixels(_pack([one.patches for one in known_pixels]), _pack([one.generated for one in known_pixels])),
        )

    def predict(self, model: DiffMAE, times: Tensor | None) -> Tensor:
        return predict(model, self.parts, times).unsqueeze(1)

    def jobs(self) -> Iterator[tuple[InpaintState, WindowDenoising, tuple[slice, ...]]]:
        """Yield each job with its rows in the batch."""
        start = 0
        for filling, now in zip(self.fillings, self.current, strict=True):
            rows = now.x.shape[0] * now.x.shape[1]
            yield filling, now, (slice(start, start + rows),)
            start += rows


def predict(model: DiffMAE, parts: Sequence[PackedPart], times: Tensor | None) -> Tensor:
    """Predict as `DiffMAE.predict` does, for all parts in one pass: (R, P), one row for each noisy patch, part by part.

    times: `time_table()`.
    """
    z = _enter(model, parts, times)  # (rows of all parts, C)
    for index, block in enumerate(cast(Iterable[DiffMAEDecoderBlock], model.decoder_blocks)):
        z = _block(block, z, parts, index)
    if any(part.context.visible is not None for part in parts):
        z = torch.cat([_split_samples(rows, part)[:, -part.x.shape[1] :].flatten(0, 1) for rows, part in _split(z, parts)])
    z = model.decoder_norm(z)
    predicted: Tensor = model.decoder_pred(z)
    return predicted.to(parts[0].x.dtype)


def _enter(model: DiffMAE, parts: Sequence[PackedPart], times: Tensor | None) -> Tensor:
    x = torch.cat([part.x.flatten(0, 1) for part in parts])
    embedded = model.noise_embed(x.to(model.noise_embed.weight.dtype)).split([part.samples * part.x.shape[1] for part in parts])
    entered = []
    for part, rows in zip(parts, embedded, strict=True):
        z = rows.unflatten(0, part.x.shape[:2]) + part.context.positions
        if model.time_embed is not None:
            z = z + (model.time_embed(part.time) if times is None else times[part.time]).unsqueeze(1)
        if part.context.visible is not None:
            z = torch.cat([part.context.visible.expand(part.samples, -1, -1), z], dim=1)
        entered.append(z.flatten(0, 1))
    return torch.cat(entered)


def _block(block: DiffMAEDecoderBlock, z: Tensor, parts: Sequence[PackedPart], index: int) -> Tensor:
    """Apply `DiffMAEDecoderBlock.forward` to rows of all parts, (R, C)."""
    if (cross := block.cross_attn) is not None:
        assert block.norm_cross is not None
        z = z + cross.proj(_attend(cross.q(block.norm_cross(z)), parts, lambda q, part: cross.attend(q, _expand_memory(part, index))))
    if (attention := block.attn) is not None:
        assert block.norm_self is not None

        def attend(qkv: Tensor, _part: PackedPart) -> Tensor:
            return ops.size_biased_attention(*attention.split_heads(qkv), None).transpose(1, 2).flatten(2)

        z = z + attention.proj(_attend(attention.qkv(block.norm_self(z)), parts, attend))
    output: Tensor = z + block.mlp(block.norm_mlp(z))
    return output


def _attend(rows: Tensor, parts: Sequence[PackedPart], attend: Callable[[Tensor, PackedPart], Tensor]) -> Tensor:
    """Apply attention to each part: (R, C) → (R, C'), as (n, N, C) → (n, N, C') of a part."""
    return torch.cat([attend(_split_samples(values, part), part).flatten(0, 1) for values, part in _split(rows, parts)])


def _pack(values: Sequence[Tensor]) -> Tensor:
    """Join values (n, M, P) to (R, 1, P)."""
    return torch.cat([one.flatten(0, 1) for one in values]).unsqueeze(1)


def _split(rows: Tensor, parts: Sequence[PackedPart]) -> Iterator[tuple[Tensor, PackedPart]]:
    return zip(torch.split(rows, [part.rows for part in parts]), parts, strict=True)


def _split_samples(rows: Tensor, part: PackedPart) -> Tensor:
    return rows.view(part.samples, part.tokens, rows.shape[1])


def _expand_memory(part: PackedPart, block: int) -> KVCache:
    memory = part.context.memories[block]
    return memory if len(memory.keys) == part.samples else memory.repeat(part.samples)
