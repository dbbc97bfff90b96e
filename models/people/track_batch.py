"""Clips of tracked people, the input of LART and PHALP's pose predictor, and masks of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.people.masked_attention import draw_masked

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
