"""Initialisation of MAViL's pre-training from a published masked autoencoder of images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.position_embeddings import repeat_in_time
from models.systems.mavil.model import TowersConfig

SKIPPED_PREFIXES = ("decoder_pred.",)
"""Prefixes of skipped weights: a patch of an image has fewer values than one of a clip."""


def video_weights_from_images(image_weights: Mapping[str, Tensor], config: TowersConfig) -> dict[str, Tensor]:
    """Convert an MAE's weights to those of the video half and of the fusion blocks, by our names.

    The kernel is repeated over time, not scaled; positions are the same at all times; each fusion block is a copy of the last block.
    """
    times, _, _ = config.video_grid
    weights: dict[str, Tensor] = {}
    for name, value in image_weights.items():
        if name.startswith(SKIPPED_PREFIXES):
            continue
        if name == "patch_embed.proj.weight":
            value = value.unsqueeze(2).repeat(1, 1, config.patch_frames, 1, 1)  # (C, 3, u, p, p)
        elif name in ("pos_embed", "decoder_pos_embed"):
            value = repeat_in_time(value, times)
        weights[f"video.{name}"] = value
    last = f"blocks.{config.depth - 1}."
    for index in range(config.fusion_depth):
        copies = {
            name.replace(last, f"blocks_av.{index}.", 1): value.clone() for name, value in image_weights.items() if name.startswith(last)
        }
        weights |= copies
    return weights


def audio_weights_from_video(video_weights: Mapping[str, Tensor], config: TowersConfig) -> dict[str, Tensor]:
    """Convert weights of the video half to the audio half, an option of the published code.

    The kernel is summed over colours and time; the positions of one time are interpolated bicubically to times and mel bins.
    """
    weights = {}
    for name, value in video_weights.items():
        half, _, rest = name.partition(".")
        if half != "video" or rest.startswith(SKIPPED_PREFIXES):
            continue
        if rest == "patch_embed.proj.weight":
            value = value.sum(dim=(1, 2)).unsqueeze(1)  # (C, 1, p, p)
        elif rest in ("pos_embed", "decoder_pos_embed"):
            value = _interpolate_positions(value, config)
        weights[f"audio.{rest}"] = value
    return weights


def _interpolate_positions(table: Tensor, config: TowersConfig) -> Tensor:
    """Interpolate positions bicubically: (1, 1 + t·h·w, C) → (1, 1 + times·bins, C)."""
    times, rows, columns = config.video_grid
    table_map = table[:, 1:].unflatten(1, (times, rows, columns))[:, 0].permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]  # (1, C, h, w)
    interpolated = F.interpolate(table_map, size=config.audio_grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], interpolated.flatten(2).transpose(1, 2)], dim=1)
