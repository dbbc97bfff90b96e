"""Parts of the forward functions of several architectures: normalised images, outputs of classifiers and vectors of images with their token
counts, and passes on random input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kernels.ops import effective_r
from models.bundle_schema import Preprocess
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.registry import Architecture, ForwardCall, InputMaker

ForwardFn = Callable[[nn.Module, Mapping[str, Tensor], Mapping[str, Any], Preprocess], dict[str, Tensor]]
"""(model, arrays on the model's device, options, preprocess) → arrays, one row per sample."""
TokenizeFn = Callable[[Mapping[str, NDArray[Any]]], tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]
"""Texts of a batch → input arrays of the network, and arrays that are returned with its output."""


def normalise(pixels: Tensor, preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    """Normalise pixels: uint8 (B, H, W, 3) → (B, 3, H, W) in `dtype`, scaled to [0, 1], minus the mean, divided by the std."""
    mean, std = (torch.tensor(values).to(pixels.device, non_blocking=True) for values in (preprocess.mean, preprocess.std))
    return ((pixels.float() / 255 - mean) / std).to(dtype).permute(0, 3, 1, 2)


def normalise_to_planes(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Normalise in place: uint8 (B, H, W, 3) → contiguous float32 (B, 3, H, W). On a CPU it takes a third of `normalise`'s time."""
    mean, std = (torch.tensor(values).to(pixels.device).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(255).sub_(mean).div_(std)


def token_counts(batch: int, tokens_in: int, tokens_out: int) -> Tensor:
    """Return int32 (batch, 2), tokens in and out."""
    return torch.tensor([[tokens_in, tokens_out]], dtype=torch.int32).expand(batch, -1)


def classification_arrays(logits: Tensor, tokens_in: int, tokens_out: int) -> dict[str, Tensor]:
    """Return logits float32 (B, classes) and tokens int32 (B, 2), in and out."""
    return {"logits": logits.float(), "tokens": token_counts(logits.shape[0], tokens_in, tokens_out)}


def images(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    pixels = make.normal(3, config.image_size, config.image_size)
    return lambda: model(pixels)


def clips(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    pixels = make.normal(3, config.frames, config.image_size, config.image_size)
    return lambda: model(pixels)


def images_or_clips(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    return (images if config.images else clips)(model, config, make)


def masked_images(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    pixels, noise = make.normal(3, config.image_size, config.image_size), make.uniform(config.patches)
    return lambda: model(pixels, noise)


def masked_clips(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    pixels, noise = make.normal(3, config.frames, config.image_size, config.image_size), make.uniform(config.patches)
    return lambda: model(pixels, noise)


@dataclass(frozen=True)
class ClassifierOutput:
    logits: Tensor
    """(B, classes)."""
    features: Tensor
    """(B, C), input of the head; (B, 2, C) for distilled models."""
    tokens_in: int
    tokens_out: int
    """Tokens before the first and after the last block, special tokens included."""
    size: Tensor | None
    """(B, tokens_out, 1), input tokens per token; None if nothing merged."""
    source: Tensor | None
    """(B, tokens_out, tokens_in) of 0 and 1; None if nothing merged or it was not traced."""
    token_owners: tuple[Tensor, ...] = ()
    """After each merge, if traced: the token that holds each input token, (B, tokens_in)."""


def patch_token_map(logits: Tensor, owners: Sequence[Tensor], tokens_in: int, schedule: Sequence[int], special: int) -> Tensor:
    """Return the token that holds each patch after each block, int32 (B, depth, patches), special tokens not counted.

    logits: (B, classes); owners: after each merge, the token that holds each of `tokens_in` tokens, (B, tokens_in); schedule: r of every
    block; special: tokens in front, which hold only themselves."""
    tokens, merges = tokens_in, iter(owners)
    owner = torch.arange(tokens, device=logits.device).expand(logits.shape[0], -1)  # (B, tokens_in)
    layers = []
    for r in schedule:
        merged = effective_r(tokens, r, special)
        owner = next(merges) if merged else owner
        tokens -= merged
        layers.append(owner[:, special:] - special)
    return torch.stack(layers, dim=1).to(torch.int32)


@dataclass(frozen=True)
class EmbedBatchOptions:
    merge: MergeSchedule
    pool: str
    """One of the architecture's `pools`."""
    tokens: bool
    """Whether every merged token becomes a vector, instead of the image."""

    @staticmethod
    def read(options: Mapping[str, Any], architecture: Architecture, config: Any) -> EmbedBatchOptions:
        """Check options: `merge`, r per block; `pool`, None for the model's own; `output`, "pooled" or "tokens". Raises ValueError."""
        fields = vars(config)
        pools, pool, output = architecture.pools(fields), options.get("pool"), options.get("output", "pooled")
        if pool is not None and pool not in pools:
            raise ValueError(f"pool: {pool!r} is not offered by this model, which has {', '.join(pools)}")
        if output not in ("pooled", "tokens"):
            raise ValueError(f"output: {output!r} is neither 'pooled' nor 'tokens'")
        if output == "tokens" and not architecture.token_vectors(fields):
            raise ValueError("output: 'tokens' is not offered by this model, whose image head is not linear for each token")
        return EmbedBatchOptions(MergeSchedule.from_list(options.get("merge", ())), pool or pools[0], output == "tokens")


def l2_normalise(x: Tensor) -> Tensor:
    """Divide x (..., C) by its length → float32. Zeros stay zeros, and infinities and NaN are kept."""
    return F.normalize(x.float(), dim=-1)


def image_vectors(features: Tensor, tokens_in: int, tokens_out: int) -> dict[str, Tensor]:
    """Return the arrays for pooled features (B, dim): embedding float32 (B, dim), unit length; tokens int32 (B, 2): in and out."""
    return {"embedding": l2_normalise(features), "tokens": token_counts(len(features), tokens_in, tokens_out)}


def token_vectors(features: Tensor, tokens: Tokens, tokens_in: int) -> dict[str, Tensor]:
    """Return the arrays for features (B, T, dim) of the tokens after the special ones.

    vectors float32 (B, T, dim), unit length; sizes int32 (B, T), patches in each; owners int32 (B, patches), the token that each patch went
    into; tokens int32 (B, 2): in and out.

    tokens: traced, after the last block. tokens_in: number of them before the first block, special ones included.
    """
    special, (batch, count, _) = tokens.protected, features.shape
    sizes = torch.ones(batch, count, device=features.device) if tokens.size is None else tokens.size[:, special:, 0]
    if tokens.token_owners:
        owners = tokens.token_owners[-1][:, special:] - special  # special tokens stay in front and hold only themselves
    else:
        owners = torch.arange(count, device=features.device).expand(batch, -1)
    return {
        "vectors": l2_normalise(features),
        "sizes": sizes.to(torch.int32),
        "owners": owners.to(torch.int32),
        "tokens": token_counts(batch, tokens_in, special + count),
    }
