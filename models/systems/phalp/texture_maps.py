"""PHALP's textures (arXiv 2112.04477): a person's visible skin, unwrapped: RGB, and a fourth channel that marks valid texels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.systems.phalp.association_cost import APPEARANCE_SCALE

COLOUR_SCALE = 5.0
"""Normalised colours are divided by this."""
TEXTURE_WEIGHT = 100.0


def normalise_texture(sampled: Tensor) -> Tensor:
    """Normalise textures (..., 4, S, S) sampled from a crop, RGB and a mask: colours where the mask becomes 1, zeros where it becomes
    -1."""
    colours, valid = sampled[..., :3, :, :], sampled[..., 3:, :, :] != 0
    return _join_mask(colours / COLOUR_SCALE, valid)


def update_texture(old: Tensor, new: Tensor, rate: float, confidence: float) -> Tensor:
    """Blend a track's texture with a detection's, (4, S, S) each: by rate · confidence² where both are valid, else the valid one."""
    fraction = rate * confidence**2
    valid_before, valid_now = old[3:] > 0, new[3:] > 0
    blended = (1 - fraction) * old[:3] + fraction * new[:3]
    colours = torch.where(valid_before & valid_now, blended, torch.where(valid_now, new[:3], old[:3]))
    return _join_mask(colours, valid_before | valid_now)


def texture_distances(encode: Callable[[Tensor], Tensor], tracks: Tensor, detections: Tensor) -> Tensor:
    """Return distances (K, N) of textures (K, 4, S, S) and (N, 4, S, S), by a network's codes of the texels that are valid in both.

    encode: textures (M, 4, S, S) → (M, D). Each pair has its own mask: computed track by track, so that memory does not grow with the
    pairs.
    """
    return torch.stack([_texture_distances(encode, track, detections) for track in tracks])


def _texture_distances(encode: Callable[[Tensor], Tensor], track: Tensor, detections: Tensor) -> Tensor:
    """Return distances (N,) of a texture (4, S, S) from textures (N, 4, S, S)."""
    common = (track[3:] > 0.5) & (detections[:, 3:] > 0.5)  # (N, 1, S, S)
    track_code, detection_codes = (encode(textures * common) / APPEARANCE_SCALE for textures in (track, detections))  # (N, D)
    return TEXTURE_WEIGHT * (track_code - detection_codes).square().sum(dim=1)


def _join_mask(colours: Tensor, valid: Tensor) -> Tensor:
    return torch.cat([torch.where(valid, colours, 0.0), torch.where(valid, 1.0, -1.0).to(colours.dtype)], dim=-3)
