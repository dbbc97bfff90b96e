"""PHALP's textures (arXiv 2112.04477): a person's visible skin, unwrapped; colours and, as fourth channel, where they are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.phalp_distance import APPEARANCE_UNIT

COLOURS = 5.0
"""Normalised colours are divided by this."""
TEXTURE_WEIGHT = 100.0


def normalise_texture(sampled: Tensor) -> Tensor:
    """(..., 4, S, S) sampled from a crop, normalised RGB and a mask from 0 → the same with colours where the mask is 1, zeros where -1."""
    colours, known = sampled[..., :3, :, :], sampled[..., 3:, :, :] != 0
    return _joined(colours / COLOURS, known)


def update_texture(old: Tensor, new: Tensor, rate: float, confidence: float) -> Tensor:
    """A track's texture after a detection's, (4, S, S) each: mixed where both are known, by rate · confidence², else whichever is."""
    share = rate * confidence**2
    seen_before, seen_now = old[3:] > 0, new[3:] > 0
    both = (1 - share) * old[:3] + share * new[:3]
    colours = torch.where(seen_before & seen_now, both, torch.where(seen_now, new[:3], old[:3]))
    return _joined(colours, seen_before | seen_now)


def texture_distances(encode: Callable[[Tensor], Tensor], tracks: Tensor, detections: Tensor) -> Tensor:
    """(K, 4, S, S), (N, 4, S, S) → (K, N): how differently a network sees the parts that are known of both.

    encode: textures (M, 4, S, S) → (M, D).
    """
    pairs = len(tracks), len(detections)
    left, right = tracks.unsqueeze(1).expand(*pairs, -1, -1, -1), detections.unsqueeze(0).expand(*pairs, -1, -1, -1)
    common = (left[:, :, 3:] > 0.5) & (right[:, :, 3:] > 0.5)
    codes = encode(torch.cat([(side * common).flatten(0, 1) for side in (left, right)])) / APPEARANCE_UNIT  # (2 · K · N, D)
    first, second = codes.chunk(2)
    return TEXTURE_WEIGHT * (first - second).square().sum(dim=1).view(pairs)


def _joined(colours: Tensor, known: Tensor) -> Tensor:
    return torch.cat([torch.where(known, colours, 0.0), torch.where(known, 1.0, -1.0).to(colours.dtype)], dim=-3)
