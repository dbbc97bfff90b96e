"""Clips of tracked people, as LART and PHALP's pose predictor see them, and which tokens of them are hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.people.masked_attention import hidden_at_random

POSE = 229
"""24 rotations row by row, 10 betas, the place before the camera with its depth divided by 200."""


MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and standard deviations of the first values of a pose."""


@dataclass(frozen=True)
class Tracks:
    """Clips of people; all arrays are (B, T, P, ·)."""

    pose: Tensor
    """(B, T, P, 229), normalised: see `normalise_pose`."""
    detected: Tensor
    """(B, T, P, 1) of 0 and 1: the person was observed in the frame."""
    joints: Tensor | None = None
    """(B, T, P, 135): 45 joints in 3D, the camera added, not normalised."""
    appearance: Tensor | None = None
    """(B, T, P, A), not normalised."""
    masked: Tensor | None = None
    """(B, T, P, 1) of 0 and 1: tokens to hide although they were detected; None: none."""


@dataclass(frozen=True)
class Hidden:
    """Tokens that the network does not see, (B, T, P, 1) of bool each."""

    masked: Tensor
    valid: Tensor | None
    """Tokens that take part in attention at all; None: all of them."""

    @classmethod
    def missing(cls, tracks: Tracks) -> Hidden:
        """At inference: what was not detected."""
        absent = tracks.detected == 0
        return cls(absent if tracks.masked is None else absent | (tracks.masked != 0), None)

    @classmethod
    def at_random(cls, tracks: Tracks, ratio: float, noise: Tensor) -> Hidden:
        """In training: of each clip's detected tokens the share `ratio` with the lowest noise (B, T, P, 1)."""
        detected = tracks.detected != 0
        drawn = hidden_at_random(detected.flatten(1), ratio, noise.flatten(1)).view_as(detected)
        return cls(drawn if tracks.masked is None else drawn | (tracks.masked != 0), detected)


def normalise_pose(pose: Tensor, mean_std: Tensor) -> Tensor:
    """(..., 229) by the means and standard deviations (2, 1, K) of the first K values, as `mean_std.npy` holds them; the others stay."""
    mean, std = mean_std[:, 0].to(pose.dtype)
    rest = pose.shape[-1] - len(mean)
    mean, std = torch.cat([mean, mean.new_zeros(rest)]), torch.cat([std, std.new_ones(rest)])
    return (pose - mean) / (std + 1e-10)


def pose_statistics(mean_std: MeanStd | None) -> Tensor:
    """A config's `mean_std` as `normalise_pose` takes it: (2, 1, K). Raises ValueError if it has none."""
    if mean_std is None:
        raise ValueError(
            "mean_std: this model was imported without the statistics of its poses; import it with --set mean_std=mean_std.npy"
        )
    return torch.tensor(mean_std, dtype=torch.float64).unsqueeze(1)


def require_statistics(mean_std: MeanStd | None, values: int) -> None:
    """Raises ValueError for a config's `mean_std` that is not of poses of so many values."""
    if mean_std is None:
        return
    mean, std = mean_std
    if len(mean) != len(std) or len(mean) > values or min(std, default=0.0) < 0:
        raise ValueError(f"mean_std: {len(mean)} means and {len(std)} standard deviations where a pose has {values} values")
