"""PHALP's textures (arXiv 2112.04477): a person's visible skin, unwrapped; colours and, as fourth channel, where they are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.systems.phalp.association_cost import APPEARANCE_UNIT

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

    encode: textures (M, 4, S, S) → (M, D). Each pair is masked on its own: track by track, so that memory does not grow with the pairs.
    """
    return torch.stack([_texture_distances(encode, track, detections) for track in tracks])


def _texture_distances(encode: Callable[[Tensor], Tensor], track: Tensor, detections: Tensor) -> Tensor:
    """(4, S, S), (N, 4, S, S) → (N,)."""
    common = (track[3:] > 0.5) & (detections[:, 3:] > 0.5)  # (N, 1, S, S)
    of_track, of_detections = (encode(textures * common) / APPEARANCE_UNIT for textures in (track, detections))  # (N, D)
    return TEXTURE_WEIGHT * (of_track - of_detections).square().sum(dim=1)


def _joined(colours: Tensor, known: Tensor) -> Tensor:
    return torch.cat([torch.where(known, colours, 0.0), torch.where(known, 1.0, -1.0).to(colours.dtype)], dim=-3)
