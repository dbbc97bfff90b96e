"""Clips of tracked people, the input of LART and PHALP's pose predictor, and attention among their tokens, of which
some are masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import Attention, Mlp, drop_branch
from models.registry import ForwardCall, InputMaker


@dataclass(frozen=True)
class KeyMask:
    """Keys that each query attends to. A query without keys attends to all tokens equally: the published code sets masked scores to -1000,
    and a softmax over nothing else is the mean of all tokens, masked ones included."""

    keys: Tensor
    """bool (B, 1, N, N), or (B, 1, 1, N) if all queries have the same keys."""
    has_keys: Tensor
    """bool (B, 1, N, 1) or (B, 1, 1, 1): False for a query without keys."""

    @classmethod
    def from_masked(cls, masked: Tensor, valid: Tensor | None = None) -> KeyMask:
        """Build the mask from bool (B, N) each. Masked tokens are not keys; invalid tokens are neither keys nor queries. valid: None if all
        are."""
        keys = ~masked if valid is None else valid & ~masked
        has_keys = keys.any(dim=1, keepdim=True)  # (B, 1)
        if valid is not None:
            has_keys = has_keys & valid  # (B, N)
        return cls((keys.unsqueeze(1) | ~has_keys.unsqueeze(2)).unsqueeze(1), has_keys[:, None, :, None])


class MaskedAttention(Attention):
    """Attention without biases on q, k and v. A single head as wide as the tokens has no output projection."""

    def __init__(self, width: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__(width, heads, qkv_bias=False, head_dim=head_dim)
        self.dropout = dropout
        if heads == 1 and head_dim == width:
            self.proj = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor, key_mask: KeyMask | None) -> Tensor:  # type: ignore[override]
        """(B, N, C) → (B, N, C)."""
        q, k, v = self.project(x)
        dropout = self.dropout if self.training else 0.0
        if key_mask is None:
            return self.join_heads(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout))
        q = q * key_mask.has_keys  # all scores of a query without keys are 0, and its weights equal
        return self.join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask.keys, dropout_p=dropout))


class MaskedBlock(nn.Module):
    """A pre-norm block; its LayerNorms have an epsilon of 1e-5."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, *, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = MaskedAttention(width, heads, head_dim, dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width, hidden, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = drop_path

    def forward(self, x: Tensor, key_mask: KeyMask | None = None) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        x = x + self._drop(self.attn(self.norm1(x), key_mask))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        return drop_branch(self.dropout(branch), self.drop_path, self.training)


def draw_masked(candidates: Tensor, ratio: float, noise: Tensor) -> Tensor:
    """Draw candidates to mask, bool (B, N): the fraction `ratio`, rounded down, of the candidates with the lowest noise.

    candidates: bool (B, N). noise: (B, N).
    """
    count = (candidates.sum(dim=1, keepdim=True).double() * ratio).floor()
    rank = torch.where(candidates, noise, torch.inf).argsort(dim=1).argsort(dim=1)
    return candidates & (rank < count)


POSE_VALUES = 229
"""Number of values of a pose: 24 rotations row by row, 10 betas, the location in the camera's coordinates with depth divided by 200."""


MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and standard deviations of the first values of a pose."""


@dataclass(frozen=True)
class TrackBatch:
    """A batch of clips of people; all arrays are (B, T, P, ·)."""

    pose: Tensor
    """(B, T, P, 229), normalised: see `normalise_pose`."""
    detected: Tensor
    """(B, T, P, 1) of 0 and 1: 1 if the person was detected in the frame."""
    joints: Tensor | None = None
    """(B, T, P, 135): 45 joints in 3D, the camera added, not normalised."""
    appearance: Tensor | None = None
    """(B, T, P, A), not normalised."""
    masked: Tensor | None = None
    """(B, T, P, 1) of 0 and 1: tokens to mask although they were detected; None: none."""


@dataclass(frozen=True)
class TokenMask:
    """Tokens that the network does not use, bool (B, T, P, 1) each."""

    masked: Tensor
    valid: Tensor | None
    """Tokens that take part in attention; None: all of them."""

    @classmethod
    def from_missing(cls, tracks: TrackBatch) -> TokenMask:
        """Mask the tokens that were not detected, as inference does."""
        absent = tracks.detected == 0
        return cls(absent if tracks.masked is None else absent | (tracks.masked != 0), None)

    @classmethod
    def from_noise(cls, tracks: TrackBatch, ratio: float, noise: Tensor) -> TokenMask:
        """Mask the fraction `ratio` of each clip's detected tokens with the lowest noise (B, T, P, 1), as training does."""
        detected = tracks.detected != 0
        masked = draw_masked(detected.flatten(1), ratio, noise.flatten(1)).view_as(detected)
        return cls(masked if tracks.masked is None else masked | (tracks.masked != 0), detected)


def normalise_pose(pose: Tensor, mean_std: Tensor) -> Tensor:
    """Normalise poses (..., 229) by the means and standard deviations (2, 1, K) of their first K values; the other values stay.

    `mean_std.npy` has the same layout.
    """
    mean, std = mean_std[:, 0].to(pose.dtype)
    rest = pose.shape[-1] - len(mean)
    mean, std = torch.cat([mean, mean.new_zeros(rest)]), torch.cat([std, std.new_ones(rest)])
    return (pose - mean) / (std + 1e-10)


def pose_statistics(mean_std: MeanStd | None) -> Tensor:
    """Return a config's `mean_std` as `normalise_pose` takes it: (2, 1, K). Raises ValueError if it has none."""
    if mean_std is None:
        raise ValueError(
            "mean_std: this model was imported without the statistics of its poses; import it with --set mean_std=mean_std.npy"
        )
    return torch.tensor(mean_std, dtype=torch.float64).unsqueeze(1)


def require_statistics(mean_std: MeanStd | None, values: int) -> None:
    """Check that a config's `mean_std` is for poses of `values` values. Raises ValueError if not."""
    if mean_std is None:
        return
    mean, std = mean_std
    if len(mean) != len(std) or len(mean) > values or min(std, default=0.0) < 0:
        raise ValueError(f"mean_std: {len(mean)} means and {len(std)} standard deviations where a pose has {values} values")


def tracks(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    """Make a batch with one person per row, detected in every frame."""

    def feature(size: Any) -> Tensor | None:
        return None if size is None else make.normal(config.frames, 1, size.values)

    pose = make.normal(config.frames, 1, config.pose.values)
    detected = torch.ones(*pose.shape[:3], 1, device=pose.device)
    random = TrackBatch(pose, detected, feature(getattr(config, "joints", None)), feature(getattr(config, "appearance", None)))
    return lambda: model(random)


def masked_crops(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    crops = make.normal(4, config.size, config.size)
    return lambda: model(crops)
